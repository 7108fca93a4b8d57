"""Pure functions on tensors: whitened decompositions, unions of bases, projections, Cayley, the pivoted gauge.

Notation: a weight W is (m, n) = (out_features, in_features); `compressor.metrics` says what weighs it, and how.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.concave import concave_slopes
from compressor.leading import leading
from compressor.metrics import Metric

TINY, EPSILON = torch.finfo(torch.float64).tiny, torch.finfo(torch.float64).eps


def whiten(weight: Tensor, output: Metric, input: Metric) -> Tensor:
    """R_A W R_B^T (m, n)."""
    return input.whiten(output.whiten(weight.double()).mT).mT


def energy(weight: Tensor, output: Metric, input: Metric) -> float:
    """||R_A W R_B^T||_F^2, without the roots."""
    wide = weight.double()
    return float((output.apply(wide) * input.apply(wide.mT).mT).sum())


def leading_svd(weight: Tensor, output: Metric, input: Metric, limit: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """The first `limit` directions of `whitened_svd`, and the sum of all squared singular values.

    By the eigenvectors of the Gram matrix of the shorter side, so that the longer side's metric is only multiplied by:
    with H = R_A W for m < n, H B H^T = P S^2 P^T, and the best approximation of rank r is R_A^-1 P_r P_r^T H. In
    float64 that leaves squared singular values an error of 1e-16 of the largest, of 1e-8 where `input` or `output`
    multiplies in float32.
    """
    if weight.shape[0] >= weight.shape[1]:  # of a square weight the input, whose factor other targets share
        right, s, left, total = _of_wide(weight.double().mT, input, output, limit)
        return left.mT, s, right.mT, total
    return _of_wide(weight.double(), output, input, limit)


def _of_wide(weight: Tensor, short: Metric, long: Metric, limit: int) -> tuple[Tensor, Tensor, Tensor, float]:
    half = short.whiten(weight)  # (m, n)
    gram = half @ long.apply(half.mT)  # (m, m)
    values, p = leading(gram, limit)
    s = values.clamp_min(EPSILON * float(values[0])).clamp_min(TINY).sqrt()  # (k,)
    return short.unwhiten(p), s, (p.mT @ half) / s[:, None], max(float(gram.trace()), float(values.sum()))


def whitened_svd(weight: Tensor, output: Metric, input: Metric) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of the best approximations of W in a metric, for every rank at once.

    `left[:, :r] @ diag(s[:r]) @ right[:r]` minimizes ||R_A (W - X) R_B^T||_F over all X of rank r, and the squared
    error is `sum(s[r:] ** 2)` (Eckart-Young after whitening: SVD-LLM, arXiv 2403.07378, for A = I; GFWSVD, arXiv
    2505.17974, for both).

    Returns:
        left (m, k), s (k,) descending, right (k, n), float64, k = min(m, n).
    """
    return leading_svd(weight, output, input, min(weight.shape))[:3]


def project(
    weight: Tensor, left_basis: Tensor, right_basis: Tensor, output: Metric, input: Metric
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted least-squares core of W between two ordered bases, for every prefix at once.

    For each r, `left[:, :r] @ core[:r, :r] @ right[:r]` minimizes ||R_A (W - U_r C V_r^T) R_B^T||_F over C, where U_r
    and V_r are the first r columns of the bases (m, k) and (n, k): C = (U^T A U)^-1 U^T A W B V (V^T B V)^-1.
    Gram-Schmidt in the metric keeps the spans of the prefixes, so that one factorization serves all ranks.

    Returns:
        left (m, k), core (k, k), right (k, n), float64.
    """
    u = torch.linalg.qr(output.whiten(left_basis)).Q  # (m, k)
    v = torch.linalg.qr(input.whiten(right_basis)).Q  # (n, k)
    core = u.mT @ whiten(weight, output, input) @ v  # (k, k)
    return output.unwhiten(u), core, input.unwhiten(v).mT


def prefix_gains(core: Tensor) -> Tensor:
    """What each further row and column of a core (k, k) adds to its squared norm, made non-increasing, (k,).

    The squared norm of a leading block is what a prefix of the bases explains. Directions of a union come in no strict
    order, so their gains are replaced by the slopes of the concave envelope (which a greedy allocation needs).
    """
    squares = core.square()
    corner = squares.cumsum(0).cumsum(1).diagonal()  # (k,) squared norm of each leading block
    rises = torch.diff(corner, prepend=corner.new_zeros(1)).tolist()
    return torch.tensor(concave_slopes(rises, [1.0] * len(rises)), dtype=core.dtype)


def interleave(primary: Tensor, secondary: Tensor, share: float, tolerance: float = 1e-4) -> Tensor:
    """An orthonormal basis whose prefixes spend `share` of their directions on `secondary`, the rest on `primary`.

    Both are (d, k) with columns in order of importance. Columns whose part outside the span of their predecessors is
    below `tolerance` of their norm are left out (the orthogonal union).

    Returns:
        (d, p) with p <= k, orthonormal, float64.
    """
    count = primary.shape[1]
    taken = (torch.arange(1, count + 1, dtype=torch.float64) * share + 1e-9).floor().long()  # of secondary, so far
    from_secondary = torch.diff(taken, prepend=taken.new_zeros(1)).bool()  # (k,)
    columns = primary.double()[:, (torch.arange(count) - taken)]  # (d, k)
    columns[:, from_secondary] = secondary.double()[:, : int(taken[-1])]
    return orthonormalize(columns, tolerance)


def orthonormalize(columns: Tensor, tolerance: float = 1e-4) -> Tensor:
    """Gram-Schmidt in the given order; dependent columns are left out. (d, k) -> (d, p), p <= min(d, k)."""
    unit = columns.double() / columns.double().norm(dim=0).clamp_min(TINY)
    q, r = torch.linalg.qr(unit)
    return q if (r.diagonal().abs() > tolerance).all() else _independent(unit, tolerance)


def _independent(unit: Tensor, tolerance: float) -> Tensor:
    """Gram-Schmidt column by column: QR gives a dependent column a direction that a later one may need."""
    basis = unit[:, :0]
    for column in unit.mT:
        rest = column - basis @ (basis.mT @ column)
        if rest.norm() > tolerance:
            rest = rest - basis @ (basis.mT @ rest)  # a second pass, for what rounding left in the first
            basis = torch.cat([basis, (rest / rest.norm())[:, None]], dim=1)  # (d, p)
    return basis


def canonical(left: Tensor, core: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same product with orthonormal left (m, r) and right (r, n) and a diagonal core, largest entry first.

    Works in float64 and returns float64.
    """
    ql, rl = torch.linalg.qr(left.double())
    qr, rr = torch.linalg.qr(right.double().mT)
    p, s, qt = torch.linalg.svd(rl @ core.double() @ rr.mT)
    return ql @ p, torch.diag(s), qt @ qr.mT


def principal(left: Tensor, core: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same product with the singular vectors of left (m, r) and right (r, n) as its orthonormal bases.

    Of bases that `project` gives, for which left^T A left and right B right^T are the identity, they are the principal
    axes of the moments between them: left'^T A left' and right' B right'^T are diagonal. The core is dense.

    Works in float64 and returns float64.
    """
    p, s, turn = torch.linalg.svd(left.double(), full_matrices=False)
    other, t, qt = torch.linalg.svd(right.double(), full_matrices=False)
    return p, s[:, None] * (turn @ core.double() @ other) * t, qt


def balance(left: Tensor, core: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors of left @ core @ right with equal norms: down (r, n), up (m, r), float64."""
    u, s, v = canonical(left, core, right)
    root = s.diagonal().sqrt()
    return root[:, None] * v, u * root


def cayley(skew: Tensor) -> Tensor:
    """The rotation (I - Q)(I + Q)^-1 of a skew-symmetric Q (r, r) (PSOFT, arXiv 2505.11235, section 3)."""
    identity = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(identity + skew, identity - skew, left=False)


def pivot(up: Tensor, down: Tensor, bound: float = 1.5) -> tuple[Tensor, Tensor, Tensor]:
    """The pivoted gauge of up @ down: r rows kept as they are, the others as combinations of them.

    W[pivots] = kept and W[others] = coefficients @ kept, with r (m + n) - r^2 numbers in place of r (m + n) (the layout
    of PIFA, arXiv 2501.19090). Pivots are swapped until no coefficient exceeds `bound` (maximal volume: each swap
    multiplies the volume of the pivot rows by more than `bound`, so it ends).

    Returns:
        pivots (m,): row numbers, the kept r first; kept (r, n); coefficients (m - r, r); float64.
    """
    rows, rank = up.shape
    basis = torch.linalg.qr(up.double()).Q  # (m, r)
    permutation, _, _ = torch.linalg.lu(basis)
    order = permutation.argmax(0)  # (m,) rows in pivoting order
    coefficients = torch.linalg.solve(basis[order[:rank]], basis[order[rank:]], left=False)  # (m - r, r)
    while rows > rank and coefficients.abs().max() > bound:
        row, column = divmod(int(coefficients.abs().argmax()), rank)
        order[column], order[rank + row] = order[rank + row].clone(), order[column].clone()
        coefficients = torch.linalg.solve(basis[order[:rank]], basis[order[rank:]], left=False)
    return order, up.double()[order[:rank]] @ down.double(), coefficients
