"""What an export keeps of its model once the graph is written: nothing that takes the memory of its weights."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from compressor.errors import ExportError
from exporters import verify
from exporters.base import Runner
from exporters.onnx import OnnxExporter
from exporters.onnx import blocks as onnx_blocks
from exporters.onnx import file as onnx_file
from exporters.onnx import graph as onnx_graph
from exporters.onnx.runtime import GRAPH

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TOKENS = torch.arange(1, 7).reshape(2, 3)
EXAMPLE = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}


class Weights:
    """Builds decoders, and says which weights of the last one are still in memory."""

    def __init__(self) -> None:
        self.seen: dict[str, weakref.ref[Tensor]] = {}

    def build(self) -> LlamaForCausalLM:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
        self.seen = {name: weakref.ref(tensor) for name, tensor in model.named_parameters()}
        return model

    def alive(self) -> list[str]:
        return [name for name, one in self.seen.items() if one() is not None]


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export that the others are made of."""
    path: Path = tmp_path_factory.mktemp("staged") / "onnx-fp32"
    OnnxExporter().export(Weights().build(), EXAMPLE, path)
    return path


def test_a_model_that_the_caller_does_not_keep_is_gone_before_its_exports_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, found, held = Weights(), [], verify.held

    def watched(expected: tuple[verify.Reference, ...], runner: Runner, limit: float) -> list[dict[str, object]]:
        found.append(weights.alive())
        return held(expected, runner, limit)

    monkeypatch.setattr(verify, "held", watched)
    OnnxExporter().export(weights.build(), EXAMPLE, tmp_path / "onnx-fp32")
    OnnxExporter(precision="int4").export(weights.build(), EXAMPLE, tmp_path / "other" / "onnx-int4")  # traced too
    assert found == [[], [], []]


def test_a_model_that_the_caller_keeps_is_as_it_was(tmp_path: Path) -> None:
    model = Weights().build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    OnnxExporter().export(model, EXAMPLE, tmp_path / "onnx-fp32")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_graph_that_a_smaller_one_is_made_of_does_not_stay(tmp_path: Path) -> None:
    made = OnnxExporter(precision="int4").export(Weights().build(), EXAMPLE, tmp_path / "onnx-int4")
    assert not made.facts["reused_fp32_graph"]
    assert not [path for path in made.path.iterdir() if path.is_dir()]


@pytest.mark.parametrize("embeddings", [True, False])
def test_int4_of_weights_that_lie_beside_the_graph_is_the_same_file(
    fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embeddings: bool
) -> None:
    inside, beside = tmp_path / "inside.onnx", tmp_path / "beside.onnx"
    onnx_blocks.quantize(fp32 / GRAPH, inside, embeddings=embeddings, block=16)
    save, large = onnx_file.save, onnx_file.LARGE

    def scattered(model: object, path: Path) -> None:
        monkeypatch.setattr(onnx_file, "LARGE", 0 if path.name == "prepared.onnx" else large)
        save(model, path)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_file, "save", scattered)
    onnx_blocks.quantize(fp32 / GRAPH, beside, embeddings=embeddings, block=16)
    assert beside.read_bytes() == inside.read_bytes()


def test_a_turned_matrix_is_known_by_its_numbers_however_it_lies_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "PART", 24)  # bytes: a row or two
    matrix = torch.arange(15.0).reshape(3, 5)
    assert onnx_graph._key(matrix.mT) == onnx_graph._key(matrix.mT.contiguous())
    assert onnx_graph._key(matrix.mT) != onnx_graph._key(matrix)
    assert onnx_graph._key(matrix.reshape(5, 3)) != onnx_graph._key(matrix.mT)


def test_a_precision_whose_graph_does_not_load_is_an_export_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_source: Path, target: Path, *_: object, **__: object) -> None:
        (target / GRAPH if target.is_dir() else target).write_bytes(b"no graph")

    monkeypatch.setattr("exporters.onnx.int8.quantize", broken)
    with pytest.raises(ExportError, match=r"What this precision makes of the graph does not load: .*refuses"):
        OnnxExporter("int8").export(Weights().build(), EXAMPLE, tmp_path / "onnx-int8")
    assert list(tmp_path.iterdir()) == []


class Picture(nn.Module):
    """The mean of an image's patches, whatever its size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 4, 2, stride=2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.patches(pixel_values).mean((2, 3))


def test_a_sibling_of_another_size_is_not_taken(tmp_path: Path) -> None:
    model = Picture()
    for size, reused in ((8, True), (12, False)):
        folder, images = tmp_path / str(size), {"pixel_values": torch.rand(2, 3, size, size)}
        shutil.copytree(tmp_path / "8" / "onnx-fp32", folder / "onnx-fp32") if size > 8 else OnnxExporter().export(
            model, images, folder / "onnx-fp32"
        )
        facts = OnnxExporter("fp16").export(model, images, folder / "onnx-fp16").facts
        assert facts["reused_fp32_graph"] == reused
        assert facts["inputs"][0]["axes"] == ["batch_size", 3, size, size]
