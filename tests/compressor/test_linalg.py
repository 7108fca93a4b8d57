"""Metrics, projections, gauges and rotations, against plain NumPy and SciPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from compressor import linalg
from compressor.metrics import CholeskyMetric, Metric, SecondMoment, SpectralMetric

Moment = Callable[..., Tensor]
SHAPES = [(9, 6), (6, 9), (7, 7), (5, 1), (1, 5)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def basis(d: int, k: int, seed: int) -> Tensor:
    return torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).normal(size=(d, k)))[0])


def root(metric: Metric, size: int) -> np.ndarray:
    """R (d, d) of a metric, read off its action on the identity."""
    return metric.whiten(torch.eye(size, dtype=torch.float64)).numpy()


def weighted_error(error: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    return float(np.trace(a @ error @ b @ error.T))


# ---- second moments and metrics ----


def test_half_the_metric_norm_is_the_second_order_loss_change_of_independent_factors() -> None:
    x, g, error = random(30, 5, seed=1), random(40, 4, seed=2), random(4, 5, seed=3)
    a, b = SecondMoment(g.T @ g / 40).metric(0), SecondMoment(x.T @ x / 30).metric(0)
    first_order = g @ error @ x.T  # (40, 30) loss change g^T E x of every pair: the two are independent
    norm = linalg.whiten(error, a, b).square().sum()
    assert norm.item() == pytest.approx(first_order.square().mean().item(), rel=1e-10)


def test_the_gradient_energy_that_a_core_sees_is_the_product_of_two_traces() -> None:
    x, g, u, v = random(30, 6, seed=1), random(20, 5, seed=2), basis(5, 2, 3), basis(6, 2, 4)
    seen = np.mean([(u.T @ torch.outer(gi, xi) @ v).square().sum().item() for gi in g for xi in x])
    outward, inward = torch.trace(u.T @ (g.T @ g / 20) @ u), torch.trace(v.T @ (x.T @ x / 30) @ v)
    assert seen == pytest.approx((outward * inward).item(), rel=1e-10)


def test_no_basis_sees_more_gradient_energy_than_the_leading_eigenvectors(second_moment: Moment) -> None:
    matrix = second_moment(12, 0)
    top = SecondMoment(matrix).top(3)
    best = torch.trace(top.T @ matrix @ top).item()
    assert best == pytest.approx(np.sort(np.linalg.eigvalsh(matrix.numpy()))[-3:].sum(), rel=1e-10)
    others = [basis(12, 3, seed) for seed in range(50)]
    assert max(torch.trace(u.T @ matrix @ u).item() for u in others) < best


def test_a_moment_is_decomposed_once_however_often_it_is_asked(
    second_moment: Moment, monkeypatch: pytest.MonkeyPatch
) -> None:
    eigh = Mock(wraps=torch.linalg.eigh)
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    moment = SecondMoment(second_moment(6, 0))
    moment.top(2)
    for ridge in (0.01, 0.1):
        moment.metric(ridge)
    assert eigh.call_count == 1


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("diagonal", [False, True])
def test_a_metric_is_the_damped_moment_to_its_power(second_moment: Moment, power: float, diagonal: bool) -> None:
    matrix = second_moment(6, 3)
    r = root(SecondMoment(matrix).metric(0.1, power=power, diagonal=diagonal), 6)
    kept = np.diag(np.diag(matrix)) if diagonal else matrix.numpy()
    damped = kept + 0.1 * np.diag(matrix).mean() * np.eye(6)
    np.testing.assert_allclose(r.T @ r, scipy.linalg.fractional_matrix_power(damped, power), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("diagonal", [False, True])
def test_unwhitening_undoes_whitening(second_moment: Moment, diagonal: bool) -> None:
    metric = SecondMoment(second_moment(7, 1)).metric(0.01, diagonal=diagonal)
    columns = random(7, 3)
    torch.testing.assert_close(metric.unwhiten(metric.whiten(columns)), columns)


@pytest.mark.parametrize("options", [{}, {"power": 0.5}, {"diagonal": True}], ids=str)
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_applying_a_metric_is_its_root_twice(second_moment: Moment, options: dict[str, Any], ridge: float) -> None:
    metric, columns = SecondMoment(second_moment(7, 1)).metric(ridge, **options), random(7, 3)
    r = root(metric, 7)
    np.testing.assert_allclose(metric.apply(columns), r.T @ r @ columns.numpy(), rtol=1e-10)


def test_a_metric_that_is_only_applied_is_not_factorized(
    second_moment: Moment, monkeypatch: pytest.MonkeyPatch
) -> None:
    cholesky = Mock(wraps=torch.linalg.cholesky_ex)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", cholesky)
    short, long = (SecondMoment(second_moment(size, size)).metric(0.01) for size in (6, 20))
    linalg.leading_svd(random(6, 20), short, long, 4)
    linalg.leading_svd(random(20, 6), long, short, 4)
    assert [len(call.args[0]) for call in cholesky.call_args_list] == [6]  # once, though two weights have it


def test_a_moment_that_rounding_made_indefinite_beyond_its_ridge_has_a_root_nonetheless(second_moment: Moment) -> None:
    values = np.array([1.0, 0.5, 0.1, -1e-7])
    q = basis(4, 4, 0).numpy()
    moment = SecondMoment(torch.from_numpy((q * values) @ q.T))
    metric = moment.metric(1e-9)
    assert isinstance(metric, CholeskyMetric)
    assert metric.factor is None
    columns = random(4, 3)
    torch.testing.assert_close(metric.unwhiten(metric.whiten(columns)), columns)
    r = root(metric, 4)
    np.testing.assert_allclose(r.T @ r, (q * values.clip(0)) @ q.T, atol=1e-8)
    weight = random(6, 4)
    left, s, right = linalg.whitened_svd(weight, SpectralMetric.plain(6), metric)
    torch.testing.assert_close(left @ torch.diag(s) @ right, weight, rtol=1e-6, atol=1e-6)


def test_a_forgotten_moment_is_factorized_again(second_moment: Moment) -> None:
    moment = SecondMoment(second_moment(6, 0))
    before = moment.metric(0.01)
    assert moment.metric(0.01) is before
    moment.forget()
    assert moment.metric(0.01) is not before
    np.testing.assert_array_equal(root(moment.metric(0.01), 6), root(before, 6))


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_energy_is_the_squared_norm_of_the_whitened_weight(second_moment: Moment, m: int, n: int) -> None:
    a, b = SecondMoment(second_moment(m, 1)).metric(0.01), SecondMoment(second_moment(n, 2)).metric(0.01)
    whole = linalg.whiten(random(m, n), a, b).square().sum().item()
    assert linalg.energy(random(m, n), a, b) == pytest.approx(whole, rel=1e-10)
    assert linalg.leading_svd(random(m, n), a, b, 1)[3] == pytest.approx(whole, rel=1e-10)


def test_a_moment_of_zeros_gives_the_plain_metric() -> None:
    np.testing.assert_array_equal(root(SecondMoment(torch.zeros(4, 4)).metric(0.01), 4), np.eye(4))


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_singular_moment_without_ridge_still_reproduces_the_weight(second_moment: Moment, diagonal: bool) -> None:
    few = second_moment(8, 0, samples=3)
    few[0], few[:, 0] = 0, 0  # an input that is never active
    metric = SecondMoment(few).metric(0.0, diagonal=diagonal)
    weight = random(5, 8)
    left, s, right = linalg.whitened_svd(weight, SpectralMetric.plain(5), metric)
    torch.testing.assert_close(left @ torch.diag(s) @ right, weight, rtol=1e-6, atol=1e-6)


# ---- approximation in a metric ----


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_truncation_error_is_the_tail_of_the_squared_singular_values(second_moment: Moment, m: int, n: int) -> None:
    a, b = SecondMoment(second_moment(m, 1)).metric(0), SecondMoment(second_moment(n, 2)).metric(0)
    weight = random(m, n)
    left, s, right = linalg.whitened_svd(weight, a, b)
    for rank in range(min(m, n) + 1):
        error = (weight - left[:, :rank] @ torch.diag(s[:rank]) @ right[:rank]).numpy()
        found = weighted_error(error, second_moment(m, 1).numpy(), second_moment(n, 2).numpy())
        assert found == pytest.approx(s[rank:].square().sum().item(), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(("m", "n"), [(96, 40), (40, 96), (64, 64)])
def test_float32_moments_of_outliers_give_the_error_of_a_float64_svd(m: int, n: int) -> None:
    """Two inputs a thousand times the others, as language models have them; against NumPy's SVD of Cholesky roots."""
    x = random(600, n, seed=1) * torch.where(torch.arange(n) < 2, 1e3, 1.0)
    g, weight = random(500, m, seed=2), random(m, n)
    means = [(rows.float().T @ rows.float() / len(rows)) for rows in (g, x)]
    exact = [one.double() + 0.01 * one.double().diagonal().mean() * torch.eye(len(one)) for one in means]
    whitened = cholesky(exact[0]).T @ weight.numpy() @ cholesky(exact[1])
    best = np.linalg.svd(whitened)[1] ** 2
    left, s, right, total = linalg.leading_svd(weight, *(SecondMoment(one).metric(0.01) for one in means), 30)
    assert total == pytest.approx(best.sum(), rel=1e-6)
    for rank in (1, 3, 10, 30):
        rest = (weight - left[:, :rank] @ torch.diag(s[:rank]) @ right[:rank]).numpy()
        assert weighted_error(rest, exact[0].numpy(), exact[1].numpy()) == pytest.approx(best[rank:].sum(), rel=1e-5)


def cholesky(matrix: Tensor) -> np.ndarray:
    return np.linalg.cholesky(matrix.numpy())


def alternating_least_squares(target: np.ndarray, rank: int, restarts: int = 6, rounds: int = 300) -> float:
    """The smallest ||target - L R||^2 found from random starts."""
    best = np.inf
    for seed in range(restarts):
        left = np.random.default_rng(seed).normal(size=(len(target), rank))
        for _ in range(rounds):
            right = np.linalg.lstsq(left, target, rcond=None)[0]
            left = np.linalg.lstsq(right.T, target.T, rcond=None)[0].T
        best = min(best, float(np.sum((target - left @ right) ** 2)))
    return best


@pytest.mark.parametrize("rank", [1, 3])
def test_no_factors_found_by_alternating_least_squares_are_better(second_moment: Moment, rank: int) -> None:
    a, b = second_moment(8, 1), second_moment(6, 2)
    weight = random(8, 6)
    _, s, _ = linalg.whitened_svd(weight, SecondMoment(a).metric(0), SecondMoment(b).metric(0))
    whitened = cholesky(a).T @ weight.numpy() @ cholesky(b)  # another root of the same metric
    searched = alternating_least_squares(whitened, rank)
    assert s[rank:].square().sum().item() == pytest.approx(searched, rel=1e-6)


@pytest.mark.parametrize(("m", "n"), [(9, 6), (6, 9)])
def test_every_prefix_of_a_projection_is_the_least_squares_core(second_moment: Moment, m: int, n: int) -> None:
    a, b, weight = second_moment(m, 1), second_moment(n, 2), random(m, n)
    u, v = basis(m, 4, 5), basis(n, 4, 6)
    left, core, right = linalg.project(weight, u, v, SecondMoment(a).metric(0), SecondMoment(b).metric(0))
    ra, rb = cholesky(a).T, cholesky(b).T
    for rank in range(1, 5):
        design = np.kron(ra @ u[:, :rank].numpy(), rb @ v[:, :rank].numpy())  # (m n, r r)
        best = np.linalg.lstsq(design, (ra @ weight.numpy() @ rb.T).ravel(), rcond=None)[0].reshape(rank, rank)
        found = left[:, :rank] @ core[:rank, :rank] @ right[:rank]
        np.testing.assert_allclose(found, u[:, :rank].numpy() @ best @ v[:, :rank].numpy().T, atol=1e-9)


def test_between_plain_unions_the_core_is_the_singular_values_beside_a_small_rest() -> None:
    """The structure theorem: cross blocks vanish, and s_j of the rest is at most s_(k+j) of the weight."""
    weight, k = random(12, 10), 3
    p, s, qt = np.linalg.svd(weight.numpy())
    left = linalg.orthonormalize(torch.cat([torch.from_numpy(p[:, :k]), random(12, k, seed=1)], dim=1))
    right = linalg.orthonormalize(torch.cat([torch.from_numpy(qt[:k].T), random(10, k, seed=2)], dim=1))
    _, core, _ = linalg.project(weight, left, right, SpectralMetric.plain(12), SpectralMetric.plain(10))
    np.testing.assert_allclose(core[:k, :k].abs(), np.diag(s[:k]), atol=1e-12)
    assert core[:k, k:].abs().max() < 1e-12
    assert core[k:, :k].abs().max() < 1e-12
    assert (np.linalg.svd(core[k:, k:].numpy())[1] <= s[k : 2 * k] + 1e-12).all()


@pytest.mark.parametrize("seed", range(5))
def test_prefix_gains_fall_and_never_understate_what_a_prefix_explains(seed: int) -> None:
    core = random(7, 7, seed=seed)
    gains = linalg.prefix_gains(core).numpy()
    explained = [np.sum(core.numpy()[:r, :r] ** 2) for r in range(1, 8)]
    assert (np.diff(gains) <= 1e-12).all()
    assert (gains.cumsum() >= np.array(explained) - 1e-12).all()
    assert gains.sum() == pytest.approx(explained[-1])


def test_prefix_gains_of_a_diagonal_core_are_its_squares() -> None:
    gains = linalg.prefix_gains(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    assert gains.tolist() == [9.0, 4.0, 1.0]


# ---- unions of bases ----


def test_prefixes_of_a_union_give_the_secondary_basis_its_share() -> None:
    primary, secondary = basis(40, 16, 1), basis(40, 16, 2)
    union = linalg.interleave(primary, secondary, 0.25)
    for count in range(1, 17):
        taken = count // 4
        expected = np.concatenate([primary[:, : count - taken], secondary[:, :taken]], axis=1)
        outside = expected - union[:, :count].numpy() @ (union[:, :count].numpy().T @ expected)
        assert np.abs(outside).max() < 1e-10
    torch.testing.assert_close(union.T @ union, torch.eye(16, dtype=torch.float64))


def test_a_share_of_zero_is_the_primary_basis_alone() -> None:
    primary = basis(10, 4, 1)
    union = linalg.interleave(primary, basis(10, 4, 2), 0.0)
    torch.testing.assert_close(union @ union.T, primary @ primary.T)


def test_directions_that_both_bases_hold_are_counted_once() -> None:
    primary = basis(10, 6, 1)
    assert linalg.interleave(primary, primary[:, :6], 0.5).shape == (10, 3)


def test_a_dependent_column_takes_no_direction_from_a_later_one() -> None:
    e = torch.eye(3, dtype=torch.float64)
    found = linalg.orthonormalize(torch.stack([e[0], e[0], e[1], e[0] + e[1], e[2]], dim=1))
    torch.testing.assert_close(found.abs(), e)


def test_a_nearly_dependent_column_is_left_out_and_the_rest_stays_orthonormal() -> None:
    columns = basis(20, 8, 1)
    columns[:, 4] = columns[:, :3].sum(1) + 1e-6 * columns[:, 4]
    found = linalg.orthonormalize(columns)
    assert found.shape == (20, 7)
    torch.testing.assert_close(found.T @ found, torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-12)


# ---- gauges of a product ----


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_canonical_form_keeps_the_product_and_sorts_the_core(m: int, n: int) -> None:
    rank = min(m, n)
    left, core, right = random(m, rank), random(rank, rank, seed=1), random(rank, n, seed=2)
    u, s, v = linalg.canonical(left.float(), core.float(), right.float())
    product = left.float().numpy().astype(float) @ core.float().numpy() @ right.float().numpy()
    np.testing.assert_allclose(u @ s @ v, product, atol=1e-6)
    np.testing.assert_allclose(u.T @ u, np.eye(rank), atol=1e-12)
    np.testing.assert_allclose(v @ v.T, np.eye(rank), atol=1e-12)
    np.testing.assert_allclose(s.diagonal(), np.linalg.svd(product)[1][:rank], rtol=1e-5)
    assert torch.equal(s, torch.diag(s.diagonal()))


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_principal_axes_of_bases_with_unit_moments_are_those_of_the_metrics(rank: int) -> None:
    weight, ga, gb = random(9, 6), random(30, 9, seed=1), random(30, 6, seed=2)
    a, b = SecondMoment(ga.mT @ ga / 30), SecondMoment(gb.mT @ gb / 30)
    left, s, right = linalg.whitened_svd(weight, a.metric(0), b.metric(0))
    kept = left[:, :rank], torch.diag(s[:rank]), right[:rank]
    u, core, v = linalg.principal(*kept)
    np.testing.assert_allclose(u @ core @ v, kept[0] @ kept[1] @ kept[2], atol=1e-12)
    for axes, moment in ((u, a), (v.mT, b)):
        np.testing.assert_allclose(axes.mT @ axes, np.eye(rank), atol=1e-12)
        seen = (axes.mT @ moment.matrix @ axes).numpy()
        np.testing.assert_allclose(seen, np.diag(np.diag(seen)), atol=1e-12)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_balanced_factors_have_equal_singular_values(m: int, n: int) -> None:
    rank = min(m, n, 4)
    left, core, right = random(m, rank), random(rank, rank, seed=1), random(rank, n, seed=2)
    down, up = linalg.balance(left, core, right)
    product = left.numpy() @ core.numpy() @ right.numpy()
    expected = np.sqrt(np.linalg.svd(product)[1][:rank])
    np.testing.assert_allclose(up @ down, product, atol=1e-12)
    for factor in (down, up):
        np.testing.assert_allclose(np.linalg.svd(factor.numpy())[1], expected, rtol=1e-9)


PIVOTS = [(9, 6, 3), (6, 9, 3), (8, 8, 1), (8, 5, 5), (5, 8, 5), (6, 6, 6)]  # the last two keep every row


@pytest.mark.parametrize(("m", "n", "rank"), PIVOTS)
@pytest.mark.parametrize("deficient", [False, True])
def test_the_pivoted_gauge_is_lossless_smaller_and_bounded(m: int, n: int, rank: int, deficient: bool) -> None:
    up, down = random(m, rank), random(rank, n, seed=1)
    if deficient:
        up[:, -1] = 0
    pivots, kept, coefficients = linalg.pivot(up, down)
    product = up.numpy() @ down.numpy()
    np.testing.assert_allclose(np.concatenate([kept, coefficients @ kept]), product[pivots], atol=1e-10)
    assert sorted(pivots.tolist()) == list(range(m))
    assert kept.numel() + coefficients.numel() == rank * (m + n) - rank * rank
    assert not coefficients.numel() or coefficients.abs().max() <= 1.5


def test_pivots_are_swapped_where_elimination_alone_leaves_a_large_coefficient() -> None:
    up = random(60, 20)
    lower = scipy.linalg.lu(scipy.linalg.qr(up.numpy(), mode="economic")[0])[1]  # (60, 20)
    assert np.abs(lower[20:] @ np.linalg.inv(lower[:20])).max() > 1.5
    _, kept, coefficients = linalg.pivot(up, torch.eye(20), bound=1.05)
    assert coefficients.abs().max() <= 1.05
    assert np.linalg.matrix_rank(kept.numpy()) == 20


# ---- rotations ----


def skew(rank: int, seed: int = 0) -> Tensor:
    lower = torch.tril(random(rank, rank, seed=seed), -1)
    return lower - lower.T


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_cayley_gives_the_rotation_of_the_paper(rank: int) -> None:
    q, identity = skew(rank), np.eye(rank)
    rotation = linalg.cayley(q).numpy()
    np.testing.assert_allclose(rotation, (identity - q.numpy()) @ np.linalg.inv(identity + q.numpy()), atol=1e-12)
    np.testing.assert_allclose(rotation @ rotation.T, identity, atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_cayley_of_zero_is_the_identity() -> None:
    assert torch.equal(linalg.cayley(torch.zeros(4, 4)), torch.eye(4))


def test_cayley_turns_back_with_the_opposite_sign() -> None:
    torch.testing.assert_close(linalg.cayley(skew(5)) @ linalg.cayley(-skew(5)), torch.eye(5, dtype=torch.float64))
