"""The ranges of blocks: what a cut loses against all cuts of the grid, and what of a graph is cut."""

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

from exporters import onnx_blocks, onnx_file, onnx_ranges
from exporters.base import Arrays
from exporters.onnx import OnnxExporter

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


def loss(found: np.ndarray, block: np.ndarray, energy: np.ndarray) -> float:
    return float((((found - block) ** 2) * energy).sum())


def min_max(block: np.ndarray, low: float, high: float, steps: int) -> np.ndarray:
    """One block on equal steps from low to high, written out."""
    scale = (high - low) / steps or 1.0
    zero = round(-low / scale)
    return np.array([(min(max(round(w / scale) + zero, 0), steps) - zero) * scale for w in block.tolist()])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_cut_loses_what_the_best_of_the_grid_loses(bits: int) -> None:
    rng, steps = np.random.default_rng(bits), 2**bits - 1
    matrix = rng.standard_t(3, (6, BLOCK)).astype(np.float32)  # with numbers far outside of the others
    matrix[5] = np.abs(matrix[5])  # zero is the low end
    energy = rng.gamma(0.5, size=BLOCK)
    found = onnx_ranges.cut(matrix, energy, block=BLOCK, bits=bits)
    for row, narrowed in zip(matrix, found, strict=True):
        low, high = min(row.min(), 0.0), max(row.max(), 0.0)
        losses = [
            loss(min_max(row, a * low, b * high, steps), row, energy)
            for a, b in itertools.product(onnx_ranges.KEPT, repeat=2)
        ]
        taken = min_max(narrowed, min(narrowed.min(), 0.0), max(narrowed.max(), 0.0), steps)
        assert loss(taken, row, energy) == pytest.approx(min(losses), rel=1e-3)
        assert loss(taken, row, energy) <= losses[0] * 1.001  # the whole range comes first


def test_rows_end_with_part_of_a_block_and_blocks_of_zeros_stay() -> None:
    matrix = np.random.default_rng(0).normal(size=(4, 40)).astype(np.float32)
    matrix[2, 32:] = 0
    found = onnx_ranges.cut(matrix, np.ones(40), block=BLOCK, bits=4)
    apart = np.concatenate(
        [onnx_ranges.cut(part, np.ones(part.shape[1]), block=BLOCK, bits=4) for part in np.split(matrix, [32], axis=1)],
        axis=1,
    )
    np.testing.assert_array_equal(found, apart)
    assert not found[2, 32:].any()
    assert (found != matrix).any()


def test_energies_are_those_of_hooks_in_torch(
    layers: tuple[Layers, list[Arrays]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = layers
    found: dict[str, np.ndarray] = {}

    def spy(matrix: np.ndarray, energy: np.ndarray, **_: Any) -> np.ndarray:
        found["x".join(map(str, matrix.shape))] = energy
        return matrix

    monkeypatch.setattr(onnx_ranges, "cut", spy)
    OnnxExporter(precision="int4").export(model, example(), tmp_path / "int4", batches)
    expected = {"96x64": torch.zeros(64), "64x96": torch.zeros(96)}
    hooks = [
        layer.register_forward_hook(lambda module, given, _: add(expected, module, given[0]))
        for layer in (model.first, model.second)
    ]
    with torch.no_grad():
        for batch in batches[: -(-onnx_ranges.EXAMPLES // 3)]:
            model(torch.from_numpy(batch["input_ids"]))
    for hook in hooks:
        hook.remove()
    assert found.keys() == expected.keys()
    for name, energy in found.items():
        np.testing.assert_allclose(energy, expected[name].numpy(), rtol=1e-3)


def add(sums: dict[str, Tensor], layer: nn.Linear, x: Tensor) -> None:
    sums["x".join(map(str, layer.weight.shape))] += x.reshape(-1, x.shape[-1]).square().sum(0)


@pytest.mark.parametrize("large", [False, True])
def test_int4_errs_less_with_samples_and_stores_the_same_bytes(
    layers: tuple[Layers, list[Arrays]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr(onnx_file, "LARGE", 1000)  # weights lie beside the graph
    model, batches = layers
    error, size = {}, {}
    for name, samples in (("blind", []), ("seeing", batches)):
        exporter = OnnxExporter(precision="int4", embeddings=False)
        export = exporter.export(model, example(), tmp_path / name, samples)
        runner = OnnxExporter().load(export.path)
        pairs = [(runner(one)["logits"], model(torch.from_numpy(one["input_ids"])).detach().numpy()) for one in batches]
        error[name] = np.sqrt(np.mean([np.square(found - right).mean() for found, right in pairs]))
        size[name] = export.facts["initializer_bytes"]
    assert error["seeing"] < 0.9 * error["blind"]
    assert size["seeing"] == size["blind"]


def test_int4_is_written_in_an_older_opset_too(layers: tuple[Layers, list[Arrays]], tmp_path: Path) -> None:
    model, batches = layers
    path = tmp_path / "int4"
    facts = OnnxExporter("int4", opset=17).export(model, example(), path, batches).facts
    assert all(figure["max_difference"] < 0.5 * figure["largest_logit"] for figure in facts["parity"])


def test_what_gives_the_logits_and_what_a_lookup_reads_stays(
    layers: tuple[Layers, list[Arrays]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = layers
    seen = written(monkeypatch)
    OnnxExporter(precision="int4").export(model, example(), tmp_path / "int4", batches)
    before, after = (weights(seen[name]) for name in ("prepared.onnx", "narrowed.onnx"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"first.weight.T", "second.weight.T"}


def test_a_layer_without_tokens_is_cut_along_its_inputs(tmp_path: Path) -> None:
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
    weight, energy = model.layer.weight.detach().numpy(), features.square().sum(0).numpy()
    narrowed = onnx_ranges.cut(weight, energy, block=BLOCK, bits=4)
    rounded = [
        np.concatenate([min_max(part, min(part.min(), 0), max(part.max(), 0), 15) for part in np.split(row, [BLOCK])])
        for row in narrowed
    ]
    hidden = features @ torch.tensor(np.array(rounded), dtype=torch.float32).T + model.layer.bias
    found = OnnxExporter().load(export.path)(samples[0])["logits"]
    expected, whole = (model.head(one).detach().numpy() for one in (hidden, model.layer(features)))
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
    narrow = onnx_ranges.narrow

    def keep(source: Path, target: Path, *arguments: Any, **options: Any) -> None:
        found[source.name] = onnx.load(source)
        narrow(source, target, *arguments, **options)

    def loaded(path: Path) -> onnx.ModelProto:
        found[path.name] = onnx.load(path)
        return load(path)

    monkeypatch.setattr(onnx_ranges, "narrow", keep)
    monkeypatch.setattr(onnx_blocks, "_loaded", loaded)
    return found


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
