"""OpenVINO IR files, read for what stands in them. Imports no torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from compressor import registry
from exporters.openvino.runtime import PACKAGES

CONSTANT, PRODUCT = "Constant", "MatMul"
# between a stored weight and its product: layout, and what makes numbers of compressed ones
DECOMPRESSION = frozenset({"Convert", "Subtract", "Multiply", "Reshape", "Transpose"})
FACTORS = 2  # inputs of a product


def read(path: Path) -> dict[str, Any]:
    """Facts of the graph at `path`, by the same names as those of an ONNX export.

    `matmul_weight_bytes` counts the constants that are factors of a matrix product, each once, without their scales
    and zero points, so neither biases nor embeddings that are not tied to a head.
    """
    (openvino,) = registry.imported(PACKAGES)
    graph = openvino.Core().read_model(path)
    operators = graph.get_ordered_ops()
    sizes = {one.get_friendly_name(): _bytes(one) for one in operators if one.get_type_name() == CONSTANT}
    products = [one for one in operators if one.get_type_name() == PRODUCT]
    factors = {_source(product.input_value(place)) for product in products for place in range(FACTORS)}
    kinds = Counter(one.get_type_name() for one in operators if one.get_type_name() != CONSTANT)
    return {
        "inputs": [_value(one) for one in graph.inputs],
        "outputs": [_value(one) for one in graph.outputs],
        "nodes": dict(sorted(kinds.items())),
        "initializer_bytes": sum(sizes.values()),
        "matmul_weight_bytes": sum(sizes.get(name, 0) for name in factors),
    }


def _source(output: Any) -> str:
    """The name of the operator that a value comes from, traced back through what only unpacks a stored weight."""
    node = output.get_node()
    while node.get_type_name() in DECOMPRESSION:
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name())


def _bytes(constant: Any) -> int:
    kind, shape = constant.get_output_element_type(0), constant.get_output_shape(0)
    size = kind.bitwidth
    for length in shape:
        size *= length
    return int(-(-size // 8))


def _value(port: Any) -> dict[str, Any]:
    """Name, dtype and axes; a free axis is null, since the IR gives axes no names."""
    axes = [axis.get_length() if axis.is_static else None for axis in port.get_partial_shape()]
    return {"name": port.get_any_name(), "dtype": port.get_element_type().to_dtype().name, "axes": axes}
