"""What single layers take in ONNX Runtime: tiny graphs of what the exporter leaves of a layer, timed in turns.

Imports no torch.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from compressor import turns
from compressor.threads import usable_threads
from compressor.timings import Site
from exporters.base import Session
from exporters.onnx import runtime
from exporters.onnx.precisions import PRECISIONS, Knobs
from exporters.onnx.runtime import GRAPH, OnnxRunner

IR_VERSION = 10  # what opset 20 came with
WARMUP = 3
ROUNDS = (30, 300)  # least and most
PRECISE = 0.01  # standard error of every median, as a share of it, at which rounds end
Call = Callable[[], Any]


@dataclass(frozen=True)
class OnnxTimer:
    """Times one layer and its factors in ONNX Runtime, in one precision; see `compressor.timings.Timer`."""

    precision: str
    opset: int
    knobs: Knobs
    session: Session
    clock: Callable[[], int] = time.perf_counter_ns

    @property
    def label(self) -> str:
        """Runtime, precision with its knobs, and threads."""
        knobs = "".join(f" {name}={getattr(self.knobs, name)}" for name in PRECISIONS[self.precision].knobs)
        threads = self.session.threads or usable_threads()
        return f"onnxruntime {onnxruntime.__version__} {self.precision}{knobs} opset {self.opset} | {threads} threads"

    def __call__(self, site: Site, ranks: Sequence[int]) -> list[float]:
        """Microseconds of the dense layer, then of two factors of each rank.

        Raises:
            ExportError: a graph cannot be brought to the precision.
            RuntimeFailure: ONNX Runtime refuses one.
        """
        with tempfile.TemporaryDirectory(prefix="rankfold-") as scratch:
            folders = [Path(scratch, str(number)) for number in range(1 + len(ranks))]
            runners = [self._runner(site, rank, at) for rank, at in zip([None, *ranks], folders, strict=True)]
            given = {"x": _sample(site)}
            return medians([_call(runner, given) for runner in runners], self.clock)

    def _runner(self, site: Site, rank: int | None, folder: Path) -> OnnxRunner:
        source, precision = folder / "fp32", PRECISIONS[self.precision]
        source.mkdir(parents=True)
        onnx.save(graph(site, rank, self.opset), source / GRAPH)
        if precision.stage is None or precision.exact:  # one layer holds nothing to fuse
            return runtime.load(source, self.session)
        stage = precision.layer or precision.stage
        stage(source / GRAPH, folder / GRAPH, self.knobs, [{"x": _sample(site)}])
        return runtime.load(folder, self.session)


def _sample(site: Site) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(site.inputs, dtype=np.float32)


def _call(runner: OnnxRunner, given: dict[str, np.ndarray]) -> Call:
    return lambda: runner.session.run(None, given)


def graph(site: Site, rank: int | None, opset: int) -> onnx.ModelProto:
    """x -> y: MatMul and Add as a linear layer leaves them, or Conv; two of them where there is a rank."""
    widths = [site.in_features, site.out_features] if rank is None else [site.in_features, rank, site.out_features]
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    value = "x"
    for number, shape in enumerate(pairwise(widths)):
        made, weights = _product(site, number, value, shape, bias=site.bias and number == len(widths) - 2)
        nodes, constants, value = nodes + made, constants + weights, made[-1].output[0]
    nodes[-1].output[0] = "y"
    body = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, site.inputs)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(site.inputs))],
        constants,
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


def _product(
    site: Site, number: int, value: str, shape: tuple[int, int], *, bias: bool
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """One product with a constant (inner, outer), and its bias."""
    inner, outer = shape
    rng, name = np.random.default_rng(number), f"w{number}"
    weight = rng.standard_normal(shape, dtype=np.float32) / math.sqrt(inner)  # (n, m)
    offset = [numpy_helper.from_array(rng.standard_normal(outer, dtype=np.float32), f"b{number}")] * bias
    if site.kernel:
        first = number == 0
        kernel = site.kernel if first else (1,) * len(site.kernel)
        kernels = np.ascontiguousarray(weight.T).reshape(outer, -1, *kernel)  # (m, C, *kernel)
        places = {"strides": site.strides, "dilations": site.dilations, "pads": site.pads}
        geometry: dict[str, Any] = places if first else {}
        inputs = [value, name, *(one.name for one in offset)]
        node = helper.make_node("Conv", inputs, [f"h{number}"], kernel_shape=kernel, **geometry)
        return [node], [numpy_helper.from_array(kernels, name), *offset]
    nodes = [helper.make_node("MatMul", [value, name], [f"h{number}"])]
    nodes += [helper.make_node("Add", [f"h{number}", one.name], [f"s{number}"]) for one in offset]
    return nodes, [numpy_helper.from_array(weight, name), *offset]


def medians(calls: Sequence[Call], clock: Callable[[], int]) -> list[float]:
    """Microseconds of each call, the median over rounds in which each is called once, in random order.

    Rounds go on until the standard error of every median is small, or to their most.
    """
    for _ in range(WARMUP):
        for call in calls:
            call()
    times: list[list[int]] = []  # (rounds, calls)
    with closing(turns.rounds(calls, clock=clock)) as rounds:
        while len(times) < ROUNDS[1] and not (len(times) >= ROUNDS[0] and _error(times) <= PRECISE):
            times.append(next(rounds))
    return [float(median) / 1e3 for median in np.median(times, axis=0)]


def _error(times: Sequence[Sequence[int]]) -> float:
    """The largest standard error of a median as a share of it, by the spread of the middle half of its times.

    A normal sample's quartiles lie 1.349 deviations apart, and its median's variance is pi / 2 of its mean's.
    """
    quartiles = np.percentile(np.asarray(times), (25, 50, 75), axis=0)  # (3, calls)
    spread = (quartiles[2] - quartiles[0]) / 1.349
    return float((math.sqrt(math.pi / 2 / len(times)) * spread / quartiles[1]).max())
