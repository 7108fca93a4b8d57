"""Weights rounded so that each makes up for what the ones before it lost, by the task's data: GPTQ.

Of a product y = x W, E|x (W - Q(W))|^2 is the sum over the columns e of W - Q(W) of e^T H e, with H = E[x^T x]. To
round every weight to its nearest step loses least only where the inputs are not correlated, and those of a network are.
So the inputs are taken in turn, and what a weight loses is made good, as far as it can be, by the weights of the inputs
that are still to come (Frantar et al. 2023, arXiv 2210.17323, equations 2 and 3, by the Cholesky factor of H^-1).

The graph stays in fp32: its weights then lie on the very steps that a quantizer finds in them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir
from scipy.linalg import cholesky, lapack

from exporters.base import Arrays
from exporters.onnx import prepare
from exporters.onnx.products import GRAM, Product, array, gathered, products_of
from exporters.onnx.steps import Grid, Steps

DAMPING = 0.01  # of the mean of H's diagonal, added to it
AT_ONCE = 2**27  # numbers of H that are gathered in one pass over the examples, half a GB
CHUNK = 64  # inputs after which the weights of all that are to come are corrected at once


def adjust(
    source: Path, target: Path, samples: Sequence[Arrays], steps: Steps, *, but: Collection[str] = frozenset()
) -> None:
    """Write the fp32 graph `source` as `target`, with the weights of its products on steps.

    Args:
        samples: batches of the model's inputs, of which the first examples are run.
        steps: what the quantizer will round to.
        but: names of weights that stay as they are.

    Raises:
        RuntimeFailure: ONNX Runtime fails on the samples.
    """
    model = onnx_ir.load(source)
    weights = model.graph.initializers
    found = {name: products for name, products in products_of(model.graph).items() if name not in but}
    widths = {one.inputs: array(weights[name]).shape[one.axis] for name, products in found.items() for one in products}
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        for number, (name, gram) in enumerate(_each(source, found, widths, samples)):
            matrix, place = array(weights[name]), Path(scratch) / f"{number}.npy"
            turned = found[name][0].axis
            made = rounded(matrix.T if turned else matrix, gram, steps)  # (k, n)
            np.save(place, made.T if turned else made)  # all of them together are as large as the model
            weights[name].const_value = onnx_ir.LazyTensor(
                partial(_read, place), onnx_ir.DataType.FLOAT, onnx_ir.Shape(matrix.shape), name=name
            )
        prepare.save(model, target)


def _read(place: Path) -> onnx_ir.TensorProtocol:
    return onnx_ir.tensor(np.ascontiguousarray(np.load(place)))


def _each(
    path: Path, found: Mapping[str, Sequence[Product]], widths: Mapping[str, int], samples: Sequence[Arrays]
) -> Iterator[tuple[str, np.ndarray]]:
    """The name of each weight with the sum of x^T x (k, k) over all that it is multiplied with."""
    for names in _groups(found, widths):
        wanted = {one.inputs: widths[one.inputs] for name in names for one in found[name]}
        seen = gathered(path, list(wanted.items()), samples, {"gram": GRAM})
        for name in names:
            yield name, np.sum([seen[one.inputs]["gram"] for one in found[name]], axis=0)


def _groups(found: Mapping[str, Sequence[Product]], widths: Mapping[str, int]) -> Iterator[list[str]]:
    """Weights in their order, as many together as fit into AT_ONCE."""
    names: list[str] = []
    inputs: set[str] = set()
    for name, products in found.items():
        more = inputs | {one.inputs for one in products}
        if names and sum(widths[one] ** 2 for one in more) > AT_ONCE:
            yield names
            names, more = [], {one.inputs for one in products}
        names, inputs = [*names, name], more
    if names:
        yield names


def rounded(matrix: np.ndarray, gram: np.ndarray, steps: Steps) -> np.ndarray:
    """A matrix (k, n) on steps, its rows in turn, by the sum of x^T x (k, k) of what it is multiplied with.

    Where that is not finite, since what stands at padding need not be, each weight goes to the nearest step.
    """
    known = gram if np.isfinite(gram).all() else np.eye(len(gram))
    factor, energy = _factor(known), np.diag(known)
    rest, size = np.array(matrix, np.float32, order="C"), len(matrix)
    width = steps.width or size
    for start in range(0, size, width):
        stop = min(start + width, size)
        grid = steps.of(rest[start:stop], energy[start:stop])
        for first in range(start, stop, CHUNK):
            last = min(first + CHUNK, stop)
            errors = _settle(rest[first:last], factor[first:last, first:last], grid, first - start)
            rest[last:] -= factor[first:last, last:].T @ errors
    return rest


def _settle(rows: np.ndarray, factor: np.ndarray, grid: Grid, start: int) -> np.ndarray:
    """Round rows (c, n) in place, the first being number `start` of its grid; returns what each has lost, (c, n)."""
    errors = np.empty_like(rows)
    for number, row in enumerate(rows):
        made = grid.rounded(row, start + number)
        errors[number] = (row - made) / factor[number, number]
        row[:] = made
        rows[number + 1 :] -= factor[number, number + 1 :, None] * errors[number]
    return errors


def _factor(gram: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor U (k, k) of the inverse of the damped gram: U^T U = H^-1.

    H with its rows and columns in reverse is L L^T, and U is L^-1 with its own in reverse: no inverse is made on the
    way, which takes four times as long.
    """
    damping = DAMPING * np.trace(gram, dtype=np.float64) / len(gram) or 1.0  # inputs that are zero throughout
    while True:
        try:
            lower = cholesky(gram[::-1, ::-1].astype(np.float64) + damping * np.eye(len(gram)), lower=True)
        except np.linalg.LinAlgError:  # float32 sums of strongly correlated inputs need not be positive definite
            damping *= 10
        else:
            inverse, _ = lapack.dtrtri(lower, lower=1)
            found: np.ndarray = inverse[::-1, ::-1].astype(np.float32)
            return found
