from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compressor.tasks.base import Outcomes
from validators.accuracy import Accuracy, mcnemar
from validators.intervals import bonett_price


def one_hot(labels: np.ndarray, classes: int = 4) -> np.ndarray:
    return np.eye(classes)[labels]


@pytest.mark.parametrize(("base_alone", "ours_alone"), [(0, 0), (5, 5), (12, 3), (3, 12)])
def test_mcnemar_is_the_exact_two_sided_binomial(base_alone: int, ours_alone: int):
    n, tail = base_alone + ours_alone, min(base_alone, ours_alone)
    by_hand = min(1.0, 2 * sum(math.comb(n, k) for k in range(tail + 1)) / 2**n)
    base = np.array([True] * base_alone + [False] * ours_alone + [True] * 40 + [False] * 5)
    ours = np.array([False] * base_alone + [True] * ours_alone + [True] * 40 + [False] * 5)
    assert mcnemar(base, ours) == pytest.approx(by_hand)


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
    assert found.interval[0] == 1 + bonett_price(every, every, 0.95)[0]
    assert 0.05 < 1 - found.interval[0] < 0.1
    assert found.alone is not None
    assert found.alone[0] < 0.95


def told(right: np.ndarray, labels: np.ndarray) -> Any:
    """A subject whose rows are tokens, each with the log-probability of the next."""
    outcomes = Outcomes(np.zeros((len(labels), 1)), np.where(right, labels, labels + 1), labels)
    return SimpleNamespace(outcomes=outcomes, reference=outcomes)
