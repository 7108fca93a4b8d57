"""Rounding that makes up for its errors: against all roundings of small weights, and what of a graph is rounded so."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from exporters.base import Arrays
from exporters.onnx import OnnxExporter
from exporters.onnx import blocks as onnx_blocks
from exporters.onnx import file as onnx_file
from exporters.onnx import products as onnx_products
from exporters.onnx import rounding as onnx_rounding
from exporters.onnx.steps import Blocks, Channels, Steps

BLOCK = 32


class Layers(nn.Module):
    """Two products along one input, one of them of a shared weight, a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 64)
        self.first, self.second, self.head = nn.Linear(64, 96), nn.Linear(96, 64, bias=False), nn.Linear(64, 5)
        self.norm = nn.LayerNorm(64)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        x = self.norm(x + self.second(self.first(x).relu()))
        return self.head(self.second(self.first(x).relu()))


@pytest.fixture(scope="module")
def layers() -> tuple[Layers, list[Arrays]]:
    """The model and batches of its inputs."""
    torch.manual_seed(0)
    model = Layers().eval()
    with torch.no_grad():
        model.first.weight[:, ::7] *= 0.01
        model.table.weight[:, ::7] *= 30  # inputs of very different size, as language models have them
    batches: list[Arrays] = [{"input_ids": np.random.default_rng(seed).integers(0, 50, (3, 7))} for seed in range(40)]
    return model, batches


def example() -> dict[str, Tensor]:
    return {"input_ids": torch.arange(14).reshape(2, 7)}


def lost(made: np.ndarray, weights: np.ndarray, gram: np.ndarray) -> float:
    """What is lost of the outputs, summed over the rows that the gram was made of."""
    error = made.astype(np.float64) - weights
    return float(np.einsum("kn,kl,ln->", error, gram, error))


def nearest(weights: np.ndarray, steps: Steps, energy: np.ndarray) -> np.ndarray:
    """Weights (k, n), each on its nearest step."""
    width = steps.width or len(weights)
    parts = [(weights[at : at + width], energy[at : at + width]) for at in range(0, len(weights), width)]
    grids = [(part, steps.of(part, energies)) for part, energies in parts]
    return np.concatenate([np.stack([grid.rounded(row, at) for at, row in enumerate(part)]) for part, grid in grids])


@pytest.mark.parametrize("steps", [Channels(3), Channels(64), Blocks(16, 4), Blocks(32, 4)], ids=str)
def test_correlated_inputs_lose_a_fraction_of_what_nearest_steps_lose(steps: Steps) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 12)) @ rng.normal(size=(12, 100)) + 0.1 * rng.normal(size=(2000, 100))
    gram, weights = x.T @ x, rng.normal(size=(100, 40)).astype(np.float32)
    made = onnx_rounding.rounded(weights, gram, steps)
    assert lost(made, weights, gram) < 0.35 * lost(nearest(weights, steps, np.diag(gram)), weights, gram)


def test_inputs_that_are_not_correlated_are_rounded_to_the_nearest_step() -> None:
    weights = np.random.default_rng(0).normal(size=(100, 40)).astype(np.float32)
    energy = np.random.default_rng(1).gamma(2, size=100)
    for steps in (Channels(64), Blocks(32, 4)):
        made = onnx_rounding.rounded(weights, np.diag(energy), steps)
        np.testing.assert_array_equal(made, nearest(weights, steps, energy).astype(np.float32))


def test_a_small_weight_loses_nearly_as_little_as_the_best_of_all_roundings() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 7)) + 0.3 * rng.normal(size=(500, 7))
    gram, ours, best, plain = x.T @ x, 0.0, 0.0, 0.0
    for _ in range(20):
        column = rng.normal(size=(7, 1)).astype(np.float32)
        scale, largest = np.abs(column).max() / 3, int(np.abs(column).argmax())
        choices = [[w / scale] if at == largest else range(-3, 4) for at, w in enumerate(column[:, 0])]
        errors = np.array(list(itertools.product(*choices))) * scale - column[:, 0]  # (7^6, 7)
        best += np.einsum("mk,kl,ml->m", errors, gram, errors, optimize=True).min()
        ours += lost(onnx_rounding.rounded(column, gram, Channels(3)), column, gram)
        plain += lost(nearest(column, Channels(3), np.diag(gram)), column, gram)
    assert ours < best + 0.5 * (plain - best)


def test_inputs_that_are_always_zero_are_no_fault() -> None:
    weights = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    made = onnx_rounding.rounded(weights, np.zeros((40, 40)), Blocks(32, 4))
    assert np.isfinite(made).all()
    assert np.abs(made - weights).max() < np.abs(weights).max()


@pytest.mark.parametrize("steps", [Channels(64), Blocks(32, 4)], ids=str)
def test_inputs_that_are_not_finite_leave_weights_at_the_nearest_step(steps: Steps) -> None:
    weights = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    gram = np.diag(np.r_[np.nan, np.ones(39)])
    made = onnx_rounding.rounded(weights, gram, steps)
    np.testing.assert_array_equal(made, nearest(weights, steps, np.ones(40)).astype(np.float32))


def test_sums_that_are_not_positive_definite_are_damped_until_they_are() -> None:
    weights = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    gram = np.ones((40, 40)) - 0.2 * np.eye(40)  # 39 eigenvalues of -0.2
    made = onnx_rounding.rounded(weights, gram, Channels(64))
    assert np.abs(made - weights).max() < 2 * np.abs(weights).max() / 64
    assert lost(made, weights, np.ones((40, 40))) < lost(
        nearest(weights, Channels(64), np.ones(40)), weights, np.ones((40, 40))
    )


@pytest.mark.parametrize("at_once", [2**27, 1])
def test_grams_are_those_of_hooks_in_torch(
    layers: tuple[Layers, list[Arrays]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    model, batches = layers
    found: dict[str, np.ndarray] = {}

    def spy(matrix: np.ndarray, gram: np.ndarray, _: Steps) -> np.ndarray:
        found["x".join(map(str, matrix.T.shape))] = gram
        return matrix

    monkeypatch.setattr(onnx_rounding, "rounded", spy)
    monkeypatch.setattr(onnx_rounding, "AT_ONCE", at_once)  # numbers of a pass: all, or one weight's
    OnnxExporter(precision="int4").export(model, example(), tmp_path / "int4", batches)
    expected = {"96x64": torch.zeros(64, 64), "64x96": torch.zeros(96, 96)}
    hooks = [
        layer.register_forward_hook(lambda module, given, _: add(expected, module, given[0]))
        for layer in (model.first, model.second)
    ]
    with torch.no_grad():
        for batch in batches:  # two rows of each: EXAMPLES among forty batches
            model(torch.from_numpy(batch["input_ids"][:2]))
    for hook in hooks:
        hook.remove()
    assert found.keys() == expected.keys()
    for name, gram in found.items():
        np.testing.assert_allclose(gram, expected[name].numpy(), rtol=1e-3, atol=1e-3 * expected[name].max().item())


def add(sums: dict[str, Tensor], layer: nn.Linear, x: Tensor) -> None:
    rows = x.reshape(-1, x.shape[-1])
    sums["x".join(map(str, layer.weight.shape))] += rows.T @ rows


@pytest.mark.parametrize(("precision", "large"), [("int4", False), ("int4", True), ("int8", False), ("int8", True)])
def test_an_export_errs_less_with_samples_and_stores_as_many_bytes(
    layers: tuple[Layers, list[Arrays]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, large: bool
) -> None:
    if large:
        monkeypatch.setattr(onnx_file, "LARGE", 1000)  # weights lie beside the graph
    model, batches = layers
    error, size = {}, {}
    for name, samples in (("blind", []), ("seeing", batches)):
        exporter = OnnxExporter(precision=precision, embeddings=False)
        export = exporter.export(model, example(), tmp_path / name, samples)
        runner = OnnxExporter().load(export.path)
        pairs = [(runner(one)["logits"], model(torch.from_numpy(one["input_ids"])).detach().numpy()) for one in batches]
        error[name] = np.sqrt(np.mean([np.square(found - right).mean() for found, right in pairs]))
        size[name] = export.facts["initializer_bytes"]
    assert error["seeing"] < (0.85 if precision == "int4" else 0.95) * error["blind"]  # activations in int8 err too
    assert size["seeing"] == size["blind"]


@pytest.mark.parametrize("reduce_range", [True, False])
def test_int8_stores_the_very_steps(
    layers: tuple[Layers, list[Arrays]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reduce_range: bool
) -> None:
    model, batches = layers
    made: list[np.ndarray] = []

    def keep(matrix: np.ndarray, gram: np.ndarray, steps: Steps) -> np.ndarray:
        made.append(rounded(matrix, gram, steps))
        return made[-1]

    rounded = onnx_rounding.rounded
    monkeypatch.setattr(onnx_rounding, "rounded", keep)
    path = tmp_path / "int8"
    OnnxExporter("int8", embeddings=False, reduce_range=reduce_range).export(model, example(), path, batches)
    stored = weights(onnx.load(path / "model.onnx"))
    matrices = [one for name, one in stored.items() if name.endswith("_quantized")]
    scales = [one for name, one in stored.items() if name.endswith("_scale")]
    found = {one.shape: one * scale for one in matrices for scale in scales if scale.shape == one.shape[1:]}
    assert len(made) == 3
    for matrix in made:
        np.testing.assert_allclose(found[matrix.shape], matrix, rtol=1e-5, atol=1e-7)
    assert max(np.abs(one.astype(int)).max() for one in matrices) == (64 if reduce_range else 127)


def test_int8_leaves_a_table_that_a_head_shares_to_its_lookups(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.layer = nn.Embedding(50, 64), nn.Linear(64, 64)
            self.head = nn.Linear(64, 50, bias=False)
            self.head.weight = self.table.weight

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.head(self.layer(self.table(input_ids)).relu())

    model = Tied().eval()
    samples = [{"input_ids": np.arange(50).reshape(5, 10)}]
    stored = {}
    for name, given in (("blind", []), ("seeing", samples)):
        export = OnnxExporter("int8").export(model, example(), tmp_path / name, given)
        arrays = [one for one in weights(onnx.load(export.path / "model.onnx")).values() if one.dtype == np.int8]
        stored[name] = {one.shape: one for one in arrays}
    assert stored["blind"].keys() == stored["seeing"].keys()
    changed = [shape for shape, one in stored["blind"].items() if not np.array_equal(one, stored["seeing"][shape])]
    assert changed == [(64, 64)]


def test_int4_is_written_in_an_older_opset_too(layers: tuple[Layers, list[Arrays]], tmp_path: Path) -> None:
    model, batches = layers
    path = tmp_path / "int4"
    facts = OnnxExporter("int4", opset=18).export(model, example(), path, batches).facts
    imports = {one.domain: one.version for one in onnx.load(path / "model.onnx").opset_import}
    assert facts["opset"] == imports[""] == 21  # whose types the quantizer needs
    assert all(figure["max_difference"] < 0.5 * figure["largest_logit"] for figure in facts["parity"])


def test_what_gives_the_logits_and_what_a_lookup_reads_stays(
    layers: tuple[Layers, list[Arrays]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = layers
    seen = written(monkeypatch)
    OnnxExporter(precision="int4").export(model, example(), tmp_path / "int4", batches)
    before, after = (weights(seen[name]) for name in ("prepared.onnx", "rounded.onnx"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"first.weight.T", "second.weight.T"}


def test_the_quantizer_stores_the_very_steps(
    layers: tuple[Layers, list[Arrays]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = layers
    seen = written(monkeypatch)
    path = tmp_path / "int4"
    OnnxExporter(precision="int4", embeddings=False).export(model, example(), path, batches)
    rounded = weights(seen["rounded.onnx"])["second.weight.T"]  # (96, 64)
    stored = weights(onnx.load(path / "model.onnx"))
    (name,) = (one for one in stored if one.startswith("second") and stored[one].ndim == 3)
    nibbles = np.stack([stored[name] & 15, stored[name] >> 4], axis=-1).reshape(64, 3, BLOCK)
    scales, zeros = (stored[name.replace("_Q4", end)] for end in ("_scales", "_zero_points"))
    zeros = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(64, -1)[:, :3]
    found = (nibbles.astype(np.float32) - zeros[..., None]) * scales.reshape(64, 3, 1)
    np.testing.assert_allclose(found.reshape(64, 96), rounded.T, rtol=1e-5, atol=1e-7)


def test_a_layer_without_tokens_is_rounded_along_its_inputs(tmp_path: Path) -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.head = nn.Linear(40, 24), nn.Linear(24, 4)

        def forward(self, features: Tensor) -> Tensor:
            return self.head(self.layer(features))

    model = Features()
    features = torch.randn(16, 40) * torch.linspace(0.1, 5, 40)
    samples = [{"features": features.numpy()}]
    export = OnnxExporter(precision="int4").export(model, {"features": features[:3]}, tmp_path / "export", samples)
    weight, gram = model.layer.weight.detach().numpy(), (features.T @ features).numpy()
    rounded = torch.from_numpy(onnx_rounding.rounded(weight.T, gram, Blocks(BLOCK, 4)))
    found = OnnxExporter().load(export.path)(samples[0])["logits"]
    expected, whole = (
        model.head(one).detach().numpy() for one in (features @ rounded + model.layer.bias, model.layer(features))
    )
    assert np.abs(found - expected).max() < 0.3 * np.abs(whole - expected).max()  # what is left is of eight bits


def test_a_model_without_products_is_exported(tmp_path: Path) -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 32)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.table(input_ids)

    ids = {"input_ids": torch.arange(10).reshape(2, 5)}
    samples = [{name: value.numpy() for name, value in ids.items()}]
    export = OnnxExporter(precision="int4").export(Lookup(), ids, tmp_path / "export", samples)
    assert export.facts["nodes"] == {"GatherBlockQuantized": 1}


def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, onnx.ModelProto]:
    """The graphs that a quantizer starts from, by the names of their files."""
    found: dict[str, onnx.ModelProto] = {}
    load: Callable[[Path], onnx.ModelProto] = onnx_blocks._loaded
    adjust = onnx_rounding.adjust

    def keep(source: Path, target: Path, *arguments: Any, **options: Any) -> None:
        found[source.name] = onnx.load(source)
        adjust(source, target, *arguments, **options)

    def loaded(path: Path) -> onnx.ModelProto:
        found[path.name] = onnx.load(path)
        return load(path)

    monkeypatch.setattr(onnx_rounding, "adjust", keep)
    monkeypatch.setattr(onnx_blocks, "_loaded", loaded)
    return found


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}


@pytest.mark.parametrize(("batches", "size"), [(16, 32), (3, 8), (200, 4), (1, 500), (64, 1)])
def test_rows_are_drawn_from_the_shortest_to_the_longest(batches: int, size: int) -> None:
    count = batches * size
    lengths = np.arange(count).reshape(batches, size)
    samples: list[Arrays] = [{"lengths": one, "rate": np.array(16_000)} for one in lengths]
    found = list(onnx_products._drawn(samples))
    rows = np.concatenate([one["lengths"] for one in found])
    assert len(rows) == min(count, -(-onnx_products.EXAMPLES // min(batches, 64)) * min(batches, 64))
    assert len({*rows.tolist()}) == len(rows)
    assert abs(rows.mean() / lengths.mean() - 1) < 0.1
    assert rows.max() > 0.85 * count
    assert all(one["rate"].shape == () for one in found)
