"""fp32-fused: the same numbers as the portable graph in fused operators, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from compressor.errors import ExportError
from compressor.factorize import factorize_, fold_, plan
from compressor.methods.spectral import Spectral
from exporters.base import Session
from exporters.generate import continuation
from exporters.onnx import OnnxExporter
from exporters.onnx import fused as onnx_fused
from exporters.onnx import runtime as onnx_runtime
from exporters.record import EXPORT_FILE


def folded(model: Any) -> Any:
    """The model with its layers as two factors each."""
    method = Spectral()
    return fold_(factorize_(model, method, {}, plan(model, method, {}, keep=0.6, multiple_of=1))).eval()


def llama() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, initializer_range=0.4, **sizes))


def vit() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, num_labels=3, **sizes))


def tokens() -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 5, dtype=torch.int64)
    return {"input_ids": torch.randint(1, 50, (2, 5), generator=source), "attention_mask": mask}


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Callable[..., Any]) -> Callable[[str], tuple[Any, Path]]:
    """A family -> its factorized model, and the folder with `onnx-fp32` and `onnx-fp32-fused`."""
    build = {"bert": (tiny_bert, tokens), "vit": (vit, images), "llama": (llama, tokens)}
    done: dict[str, tuple[Any, Path]] = {}

    def make(family: str) -> tuple[Any, Path]:
        if family not in done:
            torch.manual_seed(0)
            model, folder = folded(build[family][0]()), tmp_path_factory.mktemp(family)
            OnnxExporter().export(model, build[family][1](), folder / "onnx-fp32")
            OnnxExporter("fp32-fused").export(model, build[family][1](), folder / "onnx-fp32-fused")
            done[family] = model, folder
        return done[family]

    return make


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("bert", {"MultiHeadAttention": 2, "SkipLayerNormalization": 4, "BiasGelu": 2}),
        ("vit", {"MultiHeadAttention": 2, "SkipLayerNormalization": 4, "BiasGelu": 2}),
        ("llama", {"RotaryEmbedding": 4, "SkipSimplifiedLayerNormalization": 4}),
    ],
)
def test_a_factorized_model_is_fused_and_held_to_the_tolerance_of_fp32(
    made: Callable[[str], tuple[Any, Path]], family: str, expected: dict[str, int]
) -> None:
    folder = made(family)[1] / "onnx-fp32-fused"
    facts = json.loads((folder / EXPORT_FILE).read_text())
    assert {name: facts["nodes"].get(name, 0) for name in expected} == expected
    assert (facts["precision"], facts["reused_fp32_graph"]) == ("fp32-fused", True)
    assert max(one["max_difference"] for one in facts["parity"]) < 1e-4


@pytest.mark.parametrize("family", ["bert", "vit", "llama"])
def test_no_factors_are_multiplied_out(made: Callable[[str], tuple[Any, Path]], family: str) -> None:
    sizes = [
        json.loads((made(family)[1] / name / EXPORT_FILE).read_text()) for name in ("onnx-fp32", "onnx-fp32-fused")
    ]
    portable, fused = (facts["matmul_weight_bytes"] for facts in sizes)
    assert fused <= portable


def test_a_padded_batch_gets_the_numbers_of_torch(made: Callable[[str], tuple[Any, Path]]) -> None:
    model, folder = made("llama")
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])  # on the left, as for generation
    inputs = {"input_ids": torch.randint(1, 50, (2, 6)), "attention_mask": mask}
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(**inputs, position_ids=positions).logits.numpy()
    runner = onnx_runtime.load(folder / "onnx-fp32-fused", Session(threads=1))
    found = runner({name: tensor.numpy() for name, tensor in inputs.items()})["logits"]
    real = mask.bool().numpy()
    assert np.abs(found - expected)[real].max() < 1e-4


def test_a_fused_decoder_continues_as_the_portable_one_does(made: Callable[[str], tuple[Any, Path]]) -> None:
    folder = made("llama")[1]
    said = [
        list(continuation(onnx_runtime.load(folder / name, Session(threads=1)), [3, 1, 4, 1, 5], new_tokens=12))
        for name in ("onnx-fp32", "onnx-fp32-fused")
    ]
    assert said[0] == said[1]
    assert len(set(said[0])) > 1


class Plain(nn.Module):
    """Nothing that could be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(self.layer(features))


def test_a_graph_without_anything_to_fuse_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"find nothing to fuse in this graph \(0 fused operators\).*Export fp32"):
        OnnxExporter("fp32-fused").export(Plain(), {"features": torch.randn(2, 8)}, tmp_path / "plain")
    assert not list(tmp_path.iterdir())


def test_fusions_that_change_the_numbers_are_refused(
    made: Callable[[str], tuple[Any, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (model, folder), real = made("bert"), onnx_fused.fuse

    def wrong(source: Path, target: Path) -> None:
        real(source, target)
        graph = onnx_ir.load(target)
        for value in graph.graph.initializers.values():
            if value.dtype == onnx_ir.DataType.FLOAT and value.const_value is not None and value.const_value.size > 9:
                value.const_value = onnx_ir.tensor(value.const_value.numpy() * np.float32(1.01))
        onnx_ir.save(graph, target)

    monkeypatch.setattr(onnx_fused, "fuse", wrong)
    with pytest.raises(ExportError, match=r"differs from the model by .* more than the 1e-03 allowed"):
        OnnxExporter("fp32-fused").export(model, tokens(), folder / "wrong")


def test_fusions_that_fail_are_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ValueError("an odd pattern")

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    monkeypatch.setattr(onnx_fused, "_fusions", lambda: fails)
    with pytest.raises(ExportError, match=r"fail on this graph \(ValueError: an odd pattern\). Export fp32"):
        onnx_fused.fuse(tmp_path / "model.onnx", tmp_path / "fused.onnx")


def test_a_transformers_without_fusions_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_fused, "FUSIONS", "transformers.exporters.no_such_module")
    with pytest.raises(ExportError, match=r"has no fusions for ONNX Runtime.*pip install 'transformers>=5.23"):
        onnx_fused._fusions()


def test_dense_gpt2_whose_products_take_matrices_is_fused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, initializer_range=0.2, **sizes)).eval()
    export = OnnxExporter("fp32-fused").export(model, tokens(), tmp_path / "fused")
    assert export.facts["nodes"]["SkipLayerNormalization"] > 0
    with torch.no_grad():
        expected = model(**tokens()).logits.numpy()
    np.testing.assert_allclose(OnnxExporter().load(export.path)(tokens_as_arrays())["logits"], expected, atol=1e-3)


def tokens_as_arrays() -> dict[str, np.ndarray]:
    return {name: one.numpy() for name, one in tokens().items()}
