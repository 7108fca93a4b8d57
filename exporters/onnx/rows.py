"""Only the tokens that something reads: where a classifier reads one token, the last block computes no other.

A `Gather` of one token moves up through what treats every token alone, products, norms and sums, to the queries of the
last attention, whose keys and values are still those of all tokens. The numbers are the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from exporters.onnx.values import OWN, constant, new_constant

AXIS = 1  # of tokens, in (B, T, d)
BIAS = 5  # of MultiHeadAttention (B, 1, T, T), with queries on axis 2
SUMS = frozenset({"Add", "Sum", "Sub", "Mul", "Div"})  # every input that is no vector holds tokens
FIRST = frozenset({"Gelu", "FastGelu", "QuickGelu", "Relu", "Tanh", "Sigmoid", "Erf"})  # only the first does
NORMS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})


def narrow(graph: onnx_ir.Graph) -> None:
    """Move every `Gather` of one token up as far as it goes."""
    for node in list(graph):
        if node.op_type == "Gather" and not node.domain and _axis(node, 0) == AXIS and constant(node.inputs[1], rank=0):
            _narrow(graph, node)


def _narrow(graph: onnx_ir.Graph, gather: onnx_ir.Node) -> None:
    index, alone = gather.inputs[1], _alone(graph, gather)
    assert index is not None and index.const_value is not None  # noqa: PT018
    if not alone:
        return
    one = new_constant(graph, "token", index.const_value.numpy().reshape(1))
    single = {node.outputs[0] for node in alone}  # of one token from now on
    for node in alone:
        places = [(place, AXIS) for place in _tokens(node) if node.inputs[place] not in single]
        if node.op_type == "MultiHeadAttention" and len(node.inputs) > BIAS and node.inputs[BIAS] is not None:
            places.append((BIAS, 2))
        for place, axis in places:
            node.replace_input_with(place, _part(graph, node, place, axis, one))
        node.outputs[0].shape = _with_one_token(node.outputs[0].shape)
    gather.replace_input_with(1, new_constant(graph, "first_token", np.array(0, np.int64)))


def _alone(graph: onnx_ir.Graph, gather: onnx_ir.Node) -> list[onnx_ir.Node]:
    """The nodes that are read at the gathered token only and treat tokens alone, in their order in the graph."""
    read = gather.inputs[0]
    if read is None or read.shape is None or len(read.shape) != 3:
        return []
    tokens, readers = read.shape[AXIS], {gather}
    if isinstance(tokens, onnx_ir.SymbolicDim) and tokens.value is None:
        return []
    for node in reversed(graph):
        if _is_read_by(node, readers) and _treats_alone(node, tokens):
            readers.add(node)
    return [node for node in graph if node in readers - {gather}]


def _is_read_by(node: onnx_ir.Node, readers: set[onnx_ir.Node]) -> bool:
    """Whether only these nodes read a node, its first output, as tokens."""
    output, *others = node.outputs
    if output.is_graph_output() or not output.uses() or any(value.uses() for value in others):
        return False
    return all(use.node in readers and use.idx in _tokens(use.node) for use in output.uses())


def _treats_alone(node: onnx_ir.Node, tokens: int | onnx_ir.SymbolicDim) -> bool:
    """Whether what a node makes of so many tokens it makes of each alone, but for keys and values of attention."""
    inputs = node.inputs
    if not all(_has(inputs[number], tokens) for number in _tokens(node)):
        return False
    if node.op_type == "MultiHeadAttention":
        return node.domain == OWN and len(inputs) <= BIAS + 1 and None not in inputs[:3]
    if node.op_type == "MatMul":
        return constant(inputs[1], rank=2)
    if node.op_type in NORMS:
        return _axis(node, -1) in (-1, 2)
    return node.op_type in SUMS | FIRST


def _tokens(node: onnx_ir.Node) -> list[int]:
    """The inputs that hold tokens, of a node that treats them alone or gathers them."""
    if node.op_type in SUMS:
        return [number for number, value in enumerate(node.inputs) if not _is_vector(value)]
    return [0]


def _is_vector(value: onnx_ir.Value | None) -> bool:
    return constant(value, rank=0) or constant(value, rank=1)


def _has(value: onnx_ir.Value | None, tokens: int | onnx_ir.SymbolicDim) -> bool:
    """Whether a value is (B, T, d) with so many tokens."""
    return value is not None and value.shape is not None and len(value.shape) == 3 and value.shape[AXIS] == tokens


def _part(graph: onnx_ir.Graph, node: onnx_ir.Node, place: int, axis: int, one: onnx_ir.Value) -> onnx_ir.Value:
    """What a node reads, at one token; taken once for all that read it."""
    source = node.inputs[place]
    assert source is not None
    for use in source.uses():
        if use.node.op_type == "Gather" and use.node.inputs[1] is one and _axis(use.node, 0) == axis:
            return use.node.outputs[0]
    gather = onnx_ir.node("Gather", [source, one], {"axis": axis})
    graph.insert_before(node, gather)
    gather.outputs[0].type = source.type
    if axis == AXIS:
        gather.outputs[0].shape = _with_one_token(source.shape)
    return gather.outputs[0]


def _with_one_token(shape: onnx_ir.Shape | None) -> onnx_ir.Shape | None:
    return None if shape is None else onnx_ir.Shape([1 if axis == AXIS else size for axis, size in enumerate(shape)])


def _axis(node: onnx_ir.Node, default: int) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else default
