"""What stands in an ONNX file: inputs, outputs, operators and the bytes of its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx

PRODUCTS = frozenset({"MatMul", "Gemm", "MatMulInteger"})


def read(path: Path) -> dict[str, Any]:
    """Facts of the graph at `path`, read without its external data.

    `matmul_weight_bytes` counts the initializers that are factors of a matrix product, each once, so neither
    embeddings nor biases.
    """
    graph = onnx.load(path, load_external_data=False).graph
    sizes = {tensor.name: _bytes(tensor) for tensor in graph.initializer}
    return {
        "inputs": [_value(value) for value in graph.input],
        "outputs": [_value(value) for value in graph.output],
        "nodes": dict(sorted(Counter(node.op_type for node in graph.node).items())),
        "initializer_bytes": sum(sizes.values()),
        "matmul_weight_bytes": sum(sizes.get(name, 0) for name in _factors(graph.node)),
    }


def _factors(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes if node.op_type in PRODUCTS for name in node.input[:2]}


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    axes = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
    return {"name": value.name, "dtype": _dtype(tensor.elem_type).name, "axes": axes}


def _bytes(tensor: onnx.TensorProto) -> int:
    size = _dtype(tensor.data_type).itemsize
    for length in tensor.dims:
        size *= length
    return size


def _dtype(element: int) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(element)
