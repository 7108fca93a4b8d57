"""An fp32 graph as ONNX Runtime's quantizers want it: every weight where they look, and nothing they stumble over."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from onnxscript.optimizer import fold_constants

from exporters.onnx import file
from exporters.onnx.values import constant, drop_unread, new_constant, of_constants


def prepare(source: Path, target: Path, *, products: bool = False) -> None:
    """Bring every weight to where the quantizers look for it, and drop what they stumble over.

    `products`: of a `Gemm` too; before 1.32 ONNX Runtime turns its weight in place for that, whoever else reads it.
    """
    model = onnx_ir.load(source)
    if products:
        split_gemms(model.graph)
    fold_constants(model, should_fold=_hides_a_weight, output_size_limit=sys.maxsize)
    keep_norms_apart(model.graph)
    save(model, target)


def save(model: onnx_ir.Model, target: Path) -> None:
    """Write a prepared graph as the quantizers want to read it."""
    file.save(model, target)
    proto = onnx.load(target, load_external_data=False)
    forget_weight_shapes(proto.graph)
    add_pre_process_metadata(proto)
    onnx.save(proto, target)


def keep_norms_apart(graph: onnx_ir.Graph) -> None:
    """Write the sums that norms read as `Sum`, which computes the same.

    When it loads an `Add` before a `LayerNormalization`, ONNX Runtime makes one `SkipLayerNormalization` of both, whose
    CPU kernel (1.32) takes several times as long as the two: MiniLM in int8 takes 0.74 of its time without it.
    """
    for node in graph:
        if node.op_type == "Add" and not node.domain and _is_skip(node):
            node.op_type = "Sum"


def split_gemms(graph: onnx_ir.Graph) -> None:
    """Write each `Gemm` of a constant weight as `MatMul` and `Add`; a weight that is turned is made once."""
    for node in list(graph):
        if node.op_type != "Gemm" or node.domain or not _is_plain(node):
            continue
        x, weight, *bias = node.inputs
        (given,) = node.outputs
        factor = _turned(graph, weight) if node.attributes.get_int("transB", 0) else weight
        made = [onnx_ir.node("MatMul", [x, factor])]
        if bias and bias[0] is not None:
            made.append(onnx_ir.node("Add", [*made[0].outputs, bias[0]]))
        (result,), name = made[-1].outputs, given.name
        result.type, result.shape = given.type, given.shape
        graph.insert_before(node, made)
        onnx_ir.convenience.replace_all_uses_with(given, result, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        result.name = name
        if weight is not None:
            drop_unread(graph, weight)


def _is_plain(node: onnx_ir.Node) -> bool:
    """Whether a Gemm is x W + b, or x W^T + b, of a constant W."""
    scales = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return constant(node.inputs[1], rank=2) and not node.attributes.get_int("transA", 0) and set(scales) == {1.0}


def _turned(graph: onnx_ir.Graph, weight: Any) -> onnx_ir.Value:
    return new_constant(graph, f"{weight.name}.T", np.ascontiguousarray(weight.const_value.numpy().T))


def _is_skip(node: onnx_ir.Node) -> bool:
    """Whether a node adds two values, neither of them constant, for a norm to read."""
    variable = all(value is not None and not value.is_initializer() for value in node.inputs)
    normed = (use.node.op_type == "LayerNormalization" and use.idx == 0 for use in node.outputs[0].uses())
    return variable and any(normed)


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
    return of_constants(node, file.LAYOUT)


def forget_weight_shapes(graph: onnx.GraphProto) -> None:
    """Drop the value_info of initializers: quantizers and converters change their types and leave it as it was."""
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(kept)
