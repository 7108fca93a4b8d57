"""Scales of a layer's outputs, such as the LayerScale of vision transformers, multiplied into its weight.

(x @ W + b) * s is x @ (W * s) + b * s: the same numbers but for the last bits. Int8 weights have a scale per output, so
they are rounded as before, and a product over all tokens is saved.
"""

from __future__ import annotations

import onnx_ir

from exporters.onnx.values import constant, new_constant, read_once, vector_input

Place = tuple[onnx_ir.Node, int]  # a node, and the number of one of its inputs


def fold(graph: onnx_ir.Graph) -> None:
    """Multiply what scales the outputs of a layer into its weight and bias."""
    for node in list(graph):
        if node.op_type == "Mul" and not node.domain:
            _fold(node, graph)


def _fold(node: onnx_ir.Node, graph: onnx_ir.Graph) -> None:
    number = vector_input(node)
    if number is None:
        return
    scale, layer = node.inputs[number], node.inputs[1 - number]
    places = _layer(layer)
    for user, place in places:
        _multiply(graph, user, place, scale)
    if places:
        (scaled,) = node.outputs
        name = scaled.name if scaled.is_graph_output() else layer.name  # type: ignore[union-attr]
        onnx_ir.convenience.replace_all_uses_with(scaled, layer, replace_graph_outputs=True)  # type: ignore[arg-type]
        graph.remove(node, safe=True)
        layer.name = name  # type: ignore[union-attr]


def _layer(value: onnx_ir.Value | None) -> list[Place]:
    """Where weight and bias stand if a value is x @ W or x @ W + b and nobody else reads any of it; else nothing."""
    node = value.producer() if value is not None and read_once(value) else None
    if node is not None and node.op_type == "MatMul" and constant(node.inputs[1], rank=2):
        return [(node, 1)]
    number = vector_input(node) if node is not None and node.op_type == "Add" else None
    if node is None or number is None:
        return []
    product = _layer(node.inputs[1 - number])
    return [*product, (node, number)] if product else []


def _multiply(graph: onnx_ir.Graph, node: onnx_ir.Node, number: int, scale: onnx_ir.Value | None) -> None:
    """Give a node its constant times the scale; others that read the constant keep it as it is."""
    old = node.inputs[number]
    assert old is not None and old.const_value is not None  # noqa: PT018
    assert scale is not None and scale.const_value is not None  # noqa: PT018
    product = old.const_value.numpy() * scale.const_value.numpy()
    node.replace_input_with(number, new_constant(graph, f"{old.name}_scaled", product))
