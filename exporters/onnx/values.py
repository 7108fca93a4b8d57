"""What the rewrites of a graph ask of its values."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir

OWN = "com.microsoft"  # the domain of ONNX Runtime's operators


def constant(value: onnx_ir.Value | None, rank: int) -> bool:
    """Whether a value is a constant with so many axes."""
    return value is not None and value.const_value is not None and len(value.const_value.shape) == rank


def of_constants(node: onnx_ir.Node, kinds: Collection[str]) -> bool:
    """Whether a node of one of these kinds reads constants alone, so that it could be folded."""
    return node.op_type in kinds and all(value is not None and value.is_initializer() for value in node.inputs)


def read_once(value: onnx_ir.Value) -> bool:
    """Whether one node reads a value, and nobody else."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def vector_input(node: onnx_ir.Node) -> int | None:
    """The number of the one input, of two, that is a constant vector."""
    found = [number for number, value in enumerate(node.inputs) if constant(value, rank=1)]
    return found[0] if len(found) == 1 and len(node.inputs) == 2 else None


def new_constant(graph: onnx_ir.Graph, name: str, array: np.ndarray) -> onnx_ir.Value:
    """A constant of a graph under a name that is not taken; one of this name and content that is there already."""
    while (there := graph.initializers.get(name)) is not None:
        if there.const_value is not None and np.array_equal(there.const_value.numpy(), array):
            return there
        name += "_"
    value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
    value.shape, value.dtype = onnx_ir.Shape(array.shape), value.const_value.dtype  # type: ignore[union-attr]
    graph.register_initializer(value)
    return value


def drop_unread(graph: onnx_ir.Graph, value: onnx_ir.Value) -> None:
    """Take a constant out of a graph in which nothing reads it any more."""
    if not value.uses() and not value.is_graph_output():
        del graph.initializers[str(value.name)]
