"""What int8 is made of: a graph in fp32 that quantizing by channels loses little of, by the task's data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir

from exporters.base import Arrays
from exporters.onnx import rounding, smoothing, tied
from exporters.onnx.steps import Channels

SEVEN_BITS, EIGHT_BITS = 64, 127  # steps of a weight to either side of zero, as ONNX Runtime's quantizer takes them


def by_channels(source: Path, scratch: Path, samples: Sequence[Arrays], *, reduce_range: bool) -> Path:
    """The fp32 graph `source`, what products read made even and their weights on steps, in the folder `scratch`.

    Without samples it is `source` itself. A table that lookups share with a head is left to them.

    Args:
        samples: batches of the model's inputs.
        reduce_range: steps of seven bits.

    Raises:
        RuntimeFailure: ONNX Runtime fails on the samples.
    """
    if not samples:
        return source
    levels, ties = SEVEN_BITS if reduce_range else EIGHT_BITS, tied.ties(source)
    even, target = scratch / "even.onnx", scratch / "rounded.onnx"
    smoothing.smooth(source, even, samples, levels, but=ties)
    rounding.adjust(even, target, samples, Channels(levels), but=ties)
    return target


def without_channels(path: Path) -> list[str]:
    """Names of products with constants of more than two axes, a matrix per head or group: none runs quantized."""
    products = [node for node in onnx_ir.load(path).graph.all_nodes() if node.op_type == "MatMul"]
    constants = {str(node.name): [one.const_value for one in node.inputs if one is not None] for node in products}
    return [name for name, found in constants.items() if any(one is not None and len(one.shape) > 2 for one in found)]
