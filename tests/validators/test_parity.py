from __future__ import annotations

import math
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from compressor.recipe import Gate
from compressor.tasks.base import Outcomes
from validators.parity import Parity, differences

RNG = np.random.default_rng(3)


def wilson_by_hand(k: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    p, shrink = k / n, 1 + z * z / n
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (p + z * z / (2 * n)) / shrink - half, (p + z * z / (2 * n)) / shrink + half


def test_agreement_and_largest_difference_are_counted_for_both_sides(answered: Any):
    reference = RNG.normal(size=(100, 5))
    shifted = reference + 1e-4
    broken = reference.copy()
    broken[:7] = np.roll(broken[:7], 1, axis=1)  # another label wins in 7 rows
    agreement, difference = Parity().run(answered(shifted, reference), answered(broken, reference))
    assert (agreement.dense, agreement.candidate) == (1.0, 0.93)
    assert agreement.interval == pytest.approx(wilson_by_hand(93, 100))
    assert agreement.details["disagreements"] == 7
    assert difference.dense == pytest.approx(1e-4)
    assert difference.candidate == pytest.approx(np.max(np.abs(broken[:7] - reference[:7])))


def test_tokens_that_go_together_agree_as_if_they_were_fewer() -> None:
    """Half of the texts disagree on every eighth token: what is known is known of texts."""
    labels, agreeing = np.zeros(100 * 64, int), np.ones((100, 64), bool)
    agreeing[::2, ::8] = False
    values = np.zeros((len(labels), 1))
    reference = Outcomes(values, labels, labels)
    subject = SimpleNamespace(outcomes=Outcomes(values, np.where(agreeing.ravel(), 0, 1), labels), reference=reference)
    found = Parity().run(subject, subject)[0]  # type: ignore[arg-type]
    assert found.interval is not None
    low, high = wilson_by_hand(400, 6400)
    assert found.interval[1] - found.interval[0] == pytest.approx(2 * 1.984 * 0.0625 / 99**0.5, rel=0.05)
    assert found.interval[1] - found.interval[0] > 2 * (high - low)


def test_details_match_scipy(answered: Any):
    reference = RNG.normal(size=(40, 6))
    logits = reference + RNG.normal(scale=0.1, size=reference.shape)
    found = differences(answered(logits, reference))
    kl = entropy(softmax(reference, axis=1), softmax(logits, axis=1), axis=1).mean()
    assert found["kl"] == pytest.approx(kl)
    assert found["mean_difference"] == pytest.approx(np.abs(logits - reference).mean())
    assert found["median_difference"] == pytest.approx(np.median(np.abs(logits - reference)))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["export", "torch", "both"])
def test_outputs_that_are_not_finite_never_pass(answered: Any, poison: float, side: str):
    logits, reference = RNG.normal(size=(10, 3)), RNG.normal(size=(10, 3))
    logits[:] = reference
    if side in ("export", "both"):
        logits[4, 1] = poison
    if side in ("torch", "both"):
        reference[4, 1] = poison
    agreement, difference = Parity().run(answered(reference, reference), answered(logits, reference))
    assert agreement.candidate == 0.9
    assert difference.candidate == math.inf
    assert difference.details["nonfinite_rows"] == 1
    assert not difference.judged(Gate(type="threshold", value=1.0, unsure="pass")).ok


def test_an_export_without_one_finite_row_is_measured_without_a_warning(answered: Any):
    reference = RNG.normal(size=(5, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agreement, difference = Parity().run(
            answered(reference), answered(np.full((5, 3), np.nan, np.float32), reference)
        )
    assert (agreement.candidate, difference.candidate) == (0.0, math.inf)
    assert difference.details == {"nonfinite_rows": 5}
