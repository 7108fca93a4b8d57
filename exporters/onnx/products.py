"""Products with constant matrices in a graph, and statistics of what they read on the task's data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir

from exporters.base import Arrays, Session
from exporters.onnx import file, runtime
from exporters.onnx.values import constant, new_constant

EXAMPLES = 64  # that what products read is gathered on
AXES_ARE_INPUTS = 18  # the opset from which on all reductions take their axes as an input


@dataclass(frozen=True)
class Product:
    """A product with a constant matrix: the name of its inputs, and which axis of the matrix it sums over."""

    inputs: str
    axis: int


@dataclass(frozen=True)
class Statistic:
    """What is gathered of rows (r, k): how a graph computes it of a batch, and numpy of two batches' results."""

    of: Callable[[onnx_ir.Graph, onnx_ir.Value], list[onnx_ir.Node]]
    joined: np.ufunc


def products_of(graph: onnx_ir.Graph) -> dict[str, list[Product]]:
    """Names of matrices that nothing but products read, all along one axis -> those products."""
    found = {}
    for name, value in graph.initializers.items():
        products = [_product(node, place, graph) for node, place in value.uses()] if constant(value, 2) else []
        known = [one for one in products if one is not None]
        if known and len(known) == len(products) and len({one.axis for one in known}) == 1:
            found[name] = known
    return found


def _product(node: onnx_ir.Node, place: int, graph: onnx_ir.Graph) -> Product | None:
    """The product that reads a matrix as its input of this number; None of any other node, or one in a branch."""
    turned: int = node.attributes.get_int("transA", 0)
    if node.op_type not in ("MatMul", "Gemm") or node.domain or place != 1 or turned or node.graph is not graph:
        return None
    (x, *_) = node.inputs
    assert x is not None
    return None if x.is_initializer() else Product(str(x.name), node.attributes.get_int("transB", 0))


def array(value: onnx_ir.Value) -> np.ndarray:
    """A constant's numbers, which stay in the file until they are read."""
    assert value.const_value is not None
    return value.const_value.numpy()


def gathered(
    path: Path, names: Sequence[tuple[str, int]], samples: Sequence[Arrays], statistics: Mapping[str, Statistic]
) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of values x (..., k) over some examples, by the values' names and their own; padding is counted.

    Args:
        path: the fp32 graph, beside which there is room for a copy.
        names: of the values, each with k.
        samples: batches of the model's inputs.
        statistics: by their names.

    Raises:
        RuntimeFailure: ONNX Runtime fails on the samples.
    """
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name, _ in names}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        model = onnx_ir.load(path)
        outputs = _measure(model.graph, names, statistics)
        file.save(model, Path(folder) / runtime.GRAPH)
        del model
        runner = runtime.load(Path(folder), Session(), runtime.ONCE)
        for batch in _drawn(samples):
            for output, result in runner(batch).items():
                name, kind = outputs[output]
                there = found[name].get(kind)
                found[name][kind] = result if there is None else statistics[kind].joined(there, result)
    return found


def _measure(
    graph: onnx_ir.Graph, names: Sequence[tuple[str, int]], statistics: Mapping[str, Statistic]
) -> dict[str, tuple[str, str]]:
    """Have a graph give statistics of values in place of its outputs; these, with the names that they are of."""
    values = {str(value.name): value for value in [*graph.inputs, *(one for node in graph for one in node.outputs)]}
    graph.outputs.clear()
    outputs = {}
    for number, (name, width) in enumerate(names):
        shape = new_constant(graph, f"rows_of_{width}", np.array([-1, width]))
        rows = onnx_ir.node("Reshape", [values[name], shape])  # (r, k)
        graph.append(rows)
        for kind, statistic in statistics.items():
            nodes = statistic.of(graph, rows.outputs[0])
            (result,) = nodes[-1].outputs
            result.name, result.dtype = f"statistic_{number}_{kind}", onnx_ir.DataType.FLOAT
            graph.extend(nodes)
            graph.outputs.append(result)
            outputs[result.name] = name, kind
    return outputs


def _drawn(samples: Sequence[Arrays]) -> Iterator[Arrays]:
    """EXAMPLES rows from all over the samples: the shortest texts come first there."""
    visited = min(len(samples), EXAMPLES)
    for number in range(visited):
        batch = samples[(2 * number + 1) * len(samples) // (2 * visited)]
        size = len(next(iter(batch.values())))
        some = min(size, -(-EXAMPLES // visited))
        rows = np.arange(some) * size // some
        yield {name: array[rows] if array.shape[:1] == (size,) else array for name, array in batch.items()}


def _gram(_: onnx_ir.Graph, rows: onnx_ir.Value) -> list[onnx_ir.Node]:
    turned = onnx_ir.node("Transpose", [rows], {"perm": [1, 0]})  # (k, r)
    return [turned, onnx_ir.node("MatMul", [*turned.outputs, rows])]  # (k, k)


def _reduced(kind: str) -> Callable[[onnx_ir.Graph, onnx_ir.Value], list[onnx_ir.Node]]:
    def of(graph: onnx_ir.Graph, rows: onnx_ir.Value) -> list[onnx_ir.Node]:
        if graph.opset_imports[""] < AXES_ARE_INPUTS:
            return [onnx_ir.node(kind, [rows], {"axes": [0], "keepdims": 0})]  # (k,)
        return [onnx_ir.node(kind, [rows, new_constant(graph, "rows_axis", np.array([0]))], {"keepdims": 0})]  # (k,)

    return of


def _count(_: onnx_ir.Graph, rows: onnx_ir.Value) -> list[onnx_ir.Node]:
    number = onnx_ir.node("Shape", [rows], {"start": 0, "end": 1})  # (1,)
    return [number, onnx_ir.node("Cast", number.outputs, {"to": int(onnx_ir.DataType.FLOAT)})]


GRAM = Statistic(_gram, np.add)  # the sum of x^T x (k, k)
LEAST = Statistic(_reduced("ReduceMin"), np.minimum)  # (k,)
MOST = Statistic(_reduced("ReduceMax"), np.maximum)  # (k,)
ENERGY = Statistic(_reduced("ReduceSumSquare"), np.add)  # the sum of x^2 (k,)
COUNT = Statistic(_count, np.add)  # r (1,)
