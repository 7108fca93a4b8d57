"""Channels made even: what is divided and what takes it up, what it is expected to bring, and what it brings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch
from torch import Tensor, nn

from exporters.base import Arrays
from exporters.onnx import OnnxExporter
from exporters.onnx import channels as onnx_channels
from exporters.onnx import products as onnx_products
from exporters.onnx import runtime as onnx_runtime
from exporters.onnx import smoothing as onnx_smoothing
from exporters.onnx.products import EXAMPLES
from exporters.onnx.smoothing import Seen

SIZE, WIDE = 64, 96


class Gated(nn.Module):
    """A block as language models have it, with a factorized layer, and what cannot be divided beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.scale = nn.Embedding(50, SIZE), nn.Parameter(torch.ones(SIZE))
        self.gate, self.up, self.down = nn.Linear(SIZE, WIDE), nn.Linear(SIZE, WIDE), nn.Linear(WIDE, SIZE)
        self.norm, self.first = nn.LayerNorm(SIZE), nn.Linear(SIZE, 16, bias=False)
        self.second, self.last = nn.Linear(16, WIDE), nn.Linear(WIDE, SIZE)
        self.after, self.head = nn.LayerNorm(SIZE), nn.Linear(SIZE, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        h = self.scale * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))
        x = x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))
        x = x + self.last(self.second(self.first(self.norm(x))).relu())
        x = self.after(x)
        return self.head(x) + 0 * x.sum(-1, keepdim=True)  # so that others read what the head reads


@pytest.fixture(scope="module")
def gated() -> tuple[Gated, list[Arrays]]:
    """The model, a few of whose channels are far larger than the others, and batches of its inputs."""
    torch.manual_seed(0)
    model = Gated().eval()
    with torch.no_grad():
        model.up.weight[::40] *= 30
        model.scale[::32] *= 20
        model.norm.weight[::32] *= 20
        model.first.weight *= torch.logspace(1, -1, 16)[:, None]
    batches: list[Arrays] = [{"input_ids": np.random.default_rng(seed).integers(0, 50, (4, 7))} for seed in range(40)]
    return model, batches


def example() -> dict[str, Tensor]:
    return {"input_ids": torch.arange(14).reshape(2, 7)}


def traced(model: nn.Module, folder: Path, opset: int = 20) -> Path:
    """Its fp32 graph."""
    OnnxExporter(opset=opset).export(model, example(), folder / "onnx-fp32")
    return folder / "onnx-fp32" / onnx_runtime.GRAPH


def smoothed(source: Path, folder: Path, batches: list[Arrays], but: tuple[str, ...] = ()) -> Path:
    folder.mkdir()
    onnx_smoothing.smooth(source, folder / onnx_runtime.GRAPH, batches, 64, but=but)
    return folder


def weights_of(graph: Path) -> dict[str, np.ndarray]:
    return {
        name: value.const_value.numpy()  # type: ignore[union-attr]
        for name, value in onnx_ir.load(graph).graph.initializers.items()
        if len(value.shape or ()) == 2
    }


@pytest.mark.parametrize("opset", [18, 20])
def test_a_smoothed_graph_computes_the_same_with_other_weights(
    gated: tuple[Gated, list[Arrays]], tmp_path: Path, opset: int
) -> None:
    model, batches = gated
    source = traced(model, tmp_path, opset)
    folder = smoothed(source, tmp_path / "even", batches)
    before, after = OnnxExporter().load(source.parent), OnnxExporter().load(folder)
    for batch in batches[:5]:
        np.testing.assert_allclose(after(batch)["logits"], before(batch)["logits"], rtol=1e-4, atol=1e-4)
    old, new = weights_of(source), weights_of(folder / onnx_runtime.GRAPH)
    moved = {shape_of(name, model) for name in old if np.abs(new[name] - old[name]).max() > 0.01}
    assert moved == {"gate", "up", "down", "first", "second", "last"}
    assert {name: one.shape for name, one in new.items()} == {name: one.shape for name, one in old.items()}
    assert all(value.uses() for value in onnx_ir.load(folder / onnx_runtime.GRAPH).graph.initializers.values())


def shape_of(name: str, model: nn.Module) -> str:
    """The layer of a weight."""
    return next(layer for layer, _ in model.named_children() if name.startswith(layer))


def test_only_what_nothing_else_reads_is_divided(gated: tuple[Gated, list[Arrays]], tmp_path: Path) -> None:
    model, _ = gated
    graph = onnx_ir.load(traced(model, tmp_path)).graph
    groups = onnx_smoothing.groups_of(graph)
    read = [{shape_of(str(matrix.name), model) for matrix, _ in group.matrices} for group in groups]
    assert read == [{"gate", "up"}, {"down"}, {"first"}, {"second"}, {"last"}]  # the head's input has other readers
    kept = str(groups[1].matrices[0][0].name)
    assert len(onnx_smoothing.groups_of(graph, {kept})) == 4


class Twice(nn.Module):
    """One layer is asked twice of the same norm, and its answers go on together."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(50, SIZE), nn.LayerNorm(SIZE)
        self.layer, self.head = nn.Linear(SIZE, WIDE), nn.Linear(WIDE, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.norm(self.table(input_ids))
        return self.head(self.layer(x).sigmoid() * self.layer(x).tanh()).mean(1)


def test_a_matrix_that_two_products_of_one_value_share_is_multiplied_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Twice().eval()
    with torch.no_grad():
        model.norm.weight[::32] *= 20
    batches = [{"input_ids": np.random.default_rng(seed).integers(0, 50, (4, 7))} for seed in range(4)]
    source = traced(model, tmp_path)
    folder = smoothed(source, tmp_path / "even", batches)
    old, new = weights_of(source), weights_of(folder / onnx_runtime.GRAPH)
    assert [name for name in old if not np.allclose(new[name], old[name])] == ["layer.weight.T"]
    before, after = OnnxExporter().load(source.parent), OnnxExporter().load(folder)
    np.testing.assert_allclose(after(batches[0])["logits"], before(batches[0])["logits"], rtol=1e-4, atol=1e-4)


class Shared(nn.Module):
    """What a norm gives is read by a sum too; a layer reads two values; a query is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(50, SIZE), nn.LayerNorm(SIZE)
        self.twice, self.other, self.query = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        self.asked = nn.Parameter(torch.randn(1, 4, SIZE))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.norm(self.table(input_ids))
        x = x + self.other(x)
        x = self.twice(self.twice(x))
        return (self.query(self.asked) @ x.mT).softmax(-1) @ x


def test_a_graph_without_anything_to_divide_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batches = Shared().eval(), [{"input_ids": np.arange(14).reshape(2, 7)}]
    source = traced(model, tmp_path)
    assert onnx_smoothing.groups_of(onnx_ir.load(source).graph) == []
    folder = smoothed(source, tmp_path / "even", batches)
    old, new = weights_of(source), weights_of(folder / onnx_runtime.GRAPH)
    assert all(np.array_equal(new[name], old[name]) for name in old)


@pytest.mark.parametrize("precision", ["int8", "int8-static", "int4"])
def test_a_product_of_a_constant_is_no_fault(tmp_path: Path, precision: Any) -> None:
    torch.manual_seed(0)
    model, batches = Shared().eval(), [{"input_ids": np.arange(14).reshape(2, 7)}]
    OnnxExporter(precision).export(model, example(), tmp_path / precision, batches)
    found = OnnxExporter().load(tmp_path / precision)(batches[0])["logits"]
    expected = model(torch.from_numpy(batches[0]["input_ids"])).detach().numpy()
    assert np.sqrt(np.square(found - expected).mean()) < 0.2 * expected.std()


# ---- the scales ----


def seen(x: np.ndarray) -> Seen:
    return Seen(np.minimum(x.min(0), 0), np.maximum(x.max(0), 0), np.square(x).mean(0))


def uneven(seed: int = 0, size: int = 64) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows (2000, k), two channels of which are large, and matrices (k, n)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2000, size)) * np.where(np.arange(size) % 30 == 7, 40, 1)
    return x, [rng.normal(size=(size, 48)), rng.normal(size=(size, 24)) * 0.3]


def quantized(x: np.ndarray, matrix: np.ndarray, levels: int) -> np.ndarray:
    """Their product, both rounded: x to 256 steps, each column of the matrix to its own."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = (high - low) / 255
    steps = np.abs(matrix).max(0) / levels
    return (np.rint(x / step) * step) @ (np.rint(matrix / steps) * steps)


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("levels", [64, 127])
def test_the_expected_loss_is_what_rounding_loses(even: bool, levels: int) -> None:
    x, matrices = uneven()
    scales = onnx_smoothing.scales_of(seen(x), matrices, levels) if even else np.ones(64)
    assert scales is not None
    lost = sum(
        np.square(quantized(x / scales, matrix * scales[:, None], levels) - x @ matrix).sum(-1).mean()
        for matrix in matrices
    )
    assert onnx_smoothing.loss(seen(x), matrices, levels, scales) == pytest.approx(lost, rel=0.15)


def test_scales_lose_far_less_than_none_and_as_little_as_any_exponent() -> None:
    x, matrices = uneven()
    scales = onnx_smoothing.scales_of(seen(x), matrices, 64)
    assert scales is not None
    loss = onnx_smoothing.loss(seen(x), matrices, 64, scales)
    assert loss < 0.2 * onnx_smoothing.loss(seen(x), matrices, 64, np.ones(64))
    inputs, weights = np.abs(x).max(0), np.max([np.abs(matrix).max(1) for matrix in matrices], 0)
    for exponent in onnx_smoothing.EXPONENTS:
        assert loss <= onnx_smoothing.loss(seen(x), matrices, 64, inputs**exponent / weights ** (1 - exponent)) * 1.001


def test_channels_that_are_even_are_left_alone() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (2000, 64))
    matrix = np.where(np.random.default_rng(1).random((64, 48)) < 0.5, -1.0, 1.0)
    assert onnx_smoothing.scales_of(seen(x), [matrix], 64) is None


def test_what_is_not_finite_is_left_alone() -> None:
    x, matrices = uneven()
    x[3, 5] = np.nan
    assert onnx_smoothing.scales_of(seen(x), matrices, 64) is None


def test_a_channel_without_use_on_this_data_is_not_made_large() -> None:
    x, matrices = uneven()
    x[:, :10] = 0
    matrices[0][20], matrices[1][20] = 0, 0
    scales = onnx_smoothing.scales_of(seen(x), matrices, 64)
    assert scales is not None
    assert np.isfinite(scales).all()
    used = np.delete(scales, [*range(10), 20])
    assert scales[:10].min() > 0.05 * np.median(used)
    assert onnx_smoothing.scales_of(seen(np.zeros((5, 64))), matrices, 64) is None


# ---- what it brings ----


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Leaves smoothing out."""

    def leave_out() -> None:
        monkeypatch.setattr(onnx_smoothing, "scales_of", lambda *_: None)

    return leave_out


@pytest.mark.parametrize("precision", ["int8", "int8-static"])
def test_an_export_of_uneven_channels_errs_far_less(
    gated: tuple[Gated, list[Arrays]], tmp_path: Path, plain: Callable[[], None], precision: Any
) -> None:
    model, batches = gated
    traced(model, tmp_path)
    error = {}
    for name in ("even", "plain"):
        if name == "plain":
            plain()
        path = tmp_path / f"onnx-{precision}"
        OnnxExporter(precision).export(model, example(), path, batches)
        runner = OnnxExporter().load(path)
        path.rename(tmp_path / name)
        pairs = [(runner(one)["logits"], model(torch.from_numpy(one["input_ids"])).detach().numpy()) for one in batches]
        error[name] = np.sqrt(np.mean([np.square(found - right).mean() for found, right in pairs]))
    assert error["even"] < 0.5 * error["plain"]


def test_only_so_many_examples_are_run(
    gated: tuple[Gated, list[Arrays]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = gated
    rows: list[Seen] = []
    monkeypatch.setattr(onnx_smoothing, "scales_of", lambda found, *_: rows.append(found))
    source = traced(model, tmp_path)
    onnx_channels.by_channels(source, tmp_path, batches, reduce_range=True)
    x = torch.cat([torch.from_numpy(one["input_ids"]) for one in onnx_products._drawn(batches)])
    assert EXAMPLES <= len(x) < 4 * len(batches)
    with torch.no_grad():
        h = model.table(x)
        h = model.scale * (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6))
    first = rows[-1]  # the last group comes first
    np.testing.assert_allclose(first.energy, h.square().mean((0, 1)).numpy(), rtol=1e-4)
    np.testing.assert_allclose(first.most, h.amax((0, 1)).clamp(min=0).numpy(), rtol=1e-4)
    np.testing.assert_allclose(first.least, h.amin((0, 1)).clamp(max=0).numpy(), rtol=1e-4)
