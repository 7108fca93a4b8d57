"""The tiny graphs that layers are timed with: they compute the layer, look like exports, and are timed in turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compressor.forms import Patches
from compressor.timings import Site
from exporters.base import Session
from exporters.onnx import OnnxExporter
from exporters.onnx import timing as onnx_timing

LINEAR = Site(24, 16, (2, 5, 16), True)
CONVOLUTION = Site(12, 27, (2, 3, 9, 7), True, (3, 3), (2, 1), (1, 1), (1, 0, 1, 2))


def run(site: Site, rank: int | None) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    import onnxruntime

    proto = onnx_timing.graph(site, rank, 20)
    onnx.checker.check_model(proto, full_check=True)
    x = np.random.default_rng(3).standard_normal(site.inputs, dtype=np.float32)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return x, constants, session.run(None, {"x": x})[0]


@pytest.mark.parametrize("rank", [None, 4, 24])
def test_a_linear_layer_is_one_product_and_factors_are_two(rank: int | None) -> None:
    x, constants, found = run(LINEAR, rank)
    expected = x.astype(np.float64) @ constants["w0"]
    if rank is not None:
        assert constants["w0"].shape == (16, rank)
        expected = expected @ constants["w1"]
    bias = [name for name in constants if name.startswith("b")]
    assert bias == ["b0" if rank is None else "b1"]
    np.testing.assert_allclose(found, expected + constants[bias[0]], atol=1e-4)


@pytest.mark.parametrize("rank", [None, 5])
def test_a_convolution_keeps_its_geometry_in_the_first_factor(rank: int | None) -> None:
    x, constants, found = run(CONVOLUTION, rank)
    before, after = CONVOLUTION.pads[:2], CONVOLUTION.pads[2:]
    padded = torch.nn.functional.pad(torch.from_numpy(x), (before[1], after[1], before[0], after[0]))
    value = torch.nn.functional.conv2d(padded, torch.tensor(constants["w0"]), stride=CONVOLUTION.strides)
    if rank is not None:
        value = torch.nn.functional.conv2d(value, torch.tensor(constants["w1"]))
    bias = constants["b0" if rank is None else "b1"]
    np.testing.assert_allclose(found, value.numpy() + bias[:, None, None], atol=1e-4)


@pytest.mark.parametrize("padding", [(2, 1), "same", "valid"])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_the_pads_of_a_form_are_those_of_torch(padding: Any) -> None:
    layer = torch.nn.Conv2d(3, 4, (4, 3), padding=padding, dilation=(1, 2), bias=False)
    form = Patches(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    site = Site(4, 36, (1, 3, 9, 11), False, form.kernel, form.stride, form.dilation, form.pads)
    x, constants, found = run(site, None)
    layer.weight.data = torch.tensor(constants["w0"])
    np.testing.assert_allclose(found, layer(torch.from_numpy(x)).detach().numpy(), atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_tiny_graph_has_the_operators_that_the_exporter_leaves_of_two_linear_layers(
    precision: Any, tmp_path: Path
) -> None:
    class Factors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = torch.nn.Linear(16, 8, bias=False), torch.nn.Linear(8, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(self.down(x))

    torch.manual_seed(0)
    exporter = OnnxExporter(precision=precision)
    exporter.export(Factors(), {"x": torch.randn(2, 5, 16)}, tmp_path / "real")
    timer = exporter.timer(Session(threads=1))
    runner = timer._runner(LINEAR, 8, tmp_path / "tiny")
    tiny = onnx.load(runner.path).graph
    real = json.loads((tmp_path / "real" / "export.json").read_text())["nodes"]
    kinds = [node.op_type for node in tiny.node]
    assert {kind: kinds.count(kind) for kind in sorted(set(kinds))} == real


@pytest.mark.parametrize("precision", OnnxExporter.precisions)
def test_every_precision_times_a_layer_and_its_factors(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_timing, "ROUNDS", (2, 2))
    timer = OnnxExporter(precision=precision).timer(Session(threads=1))
    times = timer(Site(64, 64, (1, 4, 64), True), [32])
    assert len(times) == 2
    assert all(time > 0 for time in times)
    assert f" {precision}" in timer.label
    assert timer.label.endswith("1 threads")


class Clock:
    """A clock of its own: every call costs what it says, in nanoseconds."""

    def __init__(self) -> None:
        self.now, self.called = 0, list[int]()

    def __call__(self) -> int:
        return self.now

    def costing(self, number: int, nanoseconds: Callable[[], float]) -> Callable[[], None]:
        def call() -> None:
            self.called.append(number)
            self.now += round(nanoseconds())

        return call


def test_medians_are_in_microseconds_and_calls_take_turns() -> None:
    clock = Clock()
    calls = [clock.costing(0, lambda: 5_000), clock.costing(1, lambda: 7_000), clock.costing(2, lambda: 9_000)]
    assert onnx_timing.medians(calls, clock) == [5.0, 7.0, 9.0]
    rounds = [clock.called[at : at + 3] for at in range(0, len(clock.called), 3)]
    assert all(sorted(one) == [0, 1, 2] for one in rounds)
    assert len(rounds) == onnx_timing.WARMUP + onnx_timing.ROUNDS[0]  # nothing varies: no more than the least
    assert len({tuple(one) for one in rounds[onnx_timing.WARMUP :]}) > 1


def test_noise_asks_for_more_rounds_and_the_median_is_as_precise_as_promised() -> None:
    rng = np.random.default_rng(0)
    errors, lengths = [], []
    for _ in range(40):
        clock = Clock()
        (found,) = onnx_timing.medians([clock.costing(0, lambda: 1e5 * (1 + 0.1 * rng.standard_normal()))], clock)
        errors.append(found / 100 - 1)
        lengths.append(len(clock.called))
    assert np.std(errors) <= 1.5 * onnx_timing.PRECISE
    assert onnx_timing.ROUNDS[0] < np.median(lengths) < onnx_timing.ROUNDS[1]


def test_what_never_settles_ends_all_the_same() -> None:
    clock, rng = Clock(), np.random.default_rng(0)
    onnx_timing.medians([clock.costing(0, lambda: 10 ** rng.uniform(3, 6))], clock)
    assert len(clock.called) == onnx_timing.WARMUP + onnx_timing.ROUNDS[1]


def test_a_burst_on_the_machine_does_not_move_a_median() -> None:
    clock = Clock()
    numbers = iter(range(10**6))
    (found,) = onnx_timing.medians([clock.costing(0, lambda: 1e6 if next(numbers) % 5 == 0 else 1e4)], clock)
    assert found == 10.0


def test_sizes_double_where_factors_do() -> None:
    widths = [
        [tensor.dims for tensor in onnx_timing.graph(LINEAR, rank, 20).graph.initializer if tensor.name[0] == "w"]
        for rank in (4, 8)
    ]
    sizes = [sum(int(np.prod(dims)) for dims in found) for found in widths]
    assert [after / before for before, after in pairwise(sizes)] == [2.0]
