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
    """A product with a constant matrix: the names of what it multiplies, and which axis of the matrix it sums over."""

    inputs: str
    weight: str
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
    products = [one for one in products_of(model.graph) if one.weight not in but]
    widths = {one.inputs: _inner(model.graph, one) for one in products}
    energies = _energies(source, widths, samples) if widths else {}
    for name, readers in itertools.groupby(sorted(products, key=_weight), key=_weight):
        together, value = list(readers), model.graph.initializers[name]
        weight = value.const_value
        assert weight is not None  # what products_of looked at
        energy = np.sum([energies[one.inputs] for one in together], axis=0)  # (k,)
        make = partial(_narrowed, weight, together[0].axis, energy, block, bits)
        shape = onnx_ir.Shape(weight.numpy().shape)
        value.const_value = onnx_ir.LazyTensor(make, weight.dtype, shape, name=name)  # made as it is written
    onnx_prepare.save(model, target)


def products_of(graph: onnx_ir.Graph) -> list[Product]:
    """The products with a matrix of floats that nothing but products read, all along one axis of it."""
    found = [one for node in graph if (one := _product(node)) is not None]
    axes: dict[str, set[int]] = {}
    for one in found:
        axes.setdefault(one.weight, set()).add(one.axis)
    counts = {name: sum(one.weight == name for one in found) for name in axes}
    return [
        one
        for one in found
        if len(axes[one.weight]) == 1 and len(graph.initializers[one.weight].uses()) == counts[one.weight]
    ]


def _product(node: onnx_ir.Node) -> Product | None:
    if node.op_type not in ("MatMul", "Gemm") or node.domain or not constant(node.inputs[1], 2):
        return None
    inputs, weight = node.inputs[0], node.inputs[1]
    turned: int = node.attributes.get_int("transA", 0)
    if inputs is None or weight is None or not weight.is_initializer() or turned:
        return None
    return Product(str(inputs.name), str(weight.name), node.attributes.get_int("transB", 0))


def _weight(product: Product) -> str:
    return product.weight


def _inner(graph: onnx_ir.Graph, product: Product) -> int:
    weight = graph.initializers[product.weight].const_value
    assert weight is not None
    return int(weight.numpy().shape[product.axis])


def _energies(path: Path, widths: Mapping[str, int], samples: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """E[x^2] (k,) of values (..., k) by their names, but for a factor that all have in common; padding is counted."""
    model = onnx.load(path, load_external_data=False)
    del model.graph.output[:]
    for name, width in widths.items():
        rows, axes = f"{name}_rows", f"{name}_axes"
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, width]), f"{name}_shape"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), axes))
        model.graph.node.append(helper.make_node("Reshape", [name, f"{name}_shape"], [rows]))
        model.graph.node.append(helper.make_node("ReduceSumSquare", [rows, axes], [f"{name}{ENERGY}"], keepdims=0))
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


def _narrowed(
    weight: onnx_ir.TensorProtocol, axis: int, energy: np.ndarray, block: int, bits: int
) -> onnx_ir.TensorProtocol:
    matrix = weight.numpy() if axis else weight.numpy().T  # (n, k)
    rows = max(1, PART // matrix.shape[1])
    parts = [cut(matrix[at : at + rows], energy, block=block, bits=bits) for at in range(0, len(matrix), rows)]
    made = np.concatenate(parts)  # (n, k)
    return onnx_ir.tensor(np.ascontiguousarray(made if axis else made.T), name=weight.name)


def cut(matrix: np.ndarray, energy: np.ndarray, *, block: int, bits: int) -> np.ndarray:
    """A matrix (n, k) whose rows' blocks are cut to the range of `bits` that loses least by the energies (k,)."""
    count, width = matrix.shape
    padding = -width % block
    blocks = np.pad(matrix, ((0, 0), (0, padding))).reshape(count, -1, block)  # (n, b, block)
    weights = np.pad(energy, (0, padding)).reshape(-1, block).astype(np.float32)  # (b, block)
    ends = blocks.min(-1, initial=0), blocks.max(-1, initial=0)  # (n, b) each
    least = np.full(ends[0].shape, np.inf, np.float32)
    low, high = ends
    for shares in itertools.product(KEPT, KEPT):
        bottom, top = (np.float32(share) * end for share, end in zip(shares, ends, strict=True))
        error = np.einsum("nbk,bk->nb", (rounded(blocks, bottom, top, bits) - blocks) ** 2, weights)
        better = error < least
        least, low, high = (np.where(better, *pair) for pair in ((error, least), (bottom, low), (top, high)))
    return np.clip(blocks, low[..., None], high[..., None]).reshape(count, -1)[:, :width]


def rounded(blocks: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int) -> np.ndarray:
    """Blocks (n, b, block) on the equal steps between low and high (n, b), of which one is zero."""
    steps = 2**bits - 1
    scales = (high - low) / steps
    scales = np.where(scales == 0, 1, scales)
    zeros = np.rint(-low / scales)[..., None]
    found: np.ndarray = (np.clip(np.rint(blocks / scales[..., None]) + zeros, 0, steps) - zeros) * scales[..., None]
    return found
