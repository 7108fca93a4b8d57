"""The table, the plot and the sentences of a search, from the report's context alone."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from compressor.errors import GateError
from compressor.recipe import Gate
from validators import budget_search, render
from validators.base import Finding
from validators.export_report import ExportReport
from validators.report import Report

HOSTILE = "<script>alert(1)</script>|`x`"


def trial(budget: float, accuracy: float, *, export: str = "onnx-int8") -> dict[str, Any]:
    findings = {
        "accuracy": {"dense": 0.95, "candidate": accuracy, "limit": 0.93},
        "size": {"dense": 100.0, "candidate": 100 * budget},
    }
    failed = [] if accuracy >= 0.93 else [{"export": export, "quantity": "accuracy", "text": "too low"}]
    return {
        "budget": budget,
        "parameters": round(1000 * budget),
        "dense_parameters": 1000,
        "failed": failed,
        "exports": [{"name": export, "findings": findings}],
    }


def context(*trials: Any, chosen: float | None = 0.5) -> dict[str, Any]:
    found = {"trials": list(trials), "chosen": chosen, "stands": chosen, "conclusion": "So it is."}
    return {"search": found}


FAILED = ["accuracy", "latency_p50"]
FOUND = context(trial(0.5, 0.94), trial(0.25, 0.9), trial(0.75, 0.95))


def report(of: dict[str, Any], accuracy: float = 0.94) -> Report:
    gate = Gate(type="threshold", value=0.93)
    finding = Finding("accuracy", "share", "higher", 0.95, accuracy).judged(gate)
    return Report((ExportReport("onnx-int8", "onnx", "int8", "candidate", (finding,)),), of)


def test_the_table_has_a_row_for_each_export_of_each_trial_by_budget() -> None:
    header, *rows = budget_search.table(FOUND)
    assert header == ("Budget", "Matrices", "Accuracy", "Dense", "Size", "Export", "Gates")
    assert [(row[0], row[2], row[-1]) for row in rows] == [
        ("0.250", "90.00%", "fail"),
        ("0.500", "94.00%", "hold, chosen"),
        ("0.750", "95.00%", "hold"),
    ]


def test_the_plot_draws_every_trial_the_dense_model_the_limit_and_what_was_chosen() -> None:
    drawn = budget_search.draw(FOUND)
    assert drawn is not None
    assert drawn.title == "Accuracy against size of the matrices"
    for said in ("dense", "limit of the gate", "chosen: budget 0.500", "onnx-int8"):
        assert said in drawn.svg
    assert drawn.alt.count("of the matrices: ") == 3
    ElementTree.fromstring(re.sub(r"xlink:", "", drawn.svg))


def test_no_line_is_told_by_its_color_alone() -> None:
    one = trial(0.5, 0.94)
    one["exports"] = [{**one["exports"][0], "name": name} for name in ("onnx-fp32", "onnx-int8", "onnx-int4")]
    looks = list[tuple[Any, Any]]()

    class Axes:
        def plot(self, *_: Any, **look: Any) -> None:
            if "label" in look:
                looks.append((look["ls"], look["marker"]))

    for index, point in enumerate(budget_search.points(context(one))):
        budget_search._line(Axes(), point.export, [point], index, 100)  # type: ignore[arg-type]
    assert [len(set(kind)) for kind in zip(*looks, strict=True)] == [3, 3]


def test_perplexity_is_drawn_in_its_own_unit() -> None:
    one = trial(0.5, 0.94)
    one["exports"][0]["findings"] = {"perplexity": {"dense": 20.0, "candidate": 21.5, "limit": 22.0}}
    assert budget_search.table(context(one))[1][2:4] == ("21.50", "20.00")
    drawn = budget_search.draw(context(one))
    assert drawn is not None
    assert "perplexity (down is better)" in drawn.svg


@pytest.mark.parametrize(
    "of",
    [
        {},
        {"search": None},
        {"search": {"trials": 3}},
        {"search": {"trials": [None, {}, {"exports": [{}], "dense_parameters": 1}]}},
    ],
)
def test_what_is_not_whole_is_left_out(of: dict[str, Any]) -> None:
    assert budget_search.table(of) == []
    assert budget_search.draw(of) is None
    assert budget_search.sentence(of) == ""


def test_a_value_that_is_no_number_stands_in_the_table_and_not_in_the_plot() -> None:
    one = trial(0.5, 0.94)
    one["exports"][0]["findings"]["accuracy"]["candidate"] = None
    assert budget_search.table(context(one))[1][2] == "not a number"
    assert budget_search.draw(context(one)) is None


def test_names_are_escaped_in_every_format() -> None:
    found = report(context(trial(0.5, 0.94, export=HOSTILE)))
    assert "<script>" not in render.html(found)
    assert "<script>" not in render.markdown(found)


def test_a_failed_winner_names_the_next_larger_budget_that_held() -> None:
    with pytest.raises(GateError) as error:
        report(FOUND, accuracy=0.9).raise_for_gates()
    assert "Worth trying next is 0.750, which held its gates on the validation rows" in str(error.value)


@pytest.mark.parametrize(("chosen", "following"), [(0.5, "0.562"), (0.969, "0.984")])
def test_a_failed_winner_without_a_larger_trial_names_an_untried_budget(chosen: float, following: str) -> None:
    assert f"is {following}, which was not tried" in budget_search.hint(
        context(trial(chosen, 0.94), chosen=chosen), FAILED
    )


def test_where_the_largest_budget_failed_nothing_larger_is_proposed() -> None:
    said = budget_search.hint(context(trial(0.984, 0.94), chosen=0.984), FAILED)
    assert "No larger one is left to try" in said
    assert "--set" not in said


def test_a_budget_that_was_tried_is_not_called_untried() -> None:
    failed = trial(0.562, 0.5)
    failed["failed"] = [{"export": "onnx-int8", "quantity": "latency_p50"}]
    assert "is 0.578, which was not tried" in budget_search.hint(context(trial(0.5, 0.94), failed, chosen=0.5), FAILED)


def test_only_budgets_that_give_the_model_a_plan_of_its_own_are_proposed() -> None:
    """With a large plan.multiple_of most of the grid gives the plan of a smaller budget, or none at low rank."""
    found = context(trial(0.5, 0.94), chosen=0.5)
    found["search"]["budgets"] = [0.25, 0.5, 0.703]
    assert "is 0.703, which was not tried" in budget_search.hint(found, FAILED)
    found["search"]["budgets"] = [0.25, 0.5]
    assert "No larger one is left to try" in budget_search.hint(found, FAILED)


def test_a_trial_whose_budget_is_no_number_is_left_out() -> None:
    found = context(trial(0.5, 0.94), trial(0.25, 0.9) | {"budget": None}, trial(0.75, 0.9) | {"budget": "large"})
    assert [point.budget for point in budget_search.points(found)] == [0.5]


def test_costs_that_came_out_otherwise_ask_for_no_larger_budget() -> None:
    said = budget_search.hint(FOUND, ["latency_p50", "size", "latency_p50"])
    assert "latency_p50 and size came out otherwise when measured again" in said
    assert "0.750" not in said
    assert "Evaluation data" not in said
    slow = Finding("latency_p50", "ms", "lower", 10.0, 9.0).judged(Gate(type="threshold", value=8))
    failed = Report((ExportReport("onnx-int8", "onnx", "int8", "candidate", (slow,)),), FOUND)
    with pytest.raises(GateError, match="came out otherwise"):
        failed.raise_for_gates()


def test_the_quality_is_the_one_that_a_gate_limits() -> None:
    one = trial(0.5, 0.94)
    one["exports"][0]["findings"] = {
        "accuracy": {"dense": 0.4, "candidate": 0.39, "limit": None},
        "perplexity": {"dense": 20.0, "candidate": 30.0, "limit": 21.0},
    }
    assert budget_search.table(context(one))[0][2] == "Perplexity"
    drawn = budget_search.draw(context(one))
    assert drawn is not None
    assert "limit of the gate" in drawn.svg


def test_of_the_best_of_many_one_that_holds_is_enough() -> None:
    larger = trial(0.75, 0.94)
    larger["exports"].append({**larger["exports"][0], "name": "onnx-int4"})
    larger["failed"] = [{"export": "onnx-int4", "quantity": "accuracy"}]
    found = context(trial(0.5, 0.94), larger, chosen=0.5)
    assert "is 0.562, which was not tried" in budget_search.hint(found, FAILED)
    assert "is 0.750, which held" in budget_search.hint(found | {"recipe": {"export": "auto"}}, FAILED)


def test_a_search_in_vain_fails_its_report_even_where_an_unsure_gate_passes() -> None:
    found = report(context(trial(0.5, 0.94), chosen=None))
    assert found.verdict == "fail"
    assert found.headline == "Fail: no budget that was tried holds every gate"
    with pytest.raises(GateError, match="So it is"):
        found.raise_for_gates()
    root = ElementTree.fromstring(render.junit(found))
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    assert [case.get("message") for case in root.iter("failure")] == ["So it is."]


def test_a_report_without_a_search_says_nothing_of_one() -> None:
    found = report({})
    assert found.verdict == "pass"
    assert "Budgets tried" not in render.html(found) + render.markdown(found)
