"""What a search makes of its trials' reports: what gates ask for, which trial stands, and what is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from compressor import bisection, trials
from compressor.planning import Plan, PlanLayer
from compressor.recipe import Gate
from validators.base import Finding
from validators.report import ExportReport, Report

ACCURACY = Gate(type="threshold", value=0.9)
SIZE = Gate(type="threshold", value=50)
FAST = Gate(type="threshold", value=5)


def export(name: str, accuracy: float, size: float = 40, latency: float = 4) -> ExportReport:
    found = (
        Finding("accuracy", "share", "higher", 0.95, accuracy).judged(ACCURACY),
        Finding("size", "MiB", "lower", 100, size).judged(SIZE),
        Finding("latency_p50", "ms", "lower", 8, latency).judged(FAST),
    )
    return ExportReport(name, "onnx", "int8" if "int8" in name else "fp32", "candidate", found)


def plan(budget: float) -> Plan:
    layer = PlanLayer("query", 100, 100, 10, 50, round(10_000 * budget), 0.9)
    return Plan("gain", budget, "two-factor", 1, (layer,))


def record(budget: float, *exports: ExportReport, auto: bool = False) -> dict[str, Any]:
    context = {"recipe": {"export": "auto"}} if auto else {}
    return trials.record(Report(exports, context), plan(budget), budget, 1.0)


def search(*records: dict[str, Any], budgets: tuple[float, ...] = ()) -> dict[str, Any]:
    """Over the budgets that there are: those of the trials unless told."""
    found = list(budgets or (one["budget"] for one in records))
    return trials.concluded({"rows": 400, "budgets": found, "trials": list(records)})


def test_quality_asks_for_more_and_costs_for_less() -> None:
    every = trials.EVERY
    assert record(0.5, export("onnx-fp32", 0.95))["wants"] == {every: []}
    assert record(0.5, export("onnx-fp32", 0.8))["wants"] == {every: ["more"]}
    assert record(0.5, export("onnx-fp32", 0.95, latency=6))["wants"] == {every: ["less"]}
    both = record(0.5, export("onnx-fp32", 0.95, size=60), export("onnx-int8", 0.8))
    assert both["wants"] == {every: ["less", "more"]}
    assert [(one["export"], one["quantity"]) for one in both["failed"]] == [
        ("onnx-fp32", "size"),
        ("onnx-int8", "accuracy"),
    ]


def test_with_auto_each_low_rank_export_is_an_alternative_and_dense_ones_are_none() -> None:
    dense = export("dense-onnx-int8", 0.95, size=25)
    found = record(0.5, export("onnx-fp32", 0.95, size=60), export("onnx-int8", 0.8), dense, auto=True)
    assert found["wants"] == {"onnx-fp32": ["less"], "onnx-int8": ["more"]}
    assert found["winner"] == "dense-onnx-int8"
    assert [one["name"] for one in found["exports"]] == ["onnx-fp32", "onnx-int8"]


@pytest.mark.parametrize(("value", "wants"), [(0.91, []), (0.89, ["more"])])
def test_an_unsure_gate_that_passes_counts_by_its_value(value: float, wants: list[str]) -> None:
    gate = Gate(type="threshold", value=0.9, unsure="pass")
    finding = Finding("accuracy", "share", "higher", 0.95, value, interval=(value - 0.05, value + 0.05)).judged(gate)
    assert finding.ok
    found = trials.record(
        Report((ExportReport("onnx-fp32", "onnx", "fp32", "candidate", (finding,)),)), plan(0.5), 0.5, 1
    )
    assert found["wants"] == {trials.EVERY: wants}


def test_the_smallest_that_held_is_chosen_and_stands() -> None:
    found = search(
        record(0.5, export("onnx-fp32", 0.95)), record(0.266, export("onnx-fp32", 0.8)), record(0.391, export("x", 0.9))
    )
    assert (found["chosen"], found["stands"]) == (0.391, 0.391)
    assert found["conclusion"] == (
        "Budget 0.391 is the smallest of 3 budgets tried whose gates hold on 400 validation rows; 0.266 is too small."
    )


def test_where_none_holds_the_one_with_the_fewest_failed_gates_is_closest_and_nothing_stands() -> None:
    found = search(
        record(0.5, export("onnx-fp32", 0.8, size=60)), record(0.984, export("onnx-fp32", 0.95, size=99, latency=3))
    )
    assert (found["chosen"], found["closest"], found["stands"]) == (None, 0.984, None)
    assert trials.NOT_THE_ANSWER in found["conclusion"]
    assert "Whatever the budget, the gate on size of onnx-fp32 does not hold." in found["conclusion"]
    assert "The closest is 0.984: onnx-fp32: size fails: candidate 99.00 MiB" in found["conclusion"]


def test_a_gate_is_given_up_only_where_the_budget_that_is_best_for_it_was_tried() -> None:
    torn = record(0.5, export("onnx-fp32", 0.8, size=60))
    assert "Whatever" not in search(torn, budgets=(0.25, 0.5, 0.984))["conclusion"]
    assert "the gate on accuracy of onnx-fp32 does" in search(torn, budgets=(0.25, 0.5))["conclusion"]
    assert "the gate on size of onnx-fp32 does" in search(torn, budgets=(0.5, 0.984))["conclusion"]


@pytest.mark.parametrize(("size", "accuracy", "closest"), [(60, 0.95, 0.25), (40, 0.8, 0.984), (60, 0.8, 0.984)])
def test_of_equals_the_closest_is_the_farthest_where_the_gates_point_to(
    size: float, accuracy: float, closest: float
) -> None:
    found = search(*(record(budget, export("onnx-fp32", accuracy, size)) for budget in (0.5, 0.25, 0.984)))
    assert found["closest"] == closest


def test_a_budget_that_only_costs_too_much_is_not_called_too_small() -> None:
    slow, held = record(0.25, export("onnx-fp32", 0.95, latency=6)), record(0.5, export("onnx-fp32", 0.95))
    assert "too small" not in search(slow, held)["conclusion"]
    assert "0.125 is too small" in search(slow, held, record(0.125, export("onnx-fp32", 0.8)))["conclusion"]


def test_a_dense_winner_of_a_trial_that_was_not_the_closest_stands() -> None:
    slow, fast = export("dense-onnx-int8", 0.95, size=25, latency=6), export("dense-onnx-int8", 0.95, size=25)
    found = search(
        record(0.5, export("onnx-int8", 0.8, size=60), fast, auto=True),
        record(0.984, export("onnx-int8", 0.95, size=60), slow, auto=True),
    )
    assert (found["closest"], found["stands"]) == (0.984, 0.5)
    assert f"{trials.NOT_THE_ANSWER}. dense-onnx-int8 does." in found["conclusion"]


@pytest.mark.parametrize("dense", [True, False])
def test_what_wins_by_an_unsure_gate_alone_is_no_winner_of_a_trial(dense: bool) -> None:
    gate = Gate(type="threshold", value=0.9, unsure="pass")
    unsure = Finding("accuracy", "share", "higher", 0.95, 0.89, interval=(0.85, 0.93)).judged(gate)
    small = Finding("size", "MiB", "lower", 100, 10).judged(SIZE)
    low_rank = ExportReport("onnx-int8", "onnx", "int8", "candidate", (unsure, small))
    others = [export("dense-onnx-int8", 0.95)] if dense else []
    found = search(record(0.5, low_rank, *others, auto=True))
    assert found["trials"][0]["winner"] == ("dense-onnx-int8" if dense else None)
    assert (found["chosen"], found["stands"]) == (None, 0.5 if dense else None)
    assert ("dense-onnx-int8 does." in found["conclusion"]) == dense
    assert " onnx-int8 does." not in found["conclusion"]


def test_a_dense_winner_stands_where_no_low_rank_export_holds_at_any_budget() -> None:
    dense = export("dense-onnx-int8", 0.95, size=25)
    found = search(
        record(0.5, export("onnx-int8", 0.8), dense, auto=True),
        record(0.984, export("onnx-int8", 0.95, size=60), dense, auto=True),
    )
    assert (found["chosen"], found["stands"]) == (None, 0.984)
    assert f"{trials.NOT_THE_ANSWER}. dense-onnx-int8 does." in found["conclusion"]


def test_records_are_read_back_as_the_bisection_wants_them() -> None:
    found = search(record(0.5, export("onnx-fp32", 0.8)), record(0.75, export("onnx-fp32", 0.95)))
    assert trials.tried(found) == [
        bisection.Trial(0.5, {trials.EVERY: frozenset({"more"})}),
        bisection.Trial(0.75, {trials.EVERY: frozenset()}),
    ]


def test_a_trial_is_told_on_one_line() -> None:
    told = trials.line(record(0.5, export("onnx-fp32", 0.8), export("onnx-int8", 0.95)))
    assert told == (
        "  budget 0.500 (50.0% of the matrices): onnx-fp32 accuracy 80.00% (dense 95.00%), 40.0 MiB (0.40x), "
        "onnx-int8 accuracy 95.00% (dense 95.00%), 40.0 MiB (0.40x): fails accuracy"
    )


def test_a_value_that_is_no_number_is_told_too() -> None:
    finding: Mapping[str, Any] = {"candidate": None, "dense": 0.9, "ratio": None}
    assert "accuracy nan%" in trials.line(record(0.5) | {"exports": [{"name": "x", "findings": {"accuracy": finding}}]})
