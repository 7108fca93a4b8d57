"""Dynamic int8 of the fused graph: ONNX Runtime's own operators around int8 products.

When it loads a portable int8 graph, ONNX Runtime fuses no attention: its reshapes, transposes and masks run node by
node, a large share of a short text's time. Here it is fused first. What the fusions leave is then made as cheap as the
processor allows: fused operators that are slower than their parts are taken apart again, scales go into weights, masks
become the padding that they say, and of the last block only the tokens are computed that something reads.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx_ir
from onnxscript.optimizer import fold_constants

from exporters.base import Arrays
from exporters.onnx import apart, file, fused, int8, masks, rows, scales
from exporters.onnx.channels import by_channels
from exporters.onnx.values import of_constants


def quantize(
    source: Path, target: Path, *, embeddings: bool, reduce_range: bool, samples: Sequence[Arrays] = ()
) -> None:
    """Write the fp32 graph `source` as fused int8 graph `target`; see `int8.quantize`.

    Raises:
        ExportError: there is nothing to fuse, or fusions or quantizer fail.
        RuntimeFailure: ONNX Runtime fails on the samples.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        scratch = Path(folder)
        graph = scratch / "fused.onnx"
        fused.fuse(by_channels(source, scratch, samples, reduce_range=reduce_range), graph)
        model = onnx_ir.load(graph)
        rewrite(model)
        file.save(model, graph)
        int8.quantize(graph, target, embeddings=embeddings, reduce_range=reduce_range)


def rewrite(model: onnx_ir.Model) -> None:
    """Make a fused graph cheaper for int8 in place; it computes the same.

    Raises:
        ExportError: an `Attention` cannot be taken apart.
    """
    fold_constants(model, should_fold=_joins_weights, output_size_limit=sys.maxsize)
    apart.take_apart(model.graph)
    scales.fold(model.graph)
    masks.simplify(model)
    rows.narrow(model.graph)


def _joins_weights(node: onnx_ir.Node) -> bool:
    """Whether a node only turns or joins constants, as the fusions leave the weight of an `Attention`."""
    return of_constants(node, {"Concat", *file.LAYOUT})
