"""Graphs that few models have and some do: names that clash, products of constants, masks, tables that heads share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import ExportError
from exporters import verify
from exporters.onnx import OnnxExporter
from exporters.onnx import graph as onnx_graph
from exporters.torch_export import TorchExporter

SIZE = 32


class Normalizing(nn.Module):
    """A buffer `mean`, and an operator whose output torch calls so too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.conv, self.head = nn.Conv2d(3, SIZE, 4, stride=4), nn.Linear(SIZE, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.conv(pixel_values - self.mean).mean((2, 3)))


class Named(nn.Module):
    """A weight under the name of an operator, `embedding`, and one under that of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(50, SIZE))
        self.input_ids, self.head = nn.Parameter(torch.randn(SIZE, SIZE)), nn.Linear(SIZE, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(nn.functional.embedding(input_ids, self.embedding) @ self.input_ids).mean(1)


class Heads(nn.Module):
    """A matrix per head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.weight = nn.Embedding(50, SIZE), nn.Parameter(torch.randn(4, SIZE, 8) * 0.2)
        self.head = nn.Linear(32, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)[:, None] @ self.weight  # (B, 4, T, 8)
        return self.head(x.mean(2).flatten(1))


class Recommender(nn.Module):
    """The table of what was seen scores what comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(50, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, input_ids: Tensor) -> Tensor:
        return nn.functional.linear(self.layer(self.table(input_ids).mean(1)), self.table.weight)


class Positions(nn.Module):
    """A table of positions that no checkpoint has."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, SIZE), nn.Linear(SIZE, 5)
        self.register_buffer("places", torch.randn(64, SIZE), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.table(input_ids) + self.places[: input_ids.shape[1]]).mean(1)  # type: ignore[index]


class Tagger(nn.Module):
    """A token's logits are no number where it is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, SIZE), nn.Linear(SIZE, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x, real = self.table(input_ids), attention_mask.bool()
        scores = (x @ x.mT).masked_fill(~(real[:, None] & real[:, :, None]), float("-inf"))
        return self.head(scores.softmax(-1) @ x)


class Branching(nn.Module):
    """Long texts, or very short ones, take another way."""

    def __init__(self, short: bool) -> None:
        super().__init__()
        self.table, self.one, self.other, self.short = nn.Embedding(50, 16), nn.Linear(16, 4), nn.Linear(16, 4), short

    def forward(self, input_ids: Tensor) -> Tensor:
        x, length = self.table(input_ids).mean(1), input_ids.shape[1]
        return self.other(x) if (length < 3 if self.short else length > 30) else self.one(x)


class Limited(nn.Module):
    """Takes thirty tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        if input_ids.shape[1] > 30:
            raise ValueError("too long")
        return self.table(input_ids).mean(1)


class Pair(nn.Module):
    """Two texts of lengths of their own, one of them weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(32, 4)

    def forward(self, query_ids: Tensor, weights: Tensor, document_ids: Tensor) -> Tensor:
        query = (self.table(query_ids) * weights[..., None]).sum(1)
        return self.head(torch.cat([query, self.table(document_ids).mean(1)], -1))


class Guarded(nn.Module):
    """Asks a value, which no tracing knows."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids.float() if input_ids.sum() > 3 else -input_ids.float()


TEXT = {"input_ids": torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(0))}
TAGGED = TEXT | {"attention_mask": torch.ones(4, 7, dtype=torch.long)}
IMAGES = {"pixel_values": torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize(
    ("kind", "example", "precision"),
    [
        (Normalizing, IMAGES, "fp32"),
        (Named, TEXT, "fp32"),
        (Heads, TEXT, "int8"),
        (Heads, TEXT, "int8-static"),
        (Recommender, TEXT, "int8"),
        (Recommender, TEXT, "int8-static"),
        (Recommender, TEXT, "int4"),
        (Tagger, TAGGED, "fp32"),
    ],
)
def test_an_unusual_graph_computes_the_same(
    kind: type[nn.Module], example: dict[str, Tensor], precision: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    samples = [{name: tensor.numpy() for name, tensor in example.items()}]
    path = OnnxExporter(precision).export(model, example, tmp_path / precision, samples).path
    found = OnnxExporter().load(path)(samples[0])["logits"]
    with torch.no_grad():
        expected = model(**example).numpy()
    limit = {"fp32": 1e-5, "int4": 0.4}.get(precision, 0.15)
    assert np.sqrt(np.square(found - expected).mean()) < limit * expected.std()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_table_that_no_checkpoint_has_is_computed_in_the_programs_type(tmp_path: Path, precision: Any) -> None:
    torch.manual_seed(0)
    model = Positions().eval()
    exported = TorchExporter(precision).export(model, TEXT, tmp_path / "program")
    found = TorchExporter(precision).load(exported.path)({"input_ids": TEXT["input_ids"].numpy()})["logits"]
    assert np.abs(found - model(**TEXT).detach().numpy()).max() < 0.02
    assert model.places.dtype == torch.float32


@pytest.mark.parametrize("kind", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_a_generator_with_an_encoder_is_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    import transformers

    small = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    small |= {f"{part}_{what}": 4 for part in ("encoder", "decoder") for what in ("attention_heads", "ffn_dim")}
    small |= {"encoder_layers": 1, "decoder_layers": 1, "decoder_start_token_id": 0}
    model = getattr(transformers, kind)(getattr(transformers, kind).config_class(**small))
    with pytest.raises(ExportError, match="only decoders can be exported"):
        OnnxExporter().export(model, TAGGED | {"decoder_input_ids": TEXT["input_ids"]}, tmp_path / "onnx")


@pytest.mark.parametrize("exporter", [OnnxExporter, TorchExporter])
@pytest.mark.parametrize(("short", "shape"), [(False, r"\[1, 31\]"), (True, r"\[1, 2\]")])
def test_a_branch_on_the_length_is_refused_though_no_text_of_the_example_takes_it(
    tmp_path: Path, exporter: Any, short: bool, shape: str
) -> None:
    torch.manual_seed(0)
    with pytest.raises(ExportError, match=f"(differs from the model by .*|does not run at the shape ){shape}"):
        exporter().export(Branching(short), TEXT, tmp_path / "export")


@pytest.mark.parametrize("exporter", [OnnxExporter, TorchExporter])
def test_an_export_says_how_many_tokens_its_model_takes(tmp_path: Path, exporter: Any) -> None:
    assert exporter().export(Limited(), TEXT, tmp_path / "export").facts["max_length"] == 30
    assert "max_length" not in exporter().export(Recommender(), TEXT, tmp_path / "endless").facts


def test_a_smaller_precision_says_so_too(tmp_path: Path) -> None:
    model = Limited()
    OnnxExporter().export(model, TEXT, tmp_path / "onnx-fp32")
    facts = OnnxExporter("fp16").export(model, TEXT, tmp_path / "onnx-fp16").facts
    assert (facts["reused_fp32_graph"], facts["max_length"]) == (True, 30)


@pytest.mark.parametrize("exporter", [OnnxExporter, TorchExporter])
def test_texts_of_two_lengths_are_both_free(tmp_path: Path, exporter: Any) -> None:
    torch.manual_seed(0)

    def texts(rows: int, query: int, document: int) -> dict[str, Tensor]:
        ids = {"query_ids": torch.randint(50, (rows, query)), "weights": torch.rand(rows, query)}
        return ids | {"document_ids": torch.randint(50, (rows, document))}

    model = Pair().eval()
    export = exporter().export(model, texts(2, 7, 11), tmp_path / "export")
    sizes = ["sequence_length", "sequence_length", "sequence_length_2"]
    assert [value["axes"] for value in export.facts["inputs"]] == [["batch_size", size] for size in sizes]
    inputs = texts(3, 19, 4)
    found = exporter().load(export.path)({name: tensor.numpy() for name, tensor in inputs.items()})["logits"]
    np.testing.assert_allclose(found, model(**inputs).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("length", [19, 20, 45])
def test_a_decoder_with_a_window_is_a_program_for_texts_longer_than_it(tmp_path: Path, length: int) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 20}
    model = MistralForCausalLM(MistralConfig(**sizes, **heads, initializer_range=0.4)).eval()
    export = TorchExporter().export(model, TAGGED, tmp_path / "export")
    ids = torch.randint(50, (2, length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = TorchExporter().load(export.path)({name: tensor.numpy() for name, tensor in inputs.items()})["logits"]
    np.testing.assert_allclose(found, model(**inputs).logits.detach().numpy(), atol=1e-4)


def test_an_opset_that_torch_does_not_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"in opset 18 of ONNX, not in 14: ask for `opset: 18`"):
        OnnxExporter(opset=14).export(Recommender(), TEXT, tmp_path / "onnx")


def test_a_refusal_is_told_once_and_in_a_whole_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match="cannot export Guarded"):
        OnnxExporter().export(Guarded(), TEXT, tmp_path / "onnx")
    assert capfd.readouterr().err == ""
    error = ValueError("\nThe following were found:\n  Eq(s0, 1) is inconsistent!\nand more")
    assert onnx_graph._reason(error) == "ValueError: The following were found: Eq(s0, 1) is inconsistent!"


# ---- what an export is held to ----


def held(theirs: list[list[float]], ours: list[list[float]]) -> list[dict[str, Any]]:
    reference = verify.Reference({"input_ids": np.ones((2, 3), np.int64)}, np.array(theirs, np.float32))
    return verify.held([reference], lambda _: {"logits": np.array(ours, np.float32)}, limit=1e-3)


def test_masked_logits_neither_widen_the_limit_nor_count() -> None:
    masked = [[1.0, 2.0, -1e9], [3.0, 1.0, -1e9]]
    (figure,) = held(masked, [[1.0, 2.0005, -65504.0], [3.0, 1.0, -1e9]])
    assert figure["largest_logit"] == 3
    assert figure["max_difference"] == pytest.approx(5e-4, rel=1e-2)
    with pytest.raises(ExportError, match="differs from the model by"):
        held(masked, [[1.0, 2.01, -1e9], [3.0, 1.0, -1e9]])
    with pytest.raises(ExportError, match="differs from the model by"):
        held(masked, [[1.0, 2.0, 0.5], [3.0, 1.0, -1e9]])


def test_an_additive_mask_hides_too_and_a_row_of_low_logits_is_no_mask() -> None:
    theirs = [[1.0, 2.0, -9990.0], [3.0, 1.0, -9998.0]]
    (figure,) = held(theirs, [[1.0, 2.0005, -9989.0], [3.0, 1.0, -9998.0]])
    assert figure["largest_logit"] == 3
    with pytest.raises(ExportError, match="differs from the model by"):
        held(theirs, [[1.5, 2.5, -9989.5], [3.5, 1.5, -9997.5]])
    with pytest.raises(ExportError, match="differs from the model by"):
        held([[-2e4, -3e4], [1.0, 2.0]], [[-3e4, -2e4], [1.0, 2.0]])
