"""What int8 products read, made even: channels divided by scales that the matrix behind them is multiplied with.

Activations have one scale for a whole tensor, so a few channels that are far larger than the others leave those a
handful of steps; weights have one per output. x W is (x / s) (diag(s) W), and s can be chosen so that both are rounded
well (SmoothQuant: Xiao et al. 2023, arXiv 2211.10438, equations 3 and 4: s_k = max|x_k|^a / max|W_k|^(1 - a)). Dividing
costs nothing where something before the product takes it up: the weights of a norm, the matrix that a gate multiplies,
and, of a factorized layer, the factor before. Products that read anything else, or something that others read too, such
as what stands between the blocks of BERT, stay as they are.

The exponent a is chosen for each group of products that read the same value, by what rounding is expected to lose
there; where that is least as it is, nothing is divided. The graph computes the same but for the last bits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir

from exporters.base import Arrays
from exporters.onnx import prepare
from exporters.onnx.products import COUNT, ENERGY, LEAST, MOST, Product, array, gathered, products_of
from exporters.onnx.values import constant, drop_unread, new_constant, read_once, vector_input

EXPONENTS = np.linspace(0.3, 0.9, 7)
QUIET = 0.1  # of the median channel's largest number: what a channel counts as at least
STEPS = 255  # of activations, between the ends of their range
ROWS = 64  # of a matrix, at a time

Place = tuple[onnx_ir.Node, int]  # a node, and the number of its input that is a constant


@dataclass(frozen=True)
class Seen:
    """What products read on the task's data, by channels.

    Attributes:
        least: (k,), at most 0.
        most: (k,), at least 0.
        energy: E[x^2], (k,).
    """

    least: np.ndarray
    most: np.ndarray
    energy: np.ndarray

    @property
    def largest(self) -> np.ndarray:
        """max|x|, (k,)."""
        return np.maximum(-self.least, self.most)


@dataclass(frozen=True)
class Group:
    """Products that read one value, which nothing else reads.

    Attributes:
        value: what they read, (..., k).
        matrices: what they multiply it with, each with the axis that is summed over.
        takers: where the division of `value` is taken up, each a constant whose last axis is that of `value`.
    """

    value: onnx_ir.Value
    matrices: tuple[tuple[onnx_ir.Value, int], ...]
    takers: tuple[Place, ...]

    @property
    def size(self) -> int:
        """Channels of the value."""
        matrix, axis = self.matrices[0]
        return _shape(matrix)[axis]


def smooth(source: Path, target: Path, samples: Sequence[Arrays], levels: int, *, but: Collection[str] = ()) -> None:
    """Write the fp32 graph `source` as `target`, with what its products read made even.

    Args:
        samples: batches of the model's inputs, of which the first examples are run.
        levels: steps of a weight to either side of zero.
        but: names of weights that stay as they are.

    Raises:
        RuntimeFailure: ONNX Runtime fails on the samples.
    """
    model = onnx_ir.load(source)
    groups = groups_of(model.graph, but)
    if groups:
        names = [(str(group.value.name), group.size) for group in groups]
        found = gathered(source, names, samples, {"least": LEAST, "most": MOST, "energy": ENERGY, "count": COUNT})
        for group in reversed(groups):  # a factor's columns are divided for the product behind it before its rows are
            scales = scales_of(_seen(found[str(group.value.name)]), [_turned(*one) for one in group.matrices], levels)
            if scales is not None:
                _divide(model.graph, group, scales)
    prepare.save(model, target)


def groups_of(graph: onnx_ir.Graph, but: Collection[str] = ()) -> list[Group]:
    """All groups whose division is taken up, in the order of the graph."""
    products = {name: found for name, found in products_of(graph).items() if name not in but}
    found = (_group(value, products) for node in graph for value in node.outputs)
    return [group for group in found if group is not None]


def _group(value: onnx_ir.Value, products: Mapping[str, Sequence[Product]]) -> Group | None:
    axes: dict[onnx_ir.Value, int] = {}
    for node, _ in value.uses():
        matrix = node.inputs[1] if len(node.inputs) > 1 else None
        known = products.get(str(matrix.name), ()) if matrix is not None else ()
        if matrix is None or {one.inputs for one in known} != {value.name}:
            return None
        axes[matrix] = known[0].axis
    if not axes or value.is_graph_output():
        return None
    takers = _takers(value, next(_shape(matrix)[axis] for matrix, axis in axes.items()))
    return Group(value, tuple(axes.items()), takers) if takers else None


def _takers(value: onnx_ir.Value | None, size: int) -> tuple[Place, ...]:
    """The constants that have to be divided for a value (..., size) to be; none where that does not do it."""
    node = value.producer() if value is not None else None
    if node is None or node.domain:
        return ()
    number = vector_input(node)
    if node.op_type == "MatMul" and constant(node.inputs[1], rank=2):
        return _fitting(node, (1,), size)
    if node.op_type == "LayerNormalization":
        return _fitting(node, range(1, len(node.inputs)), size)
    if node.op_type == "Relu":
        return _behind(node.inputs[0], size)
    if node.op_type == "Mul":
        fitting = _fitting(node, (number,), size) if number is not None else ()
        return fitting or next(filter(None, (_behind(one, size) for one in reversed(node.inputs))), ())
    if node.op_type == "Add" and number is not None:
        before, vector = _behind(node.inputs[1 - number], size), _fitting(node, (number,), size)
        return before + vector if before and vector else ()
    return ()


def _behind(value: onnx_ir.Value | None, size: int) -> tuple[Place, ...]:
    """The same of a value that one node reads, and nobody else."""
    return _takers(value, size) if value is not None and read_once(value) else ()


def _fitting(node: onnx_ir.Node, numbers: Collection[int], size: int) -> tuple[Place, ...]:
    """Inputs of a node that are constants whose last axis has `size`, if all of them are; a matrix must be its own."""
    fits = all(_fits(node.inputs[number], size) for number in numbers)
    return tuple((node, number) for number in numbers) if fits else ()


def _fits(value: onnx_ir.Value | None, size: int) -> bool:
    if value is None or not (constant(value, 1) or (constant(value, 2) and read_once(value))):
        return False
    return _shape(value)[-1] == size


def _shape(value: onnx_ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())


def _turned(matrix: onnx_ir.Value, axis: int) -> np.ndarray:
    """A matrix as (k, n)."""
    return array(matrix).T if axis else array(matrix)


def _seen(found: Mapping[str, np.ndarray]) -> Seen:
    """What was gathered, with zero in the range, as quantizers have it."""
    return Seen(np.minimum(found["least"], 0), np.maximum(found["most"], 0), found["energy"] / found["count"])


def scales_of(seen: Seen, matrices: Sequence[np.ndarray], levels: int) -> np.ndarray | None:
    """What to divide the channels by, (k,); None where rounding is expected to lose least as it is.

    Args:
        seen: of what the products read; what stands at padding need not be finite, and then nothing is known.
        matrices: (k, n) each.
        levels: steps of a weight to either side of zero.
    """
    if not (np.isfinite(seen.largest).all() and np.isfinite(seen.energy).all()):
        return None
    weights = np.max([np.maximum(one.max(1), -one.min(1)) for one in matrices], 0)  # (k,)
    large, heavy = _floored(seen.largest), _floored(weights)
    tried = [large**exponent / heavy ** (1 - exponent) for exponent in EXPONENTS]
    plain = np.ones(len(large))
    best = min((plain, *tried), key=lambda scales: loss(seen, matrices, levels, scales))
    return None if best is plain else best / np.exp(np.log(best).mean())


def _floored(sizes: np.ndarray) -> np.ndarray:
    """Sizes of channels, those that are hardly used on this data counted as more: on other data they may be."""
    least = QUIET * np.median(sizes)
    return np.maximum(sizes, least if least > 0 else sizes.max() or 1.0).astype(np.float64)


def loss(seen: Seen, matrices: Sequence[np.ndarray], levels: int, scales: np.ndarray) -> float:
    """E|y - Q(y)|^2 of all outputs y of products of x / scales, if rounding errors are even and independent.

    A step of x, d, brings an error of d^2 / 12 into each of its channels, one of a matrix's column into each weight.
    """
    step = ((seen.most / scales).max() - (seen.least / scales).min()) / STEPS
    energy, found = float((seen.energy / scales**2).sum()), 0.0
    for matrix in matrices:
        found += step**2 * float(np.einsum("kn,kn,k->", matrix, matrix, scales**2))
        found += energy * float(np.square(_largest(matrix, scales) / levels).sum())
    return found / 12


def _largest(matrix: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """max|diag(s) W| of each column (n,), some rows at a time."""
    found = np.zeros(matrix.shape[1])
    for start in range(0, len(matrix), ROWS):
        rows = slice(start, start + ROWS)
        found = np.maximum(found, (np.abs(matrix[rows]) * scales[rows, None]).max(0))
    return found


def _divide(graph: onnx_ir.Graph, group: Group, scales: np.ndarray) -> None:
    """Divide what is before the products, and multiply their matrices."""
    for node, number in group.takers:
        value = node.inputs[number]
        assert value is not None
        if constant(value, 1):  # others may read it
            vector = array(value)
            even = new_constant(graph, f"{value.name}_even", (vector / scales).astype(vector.dtype))
            node.replace_input_with(number, even)
            drop_unread(graph, value)
        else:
            _put_off(value, 1 / scales)
    for matrix, axis in group.matrices:
        _put_off(matrix, scales if axis else scales[:, None])


def _put_off(value: onnx_ir.Value, factors: np.ndarray) -> None:
    """Multiply a matrix when it is read: all of them together are as large as the model."""
    old = value.const_value
    assert old is not None
    value.const_value = onnx_ir.LazyTensor(
        partial(_product, old, factors), old.dtype, onnx_ir.Shape(_shape(value)), name=value.name
    )


def _product(tensor: onnx_ir.TensorProtocol, factors: np.ndarray) -> onnx_ir.TensorProtocol:
    numbers = tensor.numpy()
    return onnx_ir.tensor((numbers * factors).astype(numbers.dtype))
