"""The readings of JACTUS: what a union holds, what it is good for, and where it is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.errors import InputError
from compressor.methods.base import Moment, Moments, Subspace
from compressor.methods.jactus import Jactus
from compressor.metrics import SecondMoment

Build = Callable[..., Moments]


def weight_of(m: int, n: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(m, n)))


def product(subspace: Subspace) -> Tensor:
    return subspace.left @ subspace.core @ subspace.right


def damped(moment: SecondMoment, ridge: float = 0.01) -> np.ndarray:
    matrix = moment.matrix.numpy()
    return matrix + ridge * np.diag(matrix).mean() * np.eye(len(matrix))


def roots(given: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Cholesky roots R^T R of both metrics: not the roots that the code takes."""
    assert given.gradient is not None
    assert given.input is not None
    return np.linalg.cholesky(damped(given.gradient)).T, np.linalg.cholesky(damped(given.input)).T


def truncated_svd(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def share_in_task_space(left: Tensor, moment: SecondMoment) -> float:
    """||U^T E_k||^2 / k for the top-k eigenvectors of E[g g^T], k the rank; chance is k / m."""
    rank = left.shape[1]
    top = np.linalg.eigh(moment.matrix.numpy())[1][:, ::-1][:, :rank]
    return float(np.sum((left.numpy().T @ top) ** 2) / rank)


@pytest.mark.parametrize("rank", [1, 4, 7])
def test_in_the_plain_norm_a_union_that_is_truncated_again_is_no_union(moments: Build, rank: int) -> None:
    """The structure theorem: with k_w >= r weight directions in it, R2 gives the truncated SVD."""
    weight = weight_of(24, 20)
    found = Jactus(reading="R2", metric="plain", union=0.3).subspace(weight, moments(24, 20), 10)  # k_w = 7
    np.testing.assert_allclose(product(found.truncate(rank)), truncated_svd(weight.numpy(), rank), atol=1e-9)


def test_only_a_union_that_is_kept_holds_the_task_directions(moments: Build) -> None:
    m, rank = 48, 8
    overlap: dict[str, list[float]] = {"R1": [], "R2": [], "R4": []}
    for seed in range(4):
        given, weight = moments(m, 40, seed=10 * seed), weight_of(m, 40, seed)
        assert given.gradient is not None
        for reading, metric in (("R1", "plain"), ("R2", "plain"), ("R4", "both")):
            method = Jactus(reading=reading, metric=metric, union=0.5)  # type: ignore[arg-type]
            left = method.subspace(weight, given, 2 * rank).truncate(rank).left
            overlap[reading].append(share_in_task_space(left, given.gradient))
    chance = rank / m
    assert np.mean(overlap["R2"]) < 1.6 * chance
    assert np.mean(overlap["R1"]) > 3 * chance
    assert np.mean(overlap["R4"]) > 3 * chance


@pytest.mark.parametrize("reading", ["R1", "R4"])
def test_a_prefix_of_a_kept_union_spans_its_share_of_task_directions(moments: Build, reading: Any) -> None:
    given = moments(20, 16)
    assert given.gradient is not None
    assert given.input is not None
    short = Jactus(reading=reading, union=0.25).subspace(weight_of(20, 16), given, 12).truncate(8)
    for basis, moment in ((short.left, given.gradient), (short.right.mT, given.input)):
        leading = np.linalg.eigh(moment.matrix.numpy())[1][:, -2:]  # a quarter of 8
        np.testing.assert_allclose(np.linalg.norm(basis.numpy().T @ leading, axis=0), 1, atol=1e-9)


@pytest.mark.parametrize("reading", ["R1", "R4"])
def test_the_rest_of_a_prefix_is_the_weights_plain_or_whitened_directions(moments: Build, reading: Any) -> None:
    weight, given = weight_of(20, 16), moments(20, 16)
    short = Jactus(reading=reading, union=0.25).subspace(weight, given, 12).truncate(8)
    ra, rb = (np.eye(20), np.eye(16)) if reading == "R1" else roots(given)
    p, _, qt = np.linalg.svd(ra @ weight.numpy() @ rb.T)
    for basis, directions in (
        (short.left.numpy(), np.linalg.solve(ra, p[:, :6])),
        (short.right.mT.numpy(), np.linalg.solve(rb, qt[:6].T)),
    ):
        np.testing.assert_allclose(basis @ (basis.T @ directions), directions, atol=1e-8 * np.abs(directions).max())


def test_r2_is_the_best_approximation_inside_its_union(moments: Build) -> None:
    """Eq. (3), against alternating least squares over the two factors from random starts."""
    weight, given, limit, rank = weight_of(10, 9), moments(10, 9), 6, 2
    assert given.gradient is not None
    assert given.input is not None
    ra, rb = roots(given)
    p, _, qt = np.linalg.svd(weight.numpy())
    tasks = [np.linalg.eigh(moment.matrix.numpy())[1][:, -3:] for moment in (given.gradient, given.input)]
    u, v = ra @ np.hstack([p[:, :3], tasks[0]]), rb @ np.hstack([qt[:3].T, tasks[1]])  # (m, 6), (n, 6)
    target, best = ra @ weight.numpy() @ rb.T, np.inf
    for seed in range(20):
        left = np.random.default_rng(seed).normal(size=(6, rank))
        for _ in range(200):
            right = np.linalg.lstsq(u @ left, target, rcond=None)[0]  # (r, n), then into the span of v
            right = np.linalg.lstsq(v, right.T, rcond=None)[0].T  # (r, 6)
            left = np.linalg.lstsq((right @ v.T).T, target.T, rcond=None)[0].T
            left = np.linalg.lstsq(u, left, rcond=None)[0]
        best = min(best, float(np.sum((target - u @ left @ right @ v.T) ** 2)))
    found = Jactus(reading="R2", union=0.5).subspace(weight, given, limit)
    error = np.sum((ra @ (weight - product(found.truncate(rank))).numpy() @ rb.T) ** 2)
    assert error == pytest.approx(best, rel=1e-6)
    assert found.total - found.gains[:rank].sum().item() == pytest.approx(best / 2, rel=1e-6)


@pytest.mark.parametrize(("union", "task_only"), [(0.0, False), (1 - 1e-9, True)])
def test_r3_goes_from_the_weighted_weight_to_the_task_alone(moments: Build, union: float, task_only: bool) -> None:
    weight, given, rank = weight_of(12, 10), moments(12, 10), 4
    assert given.gradient is not None
    assert given.input is not None
    w, sg, sx = weight.numpy(), given.gradient.matrix.numpy(), given.input.matrix.numpy()
    grams = (sg, sx) if task_only else (w @ sx @ w.T, w.T @ sg @ w)
    short = Jactus(reading="R3", union=union).subspace(weight, given, 8).truncate(rank)
    for basis, gram in zip((short.left.numpy(), short.right.mT.numpy()), grams, strict=True):
        leading = np.linalg.eigh(gram)[1][:, -rank:]
        np.testing.assert_allclose(basis @ basis.T, leading @ leading.T, atol=1e-5)


@pytest.mark.parametrize("method", [Jactus(), Jactus("R1"), Jactus("R3"), Jactus(metric="input"), Jactus(union=0.5)])
def test_jactus_without_moments_says_what_to_do(method: Jactus) -> None:
    with pytest.raises(InputError, match="calibrate"):
        method.subspace(weight_of(5, 4), Moments(), 2)


@pytest.mark.parametrize(("metric", "needed"), [("plain", set()), ("input", {Moment.INPUT}), ("both", {*Moment})])
def test_only_a_union_asks_for_moments_that_its_metric_does_not_use(metric: Any, needed: set[Moment]) -> None:
    assert Jactus(metric=metric).needs() == needed
    assert Jactus(metric=metric, union=0.1).needs() == Jactus("R1", metric=metric).needs() == {*Moment}


@pytest.mark.parametrize(("reading", "share"), [("R1", 0.1), ("R2", 0.1), ("R3", 0.1), ("R4", 0.0)])
def test_the_published_readings_have_a_union_and_the_default_has_none(
    moments: Build, reading: Any, share: float
) -> None:
    weight, given = weight_of(24, 20), moments(24, 20)
    found, named = (method.subspace(weight, given, 10) for method in (Jactus(reading), Jactus(reading, union=share)))
    assert torch.equal(found.left, named.left)
    assert torch.equal(found.core, named.core)
    assert Jactus() == Jactus("R4")


@pytest.mark.parametrize("method", [Jactus(), Jactus("R1"), Jactus("R2"), Jactus("R3"), Jactus(union=0.3)], ids=str)
def test_turned_to_the_moments_axes_a_core_reads_uncorrelated_inputs(moments: Build, method: Jactus) -> None:
    weight, given = weight_of(24, 20), moments(24, 20)
    turned = replace(method, axes="moments").subspace(weight, given, 12).truncate(6)
    plain = method.subspace(weight, given, 12).truncate(6)
    torch.testing.assert_close(product(turned), product(plain))
    torch.testing.assert_close(turned.left.mT @ turned.left, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(turned.right @ turned.right.mT, torch.eye(6, dtype=torch.float64))
    assert given.gradient is not None
    assert given.input is not None
    for basis, moment in ((turned.left, given.gradient), (turned.right.mT, given.input)):
        seen = (basis.mT @ moment.matrix.double() @ basis).numpy()
        np.testing.assert_allclose(seen, np.diag(np.diag(seen)), atol=1e-9 * np.trace(seen))
    for basis, moment in ((plain.left, given.gradient), (plain.right.mT, given.input)):
        seen = (basis.mT @ moment.matrix.double() @ basis).numpy()
        assert np.abs(seen - np.diag(np.diag(seen))).max() > 1e-3 * np.trace(seen)


def test_without_moments_in_the_metric_turned_bases_are_still_orthonormal_and_the_product_the_same(
    moments: Build,
) -> None:
    weight, given = weight_of(9, 7), moments(9, 7)
    plain, turned = (
        Jactus(metric="plain", axes=axes).subspace(weight, given, 5).truncate(3) for axes in ("weight", "moments")
    )
    torch.testing.assert_close(product(turned), product(plain))
    torch.testing.assert_close(turned.left.mT @ turned.left, torch.eye(3, dtype=torch.float64))
