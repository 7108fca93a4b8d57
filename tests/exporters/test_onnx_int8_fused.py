"""int8-fused: every product is int8, the rest is ONNX Runtime's own operators, and the numbers are those of int8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification

from compressor.errors import ExportError
from compressor.factorize import factorize_, fold_, plan
from compressor.methods.spectral import Spectral
from exporters.base import Session
from exporters.onnx import OnnxExporter
from exporters.onnx import fused as onnx_fused
from exporters.onnx import int8_fused as onnx_int8_fused
from exporters.onnx import runtime as onnx_runtime


def vit() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, num_labels=3, **sizes))


def dinov2() -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "layerscale_value": 0.3}
    return Dinov2ForImageClassification(Dinov2Config(image_size=32, patch_size=16, num_labels=3, **sizes))


def tokens() -> dict[str, Tensor]:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return {
        "input_ids": torch.randint(1, 50, (2, 5), generator=torch.Generator().manual_seed(0)),
        "attention_mask": mask,
    }


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Callable[..., Any]) -> Callable[..., Any]:
    """(family, factorized) -> the model, its inputs and the folder of its int8-fused export."""
    build = {"bert": (tiny_bert, tokens), "vit": (vit, images), "dinov2": (dinov2, images)}
    done: dict[tuple[str, bool], tuple[Any, dict[str, Tensor], Path]] = {}

    def make(family: str, factorized: bool) -> tuple[Any, dict[str, Tensor], Path]:
        if (family, factorized) not in done:
            torch.manual_seed(0)
            model, inputs, method = build[family][0]().eval(), build[family][1](), Spectral()
            if factorized:
                ranks = plan(model, method, {}, keep=0.6, multiple_of=1)
                model = fold_(factorize_(model, method, {}, ranks)).eval()
            path = tmp_path_factory.mktemp(family) / "onnx-int8-fused"
            OnnxExporter("int8-fused").export(model, inputs, path)
            done[family, factorized] = model, inputs, path
        return done[family, factorized]

    return make


@pytest.mark.parametrize(("family", "sums"), [("bert", 5), ("vit", 4), ("dinov2", 4)])  # BERT norms its embeddings
@pytest.mark.parametrize("factorized", [False, True])
def test_every_product_is_int8_and_attention_and_norms_are_apart(
    made: Callable[..., Any], family: str, sums: int, factorized: bool
) -> None:
    graph = onnx.load(made(family, factorized)[2] / "model.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MultiHeadAttention") == 2
    assert (kinds.count("LayerNormalization"), kinds.count("Sum"), kinds.count("Gelu")) == (5, sums, 2)
    assert not {"MatMul", "Gemm", "Attention", "SkipLayerNormalization", "BiasGelu", "Where"} & set(kinds)
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) == 2]
    assert {tensor.data_type for tensor in weights} & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}


@pytest.mark.parametrize("family", ["bert", "vit", "dinov2"])
@pytest.mark.parametrize("factorized", [False, True])
def test_the_numbers_are_nearly_those_of_torch_for_padded_rows_too(
    made: Callable[..., Any], family: str, factorized: bool
) -> None:
    model, inputs, path = made(family, factorized)
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    found = onnx_runtime.load(path, Session(threads=1))({name: one.numpy() for name, one in inputs.items()})["logits"]
    assert np.abs(found - expected).max() < 0.2 * np.ptp(expected)


@pytest.mark.parametrize("family", ["bert", "vit", "dinov2"])
def test_a_rewritten_graph_computes_what_the_fused_one_does(
    made: Callable[..., Any], family: str, tmp_path: Path
) -> None:
    model, inputs, _ = made(family, True)
    OnnxExporter().export(model, inputs, tmp_path / "portable")
    for name in ("fused", "rewritten"):
        (tmp_path / name).mkdir()
    onnx_fused.fuse(tmp_path / "portable" / "model.onnx", tmp_path / "fused" / "model.onnx")
    graph = onnx_ir.load(tmp_path / "fused" / "model.onnx")
    onnx_int8_fused.rewrite(graph)
    onnx_ir.save(graph, tmp_path / "rewritten" / "model.onnx")
    fused, rewritten = (
        onnx_runtime.load(tmp_path / name, Session(threads=1))({key: one.numpy() for key, one in inputs.items()})
        for name in ("fused", "rewritten")
    )
    np.testing.assert_allclose(rewritten["logits"], fused["logits"], atol=1e-5)
    assert "Mul" not in {node.op_type for node in graph.graph}


def test_a_model_without_anything_to_fuse_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, features: Tensor) -> Tensor:
            return torch.tanh(self.layer(features))

    with pytest.raises(ExportError, match="nothing to fuse"):
        OnnxExporter("int8-fused").export(Plain(), {"features": torch.randn(2, 8)}, tmp_path / "plain")
    assert not list(tmp_path.iterdir())
