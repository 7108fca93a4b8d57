"""ONNX files: saved in one rule, and read for what stands in them. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir

LARGE = 256_000_000  # bytes of weights above which they lie beside the graph, written and read without a copy
PRODUCTS = frozenset({"MatMul", "Gemm", "MatMulInteger"})
BLOCKWISE = "MatMulNBits"  # its weight is the second input, with scales and zero points behind it
LAYOUT = frozenset({"Transpose", "Cast"})  # between a weight and its product they change no number of it


def save(model: onnx_ir.Model, path: Path) -> None:
    """Write the graph with its weights inside, or beside it in one `<path>.data` where they are large."""
    weights = (value.const_value for value in model.graph.initializers.values())
    large = sum(tensor.nbytes for tensor in weights if tensor is not None) > LARGE
    if large:
        onnx_ir.save(model, path, external_data=f"{path.name}.data")
    else:
        onnx_ir.save(onnx_ir.external_data.load_to_model(model), path)


def read(path: Path) -> dict[str, Any]:
    """Facts of the graph at `path`, read without its external data.

    `matmul_weight_bytes` counts the initializers that are factors of a matrix product, each once, so neither
    biases nor embeddings that are not tied to a head.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    sizes = {tensor.name: _bytes(tensor) for tensor in graph.initializer}
    weights = {*sizes, *(tensor.values.name for tensor in graph.sparse_initializer)}  # older graphs list them as inputs
    return {
        "opset": next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx")),
        "inputs": [_value(value) for value in graph.input if value.name not in weights],
        "outputs": [_value(value) for value in graph.output],
        "nodes": dict(sorted(Counter(node.op_type for node in graph.node).items())),
        "initializer_bytes": sum(sizes.values()),
        "matmul_weight_bytes": sum(sizes.get(name, 0) for name in _factors(graph.node)),
    }


def _factors(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """What the matrix products read, traced back through changes of layout."""
    sources: dict[str, str] = {}
    factors = set()
    for node in nodes:  # in topological order
        if node.op_type in LAYOUT or node.op_type == "DequantizeLinear":
            sources[node.output[0]] = sources.get(node.input[0], node.input[0])
        elif node.op_type in PRODUCTS:
            factors |= {sources.get(name, name) for name in node.input[:2]}
        elif node.op_type == BLOCKWISE:
            factors |= set(node.input[1:])
    return factors


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    axes = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
    return {"name": value.name, "dtype": _dtype(tensor.elem_type).name, "axes": axes}


def _bytes(tensor: onnx.TensorProto) -> int:
    return math.ceil(math.prod(tensor.dims) * onnx_ir.DataType(tensor.data_type).itemsize)  # int4: half a byte each


def _dtype(element: int) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(element)
