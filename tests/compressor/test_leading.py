"""Leading eigenpairs: the range finder is held to its tolerance, and given up where it cannot keep it."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor import leading as module
from compressor.leading import LARGE, TOLERANCE, exact, leading, sketched


def with_spectrum(values: np.ndarray, seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues in random directions."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return torch.from_numpy((q * values) @ q.T)


def left_over(matrix: Tensor, vectors: Tensor) -> float:
    """The trace outside of the span of orthonormal vectors (d, k)."""
    wide, basis = matrix.double().numpy(), vectors.numpy()
    return float(np.trace(wide) - np.trace(basis.T @ wide @ basis))


DECAYS = {
    "a power of -1": np.arange(1.0, LARGE + 1) ** -1,
    "a power of -2": np.arange(1.0, LARGE + 1) ** -2,
    "outliers over a floor": np.concatenate([np.geomspace(1e6, 1e2, 40), np.ones(LARGE - 40)]),
    "low rank": np.concatenate([np.linspace(2, 1, 20), np.zeros(LARGE - 20)]),
}


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_few_directions_leave_no_more_than_the_tolerance_allows(name: str, dtype: torch.dtype) -> None:
    count, matrix = 40, with_spectrum(DECAYS[name]).to(dtype)
    values, vectors = leading(matrix, count)
    best = np.linalg.eigvalsh(matrix.double().numpy())[::-1]
    assert left_over(matrix, vectors) <= best[count:].sum() * (1 + TOLERANCE) + 1e-9 * best.sum()
    np.testing.assert_allclose(values, best[:count], rtol=1e-2, atol=1e-6 * best[0])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=1e-10)


def test_a_few_directions_of_a_large_matrix_take_no_whole_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    eigh = Mock(wraps=torch.linalg.eigh)
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    leading(with_spectrum(DECAYS["a power of -2"]), 40)
    assert {len(call.args[0]) for call in eigh.call_args_list} == {68}


def test_a_spectrum_too_flat_for_the_tolerance_is_decomposed_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = with_spectrum(np.linspace(1.0, 0.99, LARGE))
    assert sketched(flat, 40) is None
    whole = Mock(wraps=exact)
    monkeypatch.setattr(module, "exact", whole)
    values, vectors = leading(flat, 40)
    assert whole.call_count == 1
    assert left_over(flat, vectors) == pytest.approx(np.linspace(1.0, 0.99, LARGE)[40:].sum(), rel=1e-10)
    np.testing.assert_allclose(values, np.linspace(1.0, 0.99, LARGE)[:40], rtol=1e-10)


def test_an_estimate_above_the_tolerance_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_spectrum(DECAYS["a power of -1"])
    assert sketched(matrix, 40) is not None
    monkeypatch.setattr(module, "TOLERANCE", 0.0)
    assert sketched(matrix, 40) is None


@pytest.mark.parametrize(("size", "count"), [(LARGE - 1, 4), (LARGE, LARGE // 8 + 1)])
def test_small_matrices_and_many_directions_are_exact(size: int, count: int) -> None:
    matrix = with_spectrum(np.geomspace(1, 0.5, size))
    values, vectors = leading(matrix, count)
    np.testing.assert_allclose(values, np.geomspace(1, 0.5, size)[:count], rtol=1e-10)
    assert left_over(matrix, vectors) == pytest.approx(np.geomspace(1, 0.5, size)[count:].sum(), rel=1e-10)


def test_the_same_matrix_gives_the_same_directions_whatever_was_drawn_before() -> None:
    matrix = with_spectrum(DECAYS["a power of -2"])
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(leading(matrix, 40)[1])
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


def test_another_seed_finds_the_same_space() -> None:
    matrix = with_spectrum(DECAYS["a power of -2"])
    one, other = (sketched(matrix, 40, seed) for seed in (0, 1))
    assert one is not None
    assert other is not None
    assert not torch.equal(one[1], other[1])
    np.testing.assert_allclose(left_over(matrix, one[1]), left_over(matrix, other[1]), rtol=2 * TOLERANCE)


def test_a_matrix_of_zeros_has_directions() -> None:
    values, vectors = leading(torch.zeros(LARGE, LARGE), 8)
    assert not values.any()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(8), atol=1e-10)
