"""Leading eigenpairs of a positive semidefinite matrix: exact, or by a randomized range finder whose error is checked.

The range finder is subspace iteration from a random start (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm
4.4) with more columns than are asked for. It is tried where few directions of a large matrix are wanted, and given up
for the exact decomposition where its error estimate stays above the tolerance, as it does on a flat spectrum.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGE, FEW = 512, 8  # from this size on, and up to one direction in so many, a range finder is cheaper
ROUNDS = 8  # products with the matrix; what needs more costs as much as the exact decomposition
TOLERANCE = 1e-4  # of the energy that the best directions leave
TINY = torch.finfo(torch.float64).tiny
Pairs = tuple[Tensor, Tensor]


def leading(matrix: Tensor, count: int) -> Pairs:
    """The `count` largest eigenvalues (k,), descending and not negative, and eigenvectors (d, k), float64.

    What the eigenvectors leave of the trace exceeds the least that is possible by no more than `TOLERANCE` of it, up to
    the error of `sketched`. The same matrix gives the same pairs.
    """
    count = min(count, len(matrix))
    found = sketched(matrix, count) if len(matrix) >= LARGE and count * FEW <= len(matrix) else None
    return found or exact(matrix, count)


def exact(matrix: Tensor, count: int) -> Pairs:
    """The same from the whole decomposition, in float64."""
    wide = matrix.double()
    values, vectors = torch.linalg.eigh((wide + wide.mT) / 2)
    return values.flip(0)[:count].clamp_min(0), vectors.flip(1)[:, :count]


def sketched(matrix: Tensor, count: int, seed: int = 0) -> Pairs | None:
    """The same by a range finder; None where the error estimate stays above the tolerance.

    A Ritz value is below its eigenvalue by at most `|residual|^2 / gap`, the gap being the distance to what the basis
    has not found (the quadratic residual bound: Mathias, SIAM J. Matrix Anal. Appl. 19, 1998). The smallest Ritz value
    of the larger basis stands for that: a random start misses a larger eigenvalue with a chance of almost nothing.
    """
    size = count + count // 2 + 8
    wide, draws = matrix.double(), torch.Generator().manual_seed(seed)
    image = wide @ torch.randn(len(wide), size, dtype=torch.float64, generator=draws).to(wide.device)  # (d, l)
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(image).Q  # (d, l)
        image = wide @ basis
        values, turn = (part.flip(-1) for part in torch.linalg.eigh(basis.mT @ image))  # (l,), (l, l)
        vectors = basis @ turn[:, :count]  # (d, k)
        residuals = (image @ turn[:, :count] - vectors * values[:count]).square().sum(0)  # (k,)
        excess = (residuals / (values[:count] - values[-1]).clamp_min(TINY)).sum()
        if excess <= TOLERANCE * (wide.trace() - values[:count].sum()):
            return values[:count].clamp_min(0), vectors
    return None
