"""The precisions that an ONNX graph is written in: what makes each of the fp32 graph, and where it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from exporters.base import Arrays, Device


class Knobs(Protocol):
    """What an exporter tells a stage."""

    @property
    def embeddings(self) -> bool:
        """Whether embedding tables are quantized too."""
        ...

    @property
    def reduce_range(self) -> bool:
        """Whether int8 weights keep seven bits."""
        ...

    @property
    def block(self) -> int:
        """Weights to a scale, of int8-weights and int4."""
        ...


Stage = Callable[[Path, Path, Knobs, Sequence[Arrays]], None]  # fp32 graph, new graph, knobs, calibration batches


@dataclass(frozen=True)
class Precision:
    """One precision.

    Attributes:
        stage: makes it of the fp32 graph; None for fp32 itself.
        knobs: fields of the exporter that it heeds.
        devices: where it runs.
        calibrated: whether it is given batches of the task's data.
        exact: whether it computes the very numbers of the fp32 graph, and is held to the same tolerance.
        beside: precisions that are always exported beside it.
        batchwise: whether the steps of activations are those of a whole batch, so that its rows depend on each other.
        layer: makes it of a single layer, where there is nothing to fuse; None: as `stage` does.
    """

    stage: Stage | None = None
    knobs: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ("cpu", "cuda")
    calibrated: bool = False
    exact: bool = False
    beside: tuple[str, ...] = ()
    batchwise: bool = False
    layer: Stage | None = None


def _fp16(source: Path, target: Path, _: Knobs, __: Sequence[Arrays]) -> None:
    from exporters.onnx.fp16 import convert

    convert(source, target)


def _int8(source: Path, target: Path, knobs: Knobs, samples: Sequence[Arrays]) -> None:
    from exporters.onnx.int8 import quantize

    quantize(source, target, embeddings=knobs.embeddings, reduce_range=knobs.reduce_range, samples=samples)


def _int8_fused(source: Path, target: Path, knobs: Knobs, samples: Sequence[Arrays]) -> None:
    from exporters.onnx.int8_fused import quantize

    quantize(source, target, embeddings=knobs.embeddings, reduce_range=knobs.reduce_range, samples=samples)


def _int8_static(source: Path, target: Path, knobs: Knobs, samples: Sequence[Arrays]) -> None:
    from exporters.onnx.static import quantize

    quantize(source, target, samples=samples, embeddings=knobs.embeddings, reduce_range=knobs.reduce_range)


def _int8_weights(source: Path, target: Path, knobs: Knobs, _: Sequence[Arrays]) -> None:
    from exporters.onnx.blocks import quantize

    quantize(source, target, embeddings=knobs.embeddings, block=knobs.block, bits=8)


def _int4(source: Path, target: Path, knobs: Knobs, samples: Sequence[Arrays]) -> None:
    from exporters.onnx.blocks import quantize

    quantize(source, target, embeddings=knobs.embeddings, block=knobs.block, samples=samples)


def _int4_layer(source: Path, target: Path, knobs: Knobs, _: Sequence[Arrays]) -> None:
    from exporters.onnx.blocks import quantize

    quantize(source, target, embeddings=False, block=knobs.block, head_bits=4)


def _fused(source: Path, target: Path, _: Knobs, __: Sequence[Arrays]) -> None:
    from exporters.onnx.fused import fuse

    fuse(source, target)


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision(),
    "fp16": Precision(_fp16),
    "int8": Precision(_int8, ("embeddings", "reduce_range"), ("cpu",), calibrated=True, batchwise=True),
    "int8-static": Precision(_int8_static, ("embeddings", "reduce_range"), ("cpu",), calibrated=True),
    "int8-weights": Precision(_int8_weights, ("embeddings", "block"), ("cpu",)),
    "int4": Precision(_int4, ("embeddings", "block"), calibrated=True, layer=_int4_layer),
    "fp32-fused": Precision(_fused, devices=("cpu",), exact=True, beside=("fp32",)),
    "int8-fused": Precision(
        _int8_fused, ("embeddings", "reduce_range"), ("cpu",), calibrated=True, batchwise=True, layer=_int8
    ),
}
