"""What a search makes of its trials' reports: what gates ask for, which trial stands, and what is said and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor import bisection, trials
from compressor.artifact import MANIFEST, SEARCH
from compressor.errors import ArtifactError
from compressor.files import write_json
from compressor.planning import Plan, PlanLayer
from compressor.recipe import Gate
from compressor.search_record import EVERY, ExportFigures, Search, TrialRecord
from validators.base import Finding
from validators.export_report import ExportReport
from validators.report import Report
from validators.wording import NOT_THE_ANSWER

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


def record(budget: float, *exports: ExportReport, auto: bool = False) -> TrialRecord:
    context = {"recipe": {"export": "auto"}} if auto else {}
    return trials.record(Report(exports, context), plan(budget), budget, 1.0)


def search(*records: TrialRecord, budgets: tuple[float, ...] = ()) -> Search:
    """Over the budgets that there are: those of the trials unless told."""
    return Search("validation", 400, budgets or tuple(sorted(one.budget for one in records)), records)


def came_to(found: Search) -> tuple[float | None, float | None, float | None]:
    told = trials.told(found)
    return told["chosen"], told["closest"], told["stands"]


def test_quality_asks_for_more_and_costs_for_less() -> None:
    assert record(0.5, export("onnx-fp32", 0.95)).wants == {EVERY: ()}
    assert record(0.5, export("onnx-fp32", 0.8)).wants == {EVERY: ("more",)}
    assert record(0.5, export("onnx-fp32", 0.95, latency=6)).wants == {EVERY: ("less",)}
    both = record(0.5, export("onnx-fp32", 0.95, size=60), export("onnx-int8", 0.8))
    assert both.wants == {EVERY: ("less", "more")}
    assert [(one.export, one.quantity) for one in both.failed] == [("onnx-fp32", "size"), ("onnx-int8", "accuracy")]


def test_with_auto_each_low_rank_export_is_an_alternative_and_dense_ones_are_none() -> None:
    dense = export("dense-onnx-int8", 0.95, size=25)
    found = record(0.5, export("onnx-fp32", 0.95, size=60), export("onnx-int8", 0.8), dense, auto=True)
    assert found.wants == {"onnx-fp32": ("less",), "onnx-int8": ("more",)}
    assert found.winner == "dense-onnx-int8"
    assert [one.name for one in found.exports] == ["onnx-fp32", "onnx-int8"]


@pytest.mark.parametrize(("value", "wants"), [(0.91, ()), (0.89, ("more",))])
def test_an_unsure_gate_that_passes_counts_by_its_value(value: float, wants: tuple[str, ...]) -> None:
    gate = Gate(type="threshold", value=0.9, unsure="pass")
    finding = Finding("accuracy", "share", "higher", 0.95, value, interval=(value - 0.05, value + 0.05)).judged(gate)
    assert finding.ok
    found = trials.record(
        Report((ExportReport("onnx-fp32", "onnx", "fp32", "candidate", (finding,)),)), plan(0.5), 0.5, 1
    )
    assert found.wants == {EVERY: wants}


def test_the_smallest_that_held_is_chosen_and_stands() -> None:
    found = search(
        record(0.5, export("onnx-fp32", 0.95)), record(0.266, export("onnx-fp32", 0.8)), record(0.391, export("x", 0.9))
    )
    assert (came_to(found)[0], came_to(found)[2]) == (0.391, 0.391)
    assert trials.conclusion(found) == (
        "Budget 0.391 is the smallest of 3 budgets tried whose gates hold on 400 validation rows; 0.266 is too small."
    )


def test_where_none_holds_the_one_with_the_fewest_failed_gates_is_closest_and_nothing_stands() -> None:
    found = search(
        record(0.5, export("onnx-fp32", 0.8, size=60)), record(0.984, export("onnx-fp32", 0.95, size=99, latency=3))
    )
    assert came_to(found) == (None, 0.984, None)
    said = trials.conclusion(found)
    assert NOT_THE_ANSWER in said
    assert "Whatever the budget, the gate on size of onnx-fp32 does not hold." in said
    assert "The closest is 0.984: onnx-fp32: size fails: candidate 99.00 MiB" in said


def test_a_gate_is_given_up_only_where_the_budget_that_is_best_for_it_was_tried() -> None:
    torn = record(0.5, export("onnx-fp32", 0.8, size=60))
    assert "Whatever" not in trials.conclusion(search(torn, budgets=(0.25, 0.5, 0.984)))
    assert "the gate on accuracy of onnx-fp32 does" in trials.conclusion(search(torn, budgets=(0.25, 0.5)))
    assert "the gate on size of onnx-fp32 does" in trials.conclusion(search(torn, budgets=(0.5, 0.984)))


@pytest.mark.parametrize(("size", "accuracy", "closest"), [(60, 0.95, 0.25), (40, 0.8, 0.984), (60, 0.8, 0.984)])
def test_of_equals_the_closest_is_the_farthest_where_the_gates_point_to(
    size: float, accuracy: float, closest: float
) -> None:
    found = search(*(record(budget, export("onnx-fp32", accuracy, size)) for budget in (0.5, 0.25, 0.984)))
    assert found.closest.budget == closest


def test_a_budget_that_only_costs_too_much_is_not_called_too_small() -> None:
    slow, held = record(0.25, export("onnx-fp32", 0.95, latency=6)), record(0.5, export("onnx-fp32", 0.95))
    assert "too small" not in trials.conclusion(search(slow, held))
    assert "0.125 is too small" in trials.conclusion(search(slow, held, record(0.125, export("onnx-fp32", 0.8))))


def test_a_dense_winner_of_a_trial_that_was_not_the_closest_stands() -> None:
    slow, fast = export("dense-onnx-int8", 0.95, size=25, latency=6), export("dense-onnx-int8", 0.95, size=25)
    found = search(
        record(0.5, export("onnx-int8", 0.8, size=60), fast, auto=True),
        record(0.984, export("onnx-int8", 0.95, size=60), slow, auto=True),
    )
    assert came_to(found) == (None, 0.984, 0.5)
    assert f"{NOT_THE_ANSWER}. dense-onnx-int8 does." in trials.conclusion(found)


@pytest.mark.parametrize("dense", [True, False])
def test_what_wins_by_an_unsure_gate_alone_is_no_winner_of_a_trial(dense: bool) -> None:
    gate = Gate(type="threshold", value=0.9, unsure="pass")
    unsure = Finding("accuracy", "share", "higher", 0.95, 0.89, interval=(0.85, 0.93)).judged(gate)
    small = Finding("size", "MiB", "lower", 100, 10).judged(SIZE)
    low_rank = ExportReport("onnx-int8", "onnx", "int8", "candidate", (unsure, small))
    others = [export("dense-onnx-int8", 0.95)] if dense else []
    found = search(record(0.5, low_rank, *others, auto=True))
    assert found.trials[0].winner == ("dense-onnx-int8" if dense else None)
    assert came_to(found) == (None, 0.5, 0.5 if dense else None)
    assert ("dense-onnx-int8 does." in trials.conclusion(found)) == dense
    assert " onnx-int8 does." not in trials.conclusion(found)


def test_a_dense_winner_stands_where_no_low_rank_export_holds_at_any_budget() -> None:
    dense = export("dense-onnx-int8", 0.95, size=25)
    found = search(
        record(0.5, export("onnx-int8", 0.8), dense, auto=True),
        record(0.984, export("onnx-int8", 0.95, size=60), dense, auto=True),
    )
    assert came_to(found) == (None, 0.984, 0.984)
    assert f"{NOT_THE_ANSWER}. dense-onnx-int8 does." in trials.conclusion(found)


def test_gates_that_pull_apart_are_those_of_one_export_where_one_is_enough() -> None:
    found = search(record(0.5, export("onnx-fp32", 0.95, latency=6), export("onnx-int8", 0.8, size=60), auto=True))
    said = "At 0.500 accuracy of onnx-int8 would need a larger budget, size a smaller one."
    assert said in trials.conclusion(found)


# ---- trials whose low-rank exports could not be run ----


@pytest.mark.parametrize("dense", [[], [export("dense-onnx-int8", 0.95, size=25)]], ids=["nothing-won", "dense-won"])
def test_a_trial_of_which_no_low_rank_export_could_be_measured_ends_the_search_with_a_sentence(
    dense: list[ExportReport],
) -> None:
    found = search(record(0.5, *dense, auto=True), budgets=(0.25, 0.5, 0.984))
    assert found.next_budget is None
    assert came_to(found) == (None, 0.5, 0.5 if dense else None)
    assert trials.conclusion(found) == (
        "None of 1 budget tried, up to 0.500, holds the gates on 400 validation rows: no low-rank export could be "
        f"measured.{' dense-onnx-int8 does.' if dense else ''} trials/0.500/report.md says why."
    )
    assert trials.line(found.trials[0]) == (
        "  budget 0.500 (50.0% of the matrices): no low-rank export could be measured"
    )


def test_a_trial_of_which_nothing_could_be_measured_is_neither_closest_nor_too_small() -> None:
    lost, failed = record(0.25, auto=True), record(0.5, export("onnx-int8", 0.8, size=60), auto=True)
    assert search(failed, lost).closest == failed
    held = record(0.5, export("onnx-int8", 0.95), auto=True)
    assert "too small" not in trials.conclusion(search(held, lost))


# ---- search.json ----


OLD = """{
  "schema_version": 1, "split": "validation", "rows": 109, "budgets": [0.25, 0.5, 0.984],
  "trials": [
    {
      "budget": 0.5, "parameters": 2654208, "dense_parameters": 5308416, "seconds": 41.3,
      "wants": {"every export": ["less", "more"]},
      "failed": [
        {"export": "onnx-int8", "quantity": "accuracy", "text": "accuracy fails: candidate 80.00%"},
        {"export": "onnx-int8", "quantity": "size", "text": "size fails: candidate 14.00 MiB"}
      ],
      "winner": null,
      "exports": [
        {"name": "onnx-int8", "findings": {
          "accuracy": {"quantity": "accuracy", "unit": "share", "better": "higher", "dense": 0.95, "candidate": null,
                       "interval": [0.7, 0.9], "confidence": 0.95, "limit": 0.9, "verdict": "fail",
                       "accept_unsure": false, "details": {"n": 109}, "ratio": null}
        }}
      ]
    },
    {
      "budget": 0.984, "parameters": 5223481, "dense_parameters": 5308416, "seconds": 44,
      "wants": {"every export": []}, "failed": [], "winner": null, "exports": []
    }
  ],
  "chosen": 0.984, "closest": 0.984, "stands": 0.984,
  "conclusion": "Budget 0.984 is the smallest of 2 budgets tried whose gates hold on 109 validation rows; 0.500 is too small."
}"""  # noqa: E501


def kept(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(OLD)
    change(data)
    (folder / SEARCH).write_text(json.dumps(data))


def test_a_search_that_an_earlier_version_wrote_is_read_and_written_again_as_it_was(tmp_path: Path) -> None:
    (tmp_path / SEARCH).write_text(OLD)
    found = Search.read(tmp_path)
    assert [one.tried for one in found.trials] == [
        bisection.Trial(0.5, {EVERY: frozenset({"less", "more"})}),
        bisection.Trial(0.984, {EVERY: frozenset()}),
    ]
    write_json(tmp_path / SEARCH, trials.told(found))
    assert json.loads((tmp_path / SEARCH).read_text()) == json.loads(OLD)
    assert list(json.loads((tmp_path / SEARCH).read_text())) == list(json.loads(OLD))


def test_what_is_written_of_a_search_is_read_back(tmp_path: Path) -> None:
    lost = export("onnx-int8", float("nan"))
    found = search(record(0.5, export("onnx-fp32", 0.8), lost), record(0.75, export("onnx-fp32", 0.95)))
    write_json(tmp_path / SEARCH, trials.told(found))
    again = Search.read(tmp_path)
    assert [replace(one, exports=()) for one in again.trials] == [replace(one, exports=()) for one in found.trials]
    assert json.loads(json.dumps(trials.told(again))) == json.loads((tmp_path / SEARCH).read_text())
    assert "NaN" not in (tmp_path / SEARCH).read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.pop("budgets"), "budgets: Field required"),
        (lambda data: data.update(budgets=[]), "budgets: Tuple should have at least 1 item"),
        (lambda data: data["trials"][1].update(budget=1.5), "trials.1.budget: Input should be less than 1, not 1.5"),
        (lambda data: data["trials"][0].pop("wants"), "trials.0.wants: Field required"),
        (lambda data: data["trials"][0]["failed"].append(3), "trials.0.failed.2: Input should be a"),
        (lambda data: data["trials"][0].update(dense_parameters=0), "trials.0.dense_parameters: Input should be great"),
        (lambda data: data["trials"][0]["wants"].update(x=["most"]), "trials.0.wants.x.0: Input should be 'more' or"),
        (lambda data: data.update(trials=3), "trials: Input should be a valid tuple, not 3"),
    ],
)
def test_a_damaged_search_is_told_with_what_to_do(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    kept(tmp_path, change)
    with pytest.raises(ArtifactError) as error:
        Search.read(tmp_path)
    first, fault, repair = str(error.value).splitlines()
    assert first == f"{tmp_path / SEARCH} cannot be read:"
    assert said in fault
    assert repair.startswith("Restore it, or remove it and go on with --resume")
    (tmp_path / MANIFEST).touch()
    with pytest.raises(ArtifactError, match=r"Restore it, or start again with --overwrite\.$"):
        Search.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_search_that_is_no_json_object_is_told_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / SEARCH).write_text(text)
    with pytest.raises(ArtifactError, match=r"search\.json cannot be read: .* Restore it, or remove it"):
        Search.read(tmp_path)


def test_a_search_of_another_schema_is_refused(tmp_path: Path) -> None:
    kept(tmp_path, lambda data: data.update(schema_version=2))
    with pytest.raises(ArtifactError, match="schema version 2; this version reads 1"):
        Search.read(tmp_path)


# ---- one line ----


def test_a_trial_is_told_on_one_line() -> None:
    told = trials.line(record(0.5, export("onnx-fp32", 0.8), export("onnx-int8", 0.95)))
    assert told == (
        "  budget 0.500 (50.0% of the matrices): onnx-fp32 accuracy 80.00% (dense 95.00%), 40.0 MiB (0.40x), "
        "onnx-int8 accuracy 95.00% (dense 95.00%), 40.0 MiB (0.40x): fails accuracy"
    )


def test_a_value_that_is_no_number_is_told_too() -> None:
    findings = {
        "accuracy": {"candidate": None, "dense": 0.9, "ratio": None},
        "size": {"candidate": 3.0, "dense": 0.0, "ratio": None},
    }
    told = trials.line(replace(record(0.5), exports=(ExportFigures("x", findings),)))
    assert "accuracy nan%" in told
    assert "3.0 MiB (nanx)" in told
