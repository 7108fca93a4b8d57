"""The range that each block of a few bits spans, chosen for the least error on the task's data.

The steps of a block reach from its least to its greatest number. Where both ends are cut off, few numbers lose more and
all others lose less. Of a product y = W x with inputs that are not correlated, E[(y - Q(W) x)^2] is the sum over the
weights of E[x_k^2] (W_k - Q(W_k))^2, which is what a range is chosen by.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
from onnx import helper, numpy_helper

from exporters import onnx_prepare, onnx_runtime
from exporters.base import Arrays, Session
from exporters.onnx_values import constant

KEPT = np.linspace(1, 0.55, 6)  # of an end of the range; both ends are cut apart from each other
EXAMPLES = 64  # that inputs are squared on
PART = 2**20  # weights that ranges are looked for at once
ENERGY = "_energy"  # ends the name of E[x^2], behind the name of x


@dataclass(frozen=True)
class Product:
    """A product with a constant matrix: the name of its inputs, and which axis of the matrix it sums over."""

    inputs: str
    axis: int


def narrow(
    source: Path, target: Path, samples: Sequence[Arrays], *, block: int, bits: int, but: Collection[str]
) -> None:
    """Write the prepared graph `source` as `target`, with blocks cut to the ranges that lose least.

    A quantizer that takes a block's least and greatest number for its range then finds these ranges.

    Args:
        samples: batches of the model's inputs, of which the first examples are run.
        block: weights to a range.
        bits: of a weight.
        but: names of weights that stay as they are.

    Raises:
        RuntimeFailure: ONNX Runtime fails on the samples.
    """
    model = onnx_ir.load(source)
    weights = model.graph.initializers
    found = {name: products for name, products in products_of(model.graph).items() if name not in but}
    widths = {one.inputs: _array(weights[name]).shape[one.axis] for name, products in found.items() for one in products}
    energies = _energies(source, widths, samples) if widths else {}
    for name, products in found.items():
        array = _array(weights[name])
        energy = np.sum([energies[one.inputs] for one in products], axis=0)  # (k,)
        make = partial(_narrowed, array, products[0].axis, energy, block, bits)  # called when it is written
        weights[name].const_value = onnx_ir.LazyTensor(
            make, onnx_ir.DataType.FLOAT, onnx_ir.Shape(array.shape), name=name
        )
    onnx_prepare.save(model, target)


def products_of(graph: onnx_ir.Graph) -> dict[str, list[Product]]:
    """Names of matrices that nothing but products read, all along one axis -> those products."""
    found = {}
    for name, value in graph.initializers.items():
        products = [_product(node, place) for node, place in value.uses()] if constant(value, 2) else []
        known = [one for one in products if one is not None]
        if known and len(known) == len(products) and len({one.axis for one in known}) == 1:
            found[name] = known
    return found


def _product(node: onnx_ir.Node, place: int) -> Product | None:
    """The product that reads a matrix as its input of this number; None of any other node."""
    turned: int = node.attributes.get_int("transA", 0)
    if node.op_type not in ("MatMul", "Gemm") or node.domain or place != 1 or turned or node.inputs[0] is None:
        return None
    return Product(str(node.inputs[0].name), node.attributes.get_int("transB", 0))


def _array(value: onnx_ir.Value) -> np.ndarray:
    """A constant's numbers, which stay in the file until they are read."""
    assert value.const_value is not None
    return value.const_value.numpy()


def _energies(path: Path, widths: Mapping[str, int], samples: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """E[x^2] (k,) of values (..., k) by their names, but for a factor that all have in common; padding is counted."""
    model = onnx.load(path, load_external_data=False)
    del model.graph.output[:]
    for name, width in widths.items():
        rows, squares, axes = f"{name}_rows", f"{name}_squares", f"{name}_axes"
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, width]), f"{name}_shape"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), axes))
        model.graph.node.append(helper.make_node("Reshape", [name, f"{name}_shape"], [rows]))
        model.graph.node.append(helper.make_node("Mul", [rows, rows], [squares]))  # ReduceSumSquare differs by opset
        model.graph.node.append(helper.make_node("ReduceSum", [squares, axes], [f"{name}{ENERGY}"], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}{ENERGY}", onnx.TensorProto.FLOAT, [width]))
    measuring = path.with_name(onnx_runtime.GRAPH)  # weights that lie beside the graph lie beside this one too
    onnx.save(model, measuring)
    runner = onnx_runtime.load(path.parent, Session(), onnx_runtime.ONCE)
    found = {name: np.zeros(width) for name, width in widths.items()}
    for batch in _first(samples):
        for name, energy in runner(batch).items():
            found[name.removesuffix(ENERGY)] += energy
    measuring.unlink()
    return found


def _first(samples: Sequence[Arrays]) -> Iterator[Arrays]:
    """Batches until there are EXAMPLES."""
    seen = 0
    for batch in samples:
        if seen >= EXAMPLES:
            return
        seen += len(next(iter(batch.values())))
        yield batch


def _narrowed(weight: np.ndarray, axis: int, energy: np.ndarray, block: int, bits: int) -> onnx_ir.TensorProtocol:
    matrix = weight if axis else weight.T  # (n, k)
    rows = max(1, PART // matrix.shape[1])
    parts = [cut(matrix[at : at + rows], energy, block=block, bits=bits) for at in range(0, len(matrix), rows)]
    made = np.concatenate(parts)  # (n, k)
    return onnx_ir.tensor(np.ascontiguousarray(made if axis else made.T))


def cut(matrix: np.ndarray, energy: np.ndarray, *, block: int, bits: int) -> np.ndarray:
    """A matrix (n, k) whose rows' blocks are cut to the range of `bits` that loses least by the energies (k,)."""
    blocks, ends = in_blocks(matrix, block)  # (n, b, block), (n, b) each
    weights = in_blocks(energy[None], block)[0][0].astype(np.float32)  # (b, block)
    least = np.full(ends[0].shape, np.inf, np.float32)
    low, high = ends
    for shares in itertools.product(KEPT, KEPT):
        bottom, top = (np.float32(share) * end for share, end in zip(shares, ends, strict=True))
        error = np.einsum("nbk,bk->nb", (rounded(blocks, bottom, top, bits) - blocks) ** 2, weights)
        better = error < least
        least, low, high = (np.where(better, *pair) for pair in ((error, least), (bottom, low), (top, high)))
    return np.clip(blocks, low[..., None], high[..., None]).reshape(len(matrix), -1)[:, : matrix.shape[1]]


def rounded(blocks: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int) -> np.ndarray:
    """Blocks (n, b, block) on the equal steps between low and high (n, b), of which one is zero."""
    scales, zeros = (one[..., None] for one in grid(low, high, bits))
    found: np.ndarray = (np.clip(np.rint(blocks / scales) + zeros, 0, 2**bits - 1) - zeros) * scales
    return found


def in_blocks(matrix: np.ndarray, block: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """A matrix (n, k) in blocks (n, b, block), the last one padded, and their ends (n, b), between which zero lies."""
    count, width = matrix.shape
    blocks = np.pad(matrix, ((0, 0), (0, -width % block))).reshape(count, -1, block)  # (n, b, block)
    return blocks, (blocks.min(-1, initial=0), blocks.max(-1, initial=0))


def grid(low: np.ndarray, high: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points of equal steps between low and high (n, b), of which one is zero."""
    scales = ((high - low) / (2**bits - 1)).astype(np.float32)
    scales[scales == 0] = 1
    return scales, np.rint(-low / scales)
