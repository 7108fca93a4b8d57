from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compressor.errors import RuntimeFailure
from compressor.recipe import Gate
from compressor.tasks.text_classification import TextClassification
from validators.base import Finding, Subject, limit_of
from validators.intervals import bonett_price, wilson

LIMITS = [  # gate type, value, dense, better, the worst value allowed (by hand)
    ("threshold", 0.9, 0.5, "higher", 0.9),
    ("threshold", 12.0, 10.0, "lower", 12.0),
    ("max-degradation", 0.01, 0.90, "higher", 0.89),
    ("max-degradation", 2.0, 10.0, "lower", 12.0),
    ("percent-max-degradation", 10.0, 0.90, "higher", 0.81),
    ("percent-max-degradation", 10.0, 50.0, "lower", 55.0),
    ("percent-max-degradation", 0.0, 50.0, "lower", 50.0),
    ("min-improvement", 0.02, 0.90, "higher", 0.92),
    ("min-improvement", 3.0, 10.0, "lower", 7.0),
    ("percent-min-improvement", 5.0, 0.80, "higher", 0.84),
    ("percent-min-improvement", 20.0, 100.0, "lower", 80.0),
]


@pytest.mark.parametrize(("kind", "value", "dense", "better", "limit"), LIMITS)
def test_a_gate_allows_exactly_up_to_its_limit(kind: str, value: float, dense: float, better: Any, limit: float):
    gate = Gate(type=kind, value=value)
    assert limit_of(gate, dense, better) == pytest.approx(limit)
    step = 1e-6 if better == "higher" else -1e-6
    inside = Finding("q", "u", better, dense, limit + step).judged(gate)
    outside = Finding("q", "u", better, dense, limit - step).judged(gate)
    assert (inside.verdict, outside.verdict) == ("pass", "fail")
    assert inside.limit == pytest.approx(limit)


@pytest.mark.parametrize(("kind", "value", "dense", "better", "limit"), LIMITS)
def test_only_an_interval_across_the_limit_is_unsure(kind: str, value: float, dense: float, better: Any, limit: float):
    gate = Gate(type=kind, value=value)
    width = 0.1 * limit
    sign = 1 if better == "higher" else -1

    def verdict(shift: float) -> str:
        ends = (limit + shift - width, limit + shift + width)
        return Finding("q", "u", better, dense, limit + shift, ends).judged(gate).verdict

    assert verdict(sign * 2 * width) == "pass"
    assert verdict(0) == "unsure"
    assert verdict(-sign * 2 * width) == "fail"


def test_a_threshold_asks_where_the_value_lies_alone_and_all_else_where_it_lies_beside_dense():
    finding = Finding("accuracy", "share", "higher", 0.91, 0.905, (0.901, 0.909), alone=(0.89, 0.92))
    absolute = finding.judged(Gate(type="threshold", value=0.9))
    assert (absolute.verdict, absolute.verdict_interval) == ("unsure", (0.89, 0.92))
    relative = finding.judged(Gate(type="max-degradation", value=0.01))
    assert (relative.verdict, relative.verdict_interval) == ("pass", (0.901, 0.909))
    without = replace(finding, alone=None).judged(Gate(type="threshold", value=0.9))
    assert (without.verdict, without.verdict_interval) == ("pass", (0.901, 0.909))


@pytest.mark.parametrize(("rows", "most"), [(500, 0.05), (2000, 0.05)])
def test_a_threshold_on_accuracy_is_passed_by_chance_as_seldom_as_the_confidence_says(rows: int, most: float):
    """Models that are nearly alike, and right on exactly as many rows of all that there are as the gate asks for."""
    generator, passed = np.random.default_rng(3), 0
    for _ in range(400):
        base = generator.random(rows) < 0.9
        ours = np.where(generator.random(rows) < 0.01, ~base, base)
        right = int(ours.sum())
        near = tuple(base.mean() + end for end in bonett_price(base, ours, 0.95))
        finding = Finding("accuracy", "share", "higher", base.mean(), right / rows, near, 0.95)
        judged = replace(finding, alone=wilson(right, rows, 0.95)).judged(Gate(type="threshold", value=0.9))
        passed += judged.verdict == "pass"
    assert passed / 400 <= most


def test_unsure_counts_as_failed_unless_the_gate_accepts_it():
    finding = Finding("accuracy", "share", "higher", 0.9, 0.89, (0.87, 0.91))
    strict = finding.judged(Gate(type="max-degradation", value=0.01))
    lenient = finding.judged(Gate(type="max-degradation", value=0.01, unsure="pass"))
    assert (strict.verdict, strict.ok) == ("unsure", False)
    assert (lenient.verdict, lenient.ok) == ("unsure", True)
    assert finding.ok


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("kind", ["threshold", "max-degradation", "percent-min-improvement"])
def test_a_value_that_is_not_a_number_fails_even_where_unsure_is_accepted(better: Any, kind: Any):
    gate = Gate(type=kind, value=1, unsure="pass")
    assert not Finding("q", "u", better, 1.0, math.nan).judged(gate).ok
    assert not Finding("q", "u", better, math.nan, math.nan).judged(gate).ok


def test_an_infinite_difference_fails_a_threshold():
    finding = Finding("parity_max_difference", "logit", "lower", 0.0, math.inf)
    assert finding.judged(Gate(type="threshold", value=1e9)).verdict == "fail"


def test_rows_that_are_not_finite_predict_nothing():
    logits = np.array([[0.0, 2.0], [np.nan, 1.0], [np.inf, 0.0], [3.0, 1.0]])
    assert TextClassification().outcomes(logits, {"labels": np.zeros(4)}).predictions.tolist() == [1, -1, -1, 0]


def test_outputs_of_another_shape_than_the_reference_are_refused(pair: tuple[Subject, Subject], said: Any):
    other = replace(pair[1], reference=said(np.zeros((20, 7)), pair[1].evaluation))
    with pytest.raises(RuntimeFailure, match=r"\(20, 4\).*\(20, 7\).*another model"):
        _ = other.outcomes
