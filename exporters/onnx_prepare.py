"""An fp32 graph as ONNX Runtime's quantizers want it: every weight where they look, and nothing they stumble over."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from onnxscript.optimizer import fold_constants

from exporters import onnx_file


def prepare(source: Path, target: Path) -> None:
    """Bring every weight to where the quantizers look for it, and drop what they stumble over."""
    model = onnx_ir.load(source)
    fold_constants(model, should_fold=_hides_a_weight, output_size_limit=sys.maxsize)
    onnx_file.save(model, target)
    proto = onnx.load(target, load_external_data=False)
    forget_weight_shapes(proto.graph)
    add_pre_process_metadata(proto)
    onnx.save(proto, target)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the quantizers log of every node, and without the handlers that they give the root logger."""
    root, before = logging.getLogger(), logging.root.manager.disable
    handlers, level = list(root.handlers), root.level
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.handlers[:] = handlers
        root.setLevel(level)


def _hides_a_weight(node: onnx_ir.Node) -> bool:
    """Whether a node only turns a constant: the quantized product wants the turned constant itself."""
    return node.op_type in onnx_file.LAYOUT and all(
        value is not None and value.is_initializer() for value in node.inputs
    )


def forget_weight_shapes(graph: onnx.GraphProto) -> None:
    """Drop the value_info of initializers: quantizers and converters change their types and leave it as it was."""
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(kept)
