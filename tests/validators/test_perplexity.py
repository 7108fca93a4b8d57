"""Perplexity against sums by hand, its interval against resampled chunks, and for which tasks it is measured."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from compressor.errors import RecipeError
from compressor.recipe import Gate, ValidateSection
from compressor.tasks.base import Outcomes
from compressor.tasks.multiple_choice import MultipleChoice
from compressor.tasks.text_classification import TextClassification
from compressor.tasks.text_generation import TextGeneration
from exporters.base import Session
from validators.base import Evaluation, Subject
from validators.measure import checks, measure
from validators.parity import differences
from validators.perplexity import Perplexity, ratio_interval


def subject(likelihoods: np.ndarray, reference: np.ndarray | None = None, task: object = TextGeneration()) -> Subject:
    said = [
        Outcomes(values[:, None], np.zeros(len(values), int), np.zeros(len(values), int))
        for values in (likelihoods, likelihoods if reference is None else reference)
    ]
    found = Subject("given", "tiny", Path("nowhere"), Evaluation(task, ()), Session(), said[1])  # type: ignore[arg-type]
    vars(found)["outcomes"] = said[0]  # where cached_property keeps it
    return found


def test_perplexity_is_the_inverse_geometric_mean_of_the_probabilities() -> None:
    p, q, r = (np.random.default_rng(seed).uniform(0.01, 1, 500) for seed in range(3))
    (finding,) = Perplexity().run(subject(np.log(p)), subject(np.log(q), np.log(r)))
    by_hand = [math.prod(chunk) for chunk in ((x ** (-1 / 500)).tolist() for x in (p, q, r))]
    assert (finding.dense, finding.candidate) == pytest.approx(by_hand[:2])
    assert finding.details["candidate_torch_perplexity"] == pytest.approx(by_hand[2])
    assert finding.details["n"] == 500
    assert finding.interval is not None
    assert finding.interval[0] < finding.candidate < finding.interval[1]
    assert (finding.better, finding.verdict) == ("lower", "ungated")


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_of_a_handful_of_tokens_nothing_is_known_and_the_gate_is_unsure(tokens: int) -> None:
    (finding,) = Perplexity().run(subject(np.full(tokens, -2.0)), subject(np.full(tokens, -2.0)))
    assert finding.interval == finding.alone == (0, math.inf)
    for kind in ("percent-max-degradation", "threshold"):
        assert finding.judged(Gate(type=kind, value=50)).verdict == "unsure"  # type: ignore[arg-type]


def test_pairing_makes_models_that_differ_little_tell_apart() -> None:
    base = np.random.default_rng(0).normal(-3, 2, 5_000)
    (finding,) = Perplexity().run(subject(base), subject(base - 0.02))
    assert finding.interval == pytest.approx([math.exp(0.02) * finding.dense] * 2)


@pytest.mark.parametrize("broken", [np.nan, -np.inf])
def test_a_log_probability_that_is_not_finite_is_infinite_perplexity_and_fails(broken: float) -> None:
    base, ours = np.full(100, -2.0), np.full(100, -2.0)
    ours[7] = broken
    (finding,) = Perplexity().run(subject(base), subject(ours))
    assert finding.candidate == math.inf
    assert finding.interval is None
    assert finding.judged(Gate(type="percent-max-degradation", value=1e9)).verdict == "fail"


def test_a_gate_limits_how_much_perplexity_rises() -> None:
    base = np.random.default_rng(0).normal(-3, 2, 5_000)
    (finding,) = Perplexity().run(subject(base), subject(base - math.log(1.05)))
    verdicts = [finding.judged(Gate(type="percent-max-degradation", value=value)).verdict for value in (4, 6)]
    assert verdicts == ["fail", "pass"]


def test_it_is_measured_where_outcomes_are_log_probabilities_alone() -> None:
    names = {
        task.name: [type(check).__name__ for check in checks(ValidateSection(), task)]
        for task in (TextClassification(), TextGeneration(), MultipleChoice())
    }
    assert [name for name, found in names.items() if "Perplexity" in found] == ["text-generation"]
    assert all({"Accuracy", "Parity", "Size", "Memory", "Latency"} <= set(found) for found in names.values())


def test_a_gate_on_a_quality_that_the_task_has_not_is_refused() -> None:
    classified = subject(np.zeros(4), task=TextClassification())
    with pytest.raises(RecipeError, match=r"gates\.perplexity: no check measures 'perplexity' for this task; allowed"):
        measure(classified, [], ValidateSection(), {"perplexity": Gate(type="threshold", value=30)})


def test_one_log_probability_is_no_distribution_to_diverge_from() -> None:
    found = differences(subject(np.full(5, -1.0), np.full(5, -1.5)))
    assert found == {"mean_difference": 0.5, "median_difference": 0.5, "nonfinite_rows": 0}


def test_where_an_interval_ends_beyond_all_numbers_it_is_infinite_and_nothing_is_warned_of() -> None:
    low, high = ratio_interval(np.array([0.0, 1400.0] * 8), 1, 0.95)
    assert 1 < low < high == math.inf
