"""Truncated SVD in a metric, against the formulas it is published with and plain NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.methods.base import Moments, Subspace
from compressor.methods.cersa import Cersa
from compressor.methods.jactus import Jactus
from compressor.methods.psoft import Psoft
from compressor.methods.spectral import Spectral
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


@pytest.mark.parametrize("rank", [1, 3])
def test_the_plain_metric_is_the_truncated_svd(moments: Build, rank: int) -> None:
    weight = weight_of(9, 7)
    found = Spectral().subspace(weight, moments(9, 7), 5).truncate(rank)
    np.testing.assert_allclose(product(found), truncated_svd(weight.numpy(), rank), atol=1e-10)


def test_the_input_metric_is_svd_llm(moments: Build) -> None:
    """arXiv 2403.07378: S = chol(E[x x^T]), svd(W S), then S^-1 on the right."""
    weight, given = weight_of(9, 7), moments(9, 7)
    assert given.input is not None
    s = np.linalg.cholesky(given.input.matrix.numpy())
    expected = truncated_svd(weight.numpy() @ s, 3) @ np.linalg.inv(s)
    found = Spectral(metric="input", ridge=0).subspace(weight, given, 5).truncate(3)
    np.testing.assert_allclose(product(found), expected, atol=1e-9)


def gfwsvd(weight: Tensor, given: Moments, rank: int, ridge: float = 0.01) -> np.ndarray:
    """arXiv 2505.17974: L_g^-T (L_g^T W L_x)_r L_x^-1."""
    assert given.gradient is not None
    assert given.input is not None
    lg = np.linalg.cholesky(damped(given.gradient, ridge))
    lx = np.linalg.cholesky(damped(given.input, ridge))
    return np.linalg.inv(lg).T @ truncated_svd(lg.T @ weight.numpy() @ lx, rank) @ np.linalg.inv(lx)


@pytest.mark.parametrize("method", [Spectral(metric="both"), Jactus(reading="R4", union=0)])
def test_both_metrics_without_a_union_are_gfwsvd(moments: Build, method: Any) -> None:
    weight, given = weight_of(9, 7), moments(9, 7)
    for rank in (1, 3, 5):
        found = method.subspace(weight, given, 5).truncate(rank)
        np.testing.assert_allclose(product(found), gfwsvd(weight, given, rank), atol=1e-8)


def test_the_diagonal_output_metric_is_fwsvd(moments: Build) -> None:
    weight, given = weight_of(9, 7), moments(9, 7)
    assert given.gradient is not None
    rows = np.sqrt(np.diag(given.gradient.matrix))[:, None]
    found = Spectral(metric="output", diagonal=True, ridge=0).subspace(weight, given, 5).truncate(2)
    np.testing.assert_allclose(product(found), truncated_svd(rows * weight.numpy(), 2) / rows, atol=1e-9)


def test_the_diagonal_input_metric_to_the_half_is_asvd(moments: Build) -> None:
    weight, given = weight_of(9, 7), moments(9, 7)
    assert given.input is not None
    activation = np.diag(given.input.matrix) ** 0.5  # root mean square of each input
    scale = activation**0.5
    found = Spectral(metric="input", diagonal=True, power=0.5, ridge=0).subspace(weight, given, 5).truncate(2)
    np.testing.assert_allclose(product(found), truncated_svd(weight.numpy() * scale, 2) / scale, atol=1e-9)


@pytest.mark.parametrize("method", [Spectral(metric="both", ridge=1e9), Jactus(ridge=1e9, union=0)])
def test_an_endless_ridge_is_the_plain_svd(moments: Build, method: Any) -> None:
    weight = weight_of(9, 7)
    found = method.subspace(weight, moments(9, 7), 5).truncate(3)
    np.testing.assert_allclose(product(found), truncated_svd(weight.numpy(), 3), atol=1e-6)


def test_gains_are_half_the_weighted_energy_where_that_is_a_loss_and_else_shares(moments: Build) -> None:
    weight, given = weight_of(9, 7), moments(9, 7)
    ra, rb = roots(given)
    energy = np.sum((ra @ weight.numpy() @ rb.T) ** 2)
    for method in (Spectral(metric="both"), Jactus()):
        assert method.subspace(weight, given, 5).total == pytest.approx(energy / 2)
    others: list[Any] = [Spectral(), Spectral(metric="input"), Jactus(metric="input"), Cersa(), Psoft()]
    for other in others:
        assert other.subspace(weight, given, 5).total == 1
