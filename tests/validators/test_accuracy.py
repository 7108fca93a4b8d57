from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compressor.tasks.base import Outcomes
from validators.accuracy import Accuracy, difference_interval, mcnemar
from validators.base import design_effect


def one_hot(labels: np.ndarray, classes: int = 4) -> np.ndarray:
    return np.eye(classes)[labels]


def paired(both: int, base_alone: int, ours_alone: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    base = np.array([1] * both + [1] * base_alone + [0] * ours_alone + [0] * neither, bool)
    ours = np.array([1] * both + [0] * base_alone + [1] * ours_alone + [0] * neither, bool)
    return base, ours


def brute_force(base: np.ndarray, ours: np.ndarray, confidence: float, resamples: int) -> np.ndarray:
    """Draw row numbers with replacement, one resample at a time."""
    rng = np.random.default_rng(11)
    drawn = (rng.integers(0, len(base), len(base)) for _ in range(resamples))
    gains = [ours[rows].mean() - base[rows].mean() for rows in drawn]
    return np.quantile(gains, ((1 - confidence) / 2, (1 + confidence) / 2))


@pytest.mark.parametrize("counts", [(300, 30, 10, 60), (900, 25, 25, 50), (20, 60, 60, 60)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_among_many_rows_the_interval_is_that_of_resampled_rows(counts: tuple[int, int, int, int], confidence: float):
    base, ours = paired(*counts)
    ends = difference_interval(base, ours, confidence)
    assert np.allclose(ends, brute_force(base, ours, confidence, 10_000), atol=0.005)


def test_pairing_makes_the_interval_narrower_than_independent_rows_would():
    base, ours = paired(800, 10, 10, 180)
    low, high = difference_interval(base, ours, 0.95)
    independent = 2 * 1.96 * math.sqrt(2 * 0.81 * 0.19 / 1000)
    assert high - low < independent / 3


@pytest.mark.parametrize("rows", [30, 50, 400])
@pytest.mark.parametrize(("gained", "lost"), [(0.05, 0.08), (0.0, 0.02), (0.005, 0.03)])
def test_the_interval_covers_the_true_difference_at_least_as_often_as_it_says(rows: int, gained: float, lost: float):
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(1000):
        drawn = rng.choice(4, size=rows, p=[0.2, gained, lost, 0.8 - gained - lost])  # neither, ours, base, both
        low, high = difference_interval(drawn >= 2, drawn % 2 == 1, 0.9)
        hits += low <= gained - lost <= high
    assert hits / 1000 >= 0.87
    if rows == 400:
        assert hits / 1000 <= 0.96


def test_few_rows_without_a_discordant_pair_prove_little():
    low, high = difference_interval(*paired(28, 0, 0, 2), 0.95)
    assert low == -high
    assert 0.05 < high < 0.15  # by the rule of three, up to a tenth may be lost
    assert difference_interval(*paired(2800, 0, 0, 200), 0.95)[1] < 0.001


@pytest.mark.parametrize(("base_alone", "ours_alone"), [(0, 0), (5, 5), (12, 3), (3, 12)])
def test_mcnemar_is_the_exact_two_sided_binomial(base_alone: int, ours_alone: int):
    n, tail = base_alone + ours_alone, min(base_alone, ours_alone)
    by_hand = min(1.0, 2 * sum(math.comb(n, k) for k in range(tail + 1)) / 2**n)
    assert mcnemar(*paired(40, base_alone, ours_alone, 5)) == pytest.approx(by_hand)


def test_accuracies_of_exports_and_torch_models_are_told_apart(answered: Any):
    labels = np.arange(40) % 4
    wrong = (labels + 1) % 4
    dense = answered(one_hot(labels), labels=labels)
    guesses = np.where(np.arange(40) < 30, labels, wrong)
    folded = np.where(np.arange(40) < 36, labels, wrong)
    candidate = answered(one_hot(guesses), reference=one_hot(folded), labels=labels)
    (finding,) = Accuracy().run(dense, candidate)
    assert (finding.dense, finding.candidate) == (1.0, 0.75)
    assert finding.details["candidate_torch_accuracy"] == 0.9
    assert finding.details["n"] == 40
    assert finding.interval is not None
    assert finding.interval[0] < 0.75 < finding.interval[1] < 1


def test_macro_f1_weighs_labels_alike(answered: Any):
    labels = np.array([0] * 8 + [1] * 2)
    guesses = np.array([0] * 8 + [0, 1])  # label 0: precision 8/9, recall 1; label 1: precision 1, recall 1/2
    (finding,) = Accuracy().run(answered(one_hot(labels), labels=labels), answered(one_hot(guesses), labels=labels))
    assert finding.details["candidate_macro_f1"] == pytest.approx((2 * 8 / 17 + 2 / 3) / 2)


def test_rows_that_are_not_finite_count_as_wrong(answered: Any):
    labels = np.zeros(10, int)  # NaN's argmax would be 0 and right
    logits = one_hot(labels)
    logits[:4] = np.nan
    (finding,) = Accuracy().run(answered(one_hot(labels), labels=labels), answered(logits, labels=labels))
    assert finding.candidate == 0.6


def test_tokens_of_a_text_vary_with_their_neighbors() -> None:
    texts, rng = 200, np.random.default_rng(0)
    worse = rng.random(texts) < 0.5  # in half of the texts the candidate errs, in every third token
    base, ours = np.ones(texts * 64, bool), np.ones((texts, 64), bool)
    ours[worse, ::3] = False
    labels = np.zeros(texts * 64, int)
    found = Accuracy().run(told(base, labels), told(ours.ravel(), labels))[0]
    assert found.interval is not None
    spread = worse.std() / texts**0.5 * 22 / 64  # of the texts' means: what another text may be like
    assert found.interval[1] - found.interval[0] == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert "mcnemar_p" not in found.details


def test_the_design_effect_is_how_many_rows_go_together() -> None:
    rng = np.random.default_rng(0)
    alone, together = rng.random(64 * 400) < 0.3, np.repeat(rng.random(400 * 16) < 0.3, 4)
    assert design_effect(alone, 64, 0.95) == pytest.approx(1, abs=0.15)
    assert design_effect(together, 64, 0.95) == pytest.approx(4, rel=0.2)
    assert design_effect(np.ones(100, bool), 64, 0.95) == 1


@pytest.mark.parametrize("texts", [12, 60])
def test_of_few_texts_the_interval_covers_the_truth_nearly_as_often_as_it_says(texts: int) -> None:
    rng, hits = np.random.default_rng(4), 0
    labels = np.zeros(texts * 64, int)
    for _ in range(300):
        lost = rng.random((texts, 64)) < rng.beta(1, 9, texts)[:, None]  # a tenth, in some texts many and in others few
        found = Accuracy(confidence=0.9).run(told(labels == 0, labels), told(~lost.ravel(), labels))[0]
        assert found.interval is not None
        hits += found.interval[0] <= 0.9 <= found.interval[1]
    assert hits / 300 >= 0.85


def test_few_tokens_without_a_discordant_pair_prove_little() -> None:
    every = np.ones(40, bool)
    (found,) = Accuracy().run(told(every, np.zeros(40, int)), told(every, np.zeros(40, int)))
    assert found.interval is not None
    assert found.interval[0] == 1 + difference_interval(every, every, 0.95)[0]
    assert 0.05 < 1 - found.interval[0] < 0.1
    assert found.alone is not None
    assert found.alone[0] < 0.95


def told(right: np.ndarray, labels: np.ndarray) -> Any:
    """A subject whose rows are tokens, each with the log-probability of the next."""
    outcomes = Outcomes(np.zeros((len(labels), 1)), np.where(right, labels, labels + 1), labels)
    return SimpleNamespace(outcomes=outcomes, reference=outcomes)
