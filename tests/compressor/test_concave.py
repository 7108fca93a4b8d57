"""The least concave majorant, against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compressor.concave import concave_slopes


def majorant(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The highest chord over each point of the curve (x, y)."""
    highest = y.copy()
    for i in range(len(x)):
        for k in range(i + 1, len(x)):
            chord = y[i] + (y[k] - y[i]) * (x[i : k + 1] - x[i]) / (x[k] - x[i])
            highest[i : k + 1] = np.maximum(highest[i : k + 1], chord)
    return highest


@pytest.mark.parametrize("seed", range(20))
def test_the_slopes_integrate_to_the_highest_chords(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rises, widths = rng.exponential(size=12), rng.integers(1, 9, 12).astype(float)
    x, y = np.append(0, widths.cumsum()), np.append(0, rises.cumsum())
    slopes = np.array(concave_slopes(rises.tolist(), widths.tolist()))
    np.testing.assert_allclose(np.append(0, (slopes * widths).cumsum()), majorant(x, y), rtol=1e-12)
    assert (np.diff(slopes) <= 1e-12).all()


def test_a_concave_curve_is_its_own_majorant() -> None:
    assert concave_slopes([6.0, 4.0, 1.0], [2.0, 2.0, 1.0]) == [3.0, 2.0, 1.0]


def test_a_late_rise_is_shared_with_what_comes_before_it() -> None:
    assert concave_slopes([1.0, 0.0, 5.0], [1.0, 1.0, 1.0]) == [2.0, 2.0, 2.0]


def test_no_pieces_have_no_slopes() -> None:
    assert concave_slopes([], []) == []


def test_rises_and_widths_must_pair_up() -> None:
    with pytest.raises(ValueError, match="zip"):
        concave_slopes([1.0], [1.0, 2.0])


def test_what_rises_over_no_width_comes_first() -> None:
    assert concave_slopes([2.0, 1.0, 1.0], [0.0, 1.0, 0.0]) == [math.inf, 2.0, 2.0]
