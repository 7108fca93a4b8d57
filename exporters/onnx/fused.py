"""An fp32 ONNX graph in ONNX Runtime's own fused operators: attention, norms with their skip connection, rotations.

The fusions are those of transformers and onnxscript (`transformers.exporters`, `ort_fusions="cpu"`); products that read
the same value, such as the down factors of query, key and value, become one. ONNX Runtime finds some of these by itself
when it loads the portable graph, so whether this helps is for a measurement to say; few other runtimes load it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx_ir

from compressor.errors import ExportError
from exporters.onnx import file
from exporters.onnx.prepare import quiet, split_gemms
from exporters.onnx.values import OWN

FUSIONS = "transformers.exporters.onnxruntime_fusions"
PROVIDER = "cpu"
UNDECLARED = "SimplifiedLayerNormalization"  # its own too, in the domain of ONNX


def fuse(source: Path, target: Path) -> None:
    """Write the fp32 graph `source` with fused operators as graph `target`.

    Raises:
        ExportError: this version of transformers has no such fusions, they fail, or they find nothing in this graph.
    """
    graph = onnx_ir.load(source)
    split_gemms(graph.graph)  # in front of which the fusions drop what makes a matrix of three axes (GPT-2)
    before = fused_nodes(graph)
    try:
        with quiet():
            _fusions()(graph, PROVIDER)
    except (AttributeError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ExportError(
            f"The fusions of transformers fail on this graph ({type(error).__name__}: {error}). Export fp32."
        ) from error
    if fused_nodes(graph) <= before:
        raise ExportError(
            "The fusions find nothing to fuse in this graph (0 fused operators), so it would be the fp32 export again. "
            "Export fp32, which ONNX Runtime optimizes when it loads it."
        )
    file.save(graph, target)


def fused_nodes(graph: onnx_ir.Model) -> Counter[str]:
    """How often each of ONNX Runtime's own operators stands in a graph."""
    return Counter(node.op_type for node in graph.graph if node.domain == OWN or node.op_type == UNDECLARED)


def _fusions() -> Callable[[onnx_ir.Model, str], None]:
    try:
        found: Any = import_module(FUSIONS)
    except ImportError as error:
        raise ExportError(
            f"This transformers has no fusions for ONNX Runtime ({error}): fp32-fused needs `pip install "
            "'transformers>=5.23,<5.24'`. The export fp32 does without."
        ) from error
    return found.fuse_for_onnxruntime
