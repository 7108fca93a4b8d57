"""Two reports beside each other: what is worse, what cannot be told, and what cannot be compared."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import compressor
from compressor import step_summary
from compressor.cli import app
from compressor.errors import ArtifactError, DataError, GateError, InputError
from compressor.recipe import Gate
from validators.base import Finding
from validators.compare import compare, interval, percentages, read, tolerance
from validators.export_report import ExportReport
from validators.report import Report

GATES: dict[str, Any] = {
    "accuracy": {"type": "max-degradation", "value": 0.02},
    "parity": {"type": "threshold", "value": 0.95},
    "size": {"type": "percent-min-improvement", "value": 30},
    "latency_p50": {"type": "percent-max-degradation", "value": 10},
}


def export(
    accuracy: float = 0.90,
    margin: float = 0.001,
    parity: float = 0.99,
    size: float = 50.0,
    latency: float = 5.0,
    name: str = "onnx-int8",
    role: Any = "candidate",
) -> ExportReport:
    """An export beside a dense model of accuracy 0.95, 100 MiB and 10 ms; latency is known to 1 %."""
    findings = (
        Finding("accuracy", "share", "higher", 0.95, accuracy, (accuracy - margin, accuracy + margin), 0.95),
        Finding("parity", "agreement", "higher", 1.0, parity),
        Finding("size", "MiB", "lower", 100.0, size),
        Finding("latency_p50", "ms", "lower", 10.0, latency, (0.99 * latency, 1.01 * latency), 0.95),
    )
    return ExportReport(name, "onnx", "int8", role, findings)


def context(gates: dict[str, Any] | None = None, digest: str | None = "d" * 64, **others: Any) -> dict[str, Any]:
    recipe = {"gates": GATES if gates is None else gates, "validate": {"device": "cpu", "batch_size": 1}}
    data = {"data": {"evaluation": {"digest": digest}}} if digest else {}
    return {"recipe": recipe, "machine": {"cpu": "a CPU", "threads": 2}, **data, **others}


def report(*exports: ExportReport, **of_context: Any) -> Report:
    return Report(exports or (export(),), context(**of_context))


def verdicts(before: ExportReport, after: ExportReport, **named: Any) -> dict[str, str]:
    (found,) = compare(report(before), report(after, **named.pop("of_context", {})), **named).exports
    return {change.after.quantity: change.judged.verdict for change in found.changes}


# --- the rule


def test_the_same_report_is_no_worse_than_itself() -> None:
    found = compare(report(), report())
    found.raise_for_gates()
    assert (found.verdict, found.warnings, found.gone, found.new) == ("pass", (), (), ())
    assert found.headline == "No worse than before: all 4 judged quantities hold"


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [(0.89, "pass"), (0.8801, "unsure"), (0.8799, "unsure"), (0.87, "fail"), (math.nan, "fail")],
)
def test_a_degradation_gate_is_held_against_the_value_before_and_not_against_dense(
    accuracy: float, verdict: str
) -> None:
    assert verdicts(export(0.90), export(accuracy))["accuracy"] == verdict


def test_what_was_no_number_before_is_nothing_to_be_held_against() -> None:
    found = verdicts(export(math.nan, parity=math.nan), export())
    assert (found["accuracy"], found["parity"], found["size"]) == ("fail", "pass", "pass")


def test_a_threshold_holds_whatever_was_before() -> None:
    assert verdicts(export(parity=0.999), export(parity=0.951))["parity"] == "pass"
    assert verdicts(export(parity=0.90), export(parity=0.949))["parity"] == "fail"


def test_an_improvement_gate_says_nothing_about_releases_and_gets_five_percent() -> None:
    assert verdicts(export(size=20), export(size=20.9))["size"] == "pass"
    assert verdicts(export(size=20), export(size=21.1))["size"] == "fail"
    assert verdicts(export(size=90), export(size=90))["size"] == "pass"  # its recipe judges that, not the comparison


@pytest.mark.parametrize(
    ("quantity", "gate", "percent", "expected"),
    [
        ("accuracy", ("max-degradation", 0.03), None, ("max-degradation", 0.03)),
        ("accuracy", ("min-improvement", 0.03), None, ("max-degradation", 0.01)),
        ("accuracy", ("max-degradation", 0.0), None, ("max-degradation", 0.01)),
        ("latency_p50", ("percent-max-degradation", 0.0), None, ("percent-max-degradation", 5)),
        ("latency_p50", ("percent-max-degradation", -20.0), None, ("percent-max-degradation", 5)),
        ("perplexity", ("percent-max-degradation", 15.0), None, ("percent-max-degradation", 15)),
        ("parity", ("threshold", 0.9), None, ("threshold", 0.9)),
        ("parity", ("threshold", 0.9), 2.0, ("percent-max-degradation", 2)),
        ("size", None, None, ("percent-max-degradation", 5)),
        ("size", ("percent-min-improvement", 30.0), 0.0, ("percent-max-degradation", 0)),
    ],
)
def test_the_tolerance_is_that_of_gate_option_then_recipe_then_default(
    quantity: str, gate: Any, percent: float | None, expected: tuple[str, float]
) -> None:
    given = gate and Gate(type=gate[0], value=gate[1], unsure="pass")
    found = tolerance(quantity, given, percent)
    assert (found.type, found.value) == expected
    assert found.unsure == ("pass" if gate else "fail")


def test_an_option_replaces_the_tolerance_of_one_quantity() -> None:
    slower = export(latency=5.4)
    assert verdicts(export(), slower)["latency_p50"] == "pass"
    assert verdicts(export(), slower, percents={"latency_p50": 5})["latency_p50"] == "fail"
    assert verdicts(export(), export(latency=9), percents={"latency_p50": 90})["latency_p50"] == "pass"


def test_what_no_gate_names_is_shown_and_not_judged() -> None:
    found = verdicts(export(), export(0.1, parity=0.1, size=99, latency=99), of_context={"gates": {}})
    assert set(found.values()) == {"ungated"}
    nothing = compare(report(gates={}), report(gates={}))
    assert (nothing.verdict, nothing.headline.partition(":")[0]) == ("unjudged", "Nothing was judged")
    with pytest.raises(InputError, match=r"Nothing was judged.* Name one, as --gate"):
        nothing.raise_for_gates()
    gone = compare(report(gates={}), Report((export(name="onnx-fp32"),), context({})))
    assert gone.verdict == "fail"


def dense_files(digest: str) -> dict[str, str]:
    return {"baseline/onnx-fp32/model.onnx": digest * 64}


def test_candidates_of_two_dense_models_are_held_apart_by_their_own_intervals() -> None:
    """A dense model that was trained anew takes the rows that vary with it out of what the pairing knows."""
    known = replace(export(0.885).findings[0], alone=(0.865, 0.905))
    worse = replace(export(0.88), findings=(known,))
    before = report(
        replace(export(), findings=(replace(export().findings[0], alone=(0.88, 0.92)),)), files=dense_files("a")
    )
    found = {
        files: compare(before, report(worse, files=dense_files(files))).exports[0].changes[0].judged for files in "ab"
    }
    assert (found["a"].verdict, found["b"].verdict) == ("pass", "unsure")
    assert found["b"].interval == pytest.approx((0.885 - math.hypot(0.02, 0.02), 0.885 + math.hypot(0.02, 0.02)))


def test_times_of_two_days_are_compared_by_the_dense_model_that_both_ran_beside() -> None:
    slow = replace(export(latency=6.0), findings=(replace(export(latency=6.0).findings[3], dense=12.0),))
    before, after = report(files=dense_files("a")), report(slow, files=dense_files("a"))
    found = compare(before, after)
    (change,) = found.exports[0].changes
    assert change.judged.dense == pytest.approx(6.0)  # 5 ms where dense took 10, so 6 where it takes 12
    assert (change.judged.verdict, change.difference) == ("pass", pytest.approx(0))
    assert "The same dense model takes 1.20x the time that it took before (onnx)" in " ".join(found.warnings)
    other = compare(before, report(slow, files=dense_files("b")))
    assert other.exports[0].changes[0].judged.verdict == "fail"
    assert "The same dense model" not in " ".join(other.warnings)


def test_a_threshold_is_judged_by_where_the_value_lies_alone() -> None:
    gate = {"accuracy": {"type": "threshold", "value": 0.895}}
    finding = replace(export().findings[0], alone=(0.88, 0.92))
    after = Report((replace(export(), findings=(finding,)),), context(gate))
    (change,) = compare(report(), after).exports[0].changes
    assert (change.judged.verdict, change.judged.interval) == ("unsure", (0.88, 0.92))


def test_a_gated_finding_of_a_report_without_its_recipe_gets_the_default() -> None:
    size = export(size=60).findings[2].judged(Gate(type="percent-min-improvement", value=30))
    after = Report((replace(export(), findings=(size,)),), {})
    (change,) = compare(report(), after).exports[0].changes
    assert (change.judged.limit, change.judged.verdict) == (52.5, "fail")


def test_a_reference_is_shown_and_never_judged() -> None:
    found = verdicts(export(role="reference"), export(0.1, size=99, role="reference"), percents={})
    assert set(found.values()) == {"ungated"}


def test_unsure_fails_unless_the_recipe_accepts_it() -> None:
    near = export(0.8801)
    assert compare(report(), report(near)).headline == "Perhaps worse than before: 1 of 4 judged quantities is unsure"
    accepting = GATES | {"accuracy": GATES["accuracy"] | {"unsure": "pass"}}
    assert compare(report(), report(near, gates=accepting)).verdict == "pass"


def test_a_candidate_that_is_a_mere_reference_now_is_told() -> None:
    worse = export(accuracy=0.6, name="onnx-fp32", role="reference")
    found = compare(report(export(name="onnx-fp32")), report(export(), worse))
    assert any("onnx-fp32 was a candidate before and only stand" in warning for warning in found.warnings)
    assert not any("candidate before" in one for one in compare(report(worse), report(export(), worse)).warnings)


def test_a_candidate_that_is_gone_fails_and_a_new_one_is_listed() -> None:
    found = compare(report(export(), export(name="onnx-fp32")), report(export(), export(name="openvino-int8")))
    assert (found.gone, found.new, found.verdict) == (("onnx-fp32",), ("openvino-int8",), "fail")
    with pytest.raises(GateError, match="onnx-fp32: is in the report before and not in the one after"):
        found.raise_for_gates()
    reference = compare(report(export(), export(name="dense", role="reference")), report(export()))
    assert reference.verdict == "pass"
    assert "Only the report before has the reference dense." in reference.warnings


# --- intervals


def test_the_interval_of_the_difference_covers_it_as_often_as_those_it_is_made_of() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    old, new = rng.normal(10.0, 0.3, 4000), rng.normal(11.0, 0.4, 4000)

    def finding(value: float, deviation: float) -> Finding:
        return Finding("size", "MiB", "lower", 20.0, value, (value - 1.96 * deviation, value + 1.96 * deviation), 0.95)

    inside = 0
    for before, after in zip(old.tolist(), new.tolist(), strict=True):
        low, high = interval(finding(before, 0.3), finding(after, 0.4)) or (math.nan, math.nan)
        inside += low / before <= 1.1 <= high / before
        assert high - low == pytest.approx(2 * 1.96 * 11 * math.hypot(0.3 / 10, 0.4 / 11), rel=0.2)
    assert 0.94 < inside / 4000 < 0.96


def test_the_margin_of_a_side_comes_from_the_opposite_side_before() -> None:
    before = Finding("latency_p50", "ms", "lower", 9.0, 5.0, (4.0, 5.0), 0.9)
    after = Finding("latency_p50", "ms", "lower", 9.0, 6.0, (6.0, 6.5), 0.95)
    margin = math.hypot(math.log(6.5 / 6), math.log(5 / 4))
    assert interval(before, after) == (6.0, pytest.approx(6 * math.exp(margin)))
    assert interval(before, replace(after, interval=None)) == (6.0, pytest.approx(6 * 5 / 4))
    assert interval(replace(before, interval=None), replace(after, interval=None)) is None


def test_a_difference_of_shares_is_one_of_points() -> None:
    before, after = (Finding("accuracy", "share", "higher", 0.9, v, (v - 0.03, v + 0.03), 0.95) for v in (0.8, 0.85))
    assert interval(before, after) == pytest.approx((0.85 - math.hypot(0.03, 0.03), 0.85 + math.hypot(0.03, 0.03)))


def test_no_time_is_negative_however_little_is_known() -> None:
    before = Finding("latency_p99", "ms", "lower", 9.0, 5.0, (2.0, 30.0), 0.95)
    after = Finding("latency_p99", "ms", "lower", 9.0, 6.0, (1.0, 40.0), 0.95)
    low, high = interval(before, after) or (math.nan, math.nan)
    assert 0 < low < 1
    assert high > 40
    assert interval(before, replace(after, interval=(0.0, math.inf))) == (0.0, math.inf)


@pytest.mark.parametrize(
    ("ours", "theirs", "overlap"),
    [((1, 2), (2, 3), True), ((1, 2), (3, 4), False), ((1, 9), (3, 4), True), ((1, 2), None, None)],
)
def test_whether_the_intervals_overlap_is_told(ours: Any, theirs: Any, overlap: bool | None) -> None:
    old, new = (replace(export(), findings=(replace(export().findings[3], interval=i),)) for i in (ours, theirs))
    assert compare(report(old), report(new)).exports[0].changes[0].overlap is overlap


def test_the_same_files_on_the_same_data_have_the_same_accuracy_however_wide_its_interval() -> None:
    files = {"exports/onnx-int8/model.onnx": "a", "exports/onnx-int8/export.json": "b"}
    other = files | {"exports/onnx-int8/model.onnx": "c"}
    again = files | {"exports/onnx-int8/export.json": "versions may differ"}
    wide = export(margin=0.1)
    for found, verdict in ((again, "pass"), (other, "unsure"), ({}, "unsure")):
        compared = compare(report(wide, files=files), report(wide, files=found)).exports[0].changes
        assert compared[0].judged.verdict == verdict
        assert compared[3].judged.interval is not None  # time is measured anew


def test_a_dense_winner_whose_files_are_the_same_is_no_worse() -> None:
    files = {"baseline/onnx-int8/model.onnx": "a", "exports/onnx-int8/model.onnx": "b"}
    won = export(margin=0.1, name="dense-onnx-int8")
    assert compare(report(won, files=files), report(won, files=files)).exports[0].changes[0].judged.verdict == "pass"


def test_what_wins_now_is_held_against_what_won_before() -> None:
    def auto(*exports: ExportReport) -> Report:
        made = report(*exports)
        return replace(made, context=made.context | {"recipe": made.context["recipe"] | {"export": "auto"}})

    before = auto(export(accuracy=0.90), export(accuracy=0.885, name="dense-onnx-int8", role="reference"))
    worse = auto(export(accuracy=0.60, role="reference"), export(accuracy=0.85, name="dense-onnx-int8"))
    found = compare(before, worse)
    assert found.verdict == "fail"
    assert found.exports[1].changes[0].judged.dense == 0.90
    assert "onnx-int8 won before, dense-onnx-int8 wins now: what would ship is held against" in " ".join(found.warnings)
    near = auto(export(accuracy=0.60, role="reference"), export(accuracy=0.899, name="dense-onnx-int8"))
    assert compare(before, near).verdict == "pass"
    assert not any("won before" in one for one in compare(before, before).warnings)


# --- what can be compared
# --- what can be compared


def test_other_evaluation_data_is_refused_unless_it_is_allowed() -> None:
    with pytest.raises(DataError, match="--allow-different-data") as caught:
        compare(report(), report(digest="e" * 64))
    assert "dddddddddddd before, eeeeeeeeeeee after" in str(caught.value)
    assert caught.value.exit_code == 2
    (warning,) = compare(report(), report(digest="e" * 64), allow_different_data=True).warnings
    assert "evaluation data differs" in warning


def running(length: int, tokenizer: str, task: str = "text-generation") -> Report:
    made = report(model={"task": task}, files={"exports/onnx-int8/tokenizer.json": tokenizer})
    made.context["recipe"]["model"] = {"max_length": length}
    return made


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (running(512, "a"), "blocks of 128 tokens before and 512 after"),
        (running(128, "b"), "by another tokenizer"),
    ],
)
def test_running_text_that_is_cut_otherwise_is_other_data(after: Report, said: str) -> None:
    with pytest.raises(DataError, match=f"{said}.*--allow-different-data"):
        compare(running(128, "a"), after)
    (warning,) = compare(running(128, "a"), after, allow_different_data=True).warnings
    assert said in warning


def test_sentences_may_be_cut_otherwise() -> None:
    assert not compare(running(128, "a", "text-classification"), running(512, "b", "text-classification")).warnings
    assert not compare(running(128, "a"), running(128, "a")).warnings


def test_unknown_evaluation_data_is_a_warning() -> None:
    assert "does not say which evaluation data" in compare(report(digest=None), report()).warnings[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine": {"cpu": "another", "threads": 2}}, "CPU a CPU before, another after"),
        ({"machine": {"cpu": "a CPU", "threads": 4}}, "threads 2 before, 4 after"),
        ({"machine": {"cpu": "a CPU", "threads": 2, "gpu": "one"}}, "GPU unknown before, one after"),
        ({"versions": {"onnxruntime": "1.32"}}, "onnxruntime unknown before, 1.32 after"),
    ],
)
def test_other_circumstances_are_a_warning_that_names_them(change: dict[str, Any], said: str) -> None:
    (warning,) = compare(report(), report(**change)).warnings
    assert said in warning
    assert "Latency and memory" in warning


def test_what_only_one_report_has_and_a_gate_taken_out_are_told() -> None:
    fewer = {name: gate for name, gate in GATES.items() if name != "size"}
    short = replace(export(), findings=export().findings[:3])
    warnings = compare(report(), report(short, gates=fewer)).warnings
    assert "onnx-int8: latency_p50 was measured only before." in warnings
    assert "The recipe before gates size, the one after does not." in warnings
    failing = replace(export(), findings=(export().findings[2].judged(Gate(type="threshold", value=1)),))
    assert "The report after fails gates of its own recipe." in compare(report(), report(failing)).warnings


def test_settings_that_are_no_percentages_are_all_listed() -> None:
    with pytest.raises(InputError) as caught:
        percentages(["size", "size=-1", "size=nan", "=5", "size=many", "size=5", "size=6"])
    lines = str(caught.value).splitlines()
    assert [line.split()[1].rstrip(":") for line in lines] == [
        "size",
        "size=-1",
        "size=nan",
        "=5",
        "size=many",
        "size=6",
    ]
    assert "stands twice" in lines[-1]
    assert percentages(["size=5", "latency_p50=2.5"]) == {"size": 5.0, "latency_p50": 2.5}


def test_a_tolerance_for_what_is_not_in_both_reports_is_refused_with_what_is() -> None:
    with pytest.raises(InputError, match=r"--gate sise: no export has it in both reports.* Did you mean 'size'"):
        compare(report(), report(), {"sise": 5.0})


@pytest.mark.parametrize("odd", [None, "text", 3, [], {}, {"a": None}, [None, {}]])
def test_a_context_of_odd_shapes_is_compared_or_refused_in_a_sentence(odd: Any) -> None:
    keys = ("machine", "data", "versions", "files", "recipe")
    found = compare(report(), Report((export(),), dict.fromkeys(keys, odd)))
    assert any("does not say which evaluation data" in warning for warning in found.warnings)
    with pytest.raises(ArtifactError) if odd else nullcontext():
        compare(report(), report(gates=odd or {}))


def test_gates_that_cannot_be_read_are_named() -> None:
    with pytest.raises(ArtifactError, match=r"size\.type"):
        compare(report(), report(gates={"size": {"type": "wide", "value": 1}}))


# --- the command


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(name: str, *exports: ExportReport, **of_context: Any) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report(*exports, **of_context).to_dict()))
        return tmp_path / name

    return save


def invoke(*words: Any) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def test_the_command_ends_with_0_when_nothing_is_worse_and_with_1_when_something_is(
    saved: Callable[..., Path],
) -> None:
    before, same, worse = saved("before"), saved("same"), saved("worse", export(0.80, size=60))
    good, bad = invoke(before, same / "report.json"), invoke(before / "report.json", worse)
    assert (good.exit_code, good.stderr) == (0, "")
    assert good.stdout.startswith("No worse than before: all 4 judged quantities hold\n")
    assert bad.exit_code == 1
    size = next(line for line in bad.stdout.splitlines() if line.startswith("Size"))
    assert re.split(r"\s{2,}", size) == [
        *("Size", "50.00 MiB", "60.00 MiB", "+10.00 MiB", "1.200", "-", "max 52.50 MiB", "fail")
    ]
    assert "-10.00 points" in bad.stdout
    assert "error: Worse than before: 2 of 4 judged quantities do not hold." in bad.stderr
    assert "onnx-int8: size fails: after 60.00 MiB, before 50.00 MiB, limit max 52.50 MiB" in bad.stderr
    assert invoke(before, worse, "--gate", "size=20", "--gate", "accuracy=20").exit_code == 0


def test_json_is_one_object_with_every_figure(saved: Callable[..., Path]) -> None:
    result = invoke(saved("before"), saved("after", export(math.nan, latency=6)), "--json")
    data = json.loads(result.stdout)
    assert (result.exit_code, data["verdict"], data["gone"], data["new"]) == (1, "fail", [], [])
    changes = data["exports"][0]["changes"]
    assert (changes["accuracy"]["after"], changes["accuracy"]["difference"]) == (None, None)
    latency = changes["latency_p50"]
    assert (latency["before"], latency["after"], latency["difference"], latency["ratio"]) == (5, 6, 1, 1.2)
    assert latency["before_interval"] == pytest.approx([4.95, 5.05])
    margins = (math.hypot(math.log(0.99), math.log(1.01)), math.hypot(math.log(1.01), math.log(0.99)))
    assert latency["interval"] == pytest.approx([6 * math.exp(-margins[0]), 6 * math.exp(margins[1])])
    assert (latency["overlap"], latency["limit"], latency["verdict"]) == (False, 5.5, "fail")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema_version": 99}', "has schema_version 99; this version reads 1"),
        ("{", "is not JSON"),
        (None, "does not exist"),
    ],
)
def test_reports_that_cannot_be_read_are_both_named(tmp_path: Path, text: str | None, said: str) -> None:
    paths = [tmp_path / "old.json", tmp_path / "new"]
    if text is not None:
        paths[0].write_text(text)
        paths[1].mkdir()
        (paths[1] / "report.json").write_text(text)
    result = invoke(*paths)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count(said) == 2
    assert "old.json" in result.stderr
    assert "new/report.json" in result.stderr
    with pytest.raises(ArtifactError):
        read(*paths)


def test_markdown_is_appended_and_names_are_text(saved: Callable[..., Path], tmp_path: Path) -> None:
    hostile = export(name='<script>alert("x")</script>|`*$a_b$*`')
    page = tmp_path / "page.md"
    page.write_text("# Before\n")
    machine = {"cpu": "a\n# b | <img src=x>"}
    after = saved("after", hostile, machine=machine)
    assert invoke(saved("before", hostile), after, "--markdown", page).exit_code == 0
    text = page.read_text()
    assert text.startswith("# Before\n## No worse than before")
    assert "<script>" not in text
    assert "<img" not in text
    assert [line for line in text.splitlines() if line.startswith("# ")] == ["# Before"]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9}


def test_comparing_imports_nothing_heavy(saved: Callable[..., Path], tmp_path: Path) -> None:
    code = "import sys\nfrom compressor.cli import main\ntry:\n    main()\nfinally:\n    print(sorted(sys.modules))"
    words = ["compare", str(saved("before")), str(saved("after")), "--json"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].strip("[]").replace("'", "").split(", "))
    assert not {"torch", "transformers", "datasets", "matplotlib"} & loaded
    assert "validators.compare" in loaded


# --- the step summary


def test_the_step_summary_gets_the_comparison_once(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "summary.md"
    page.write_text("what an earlier step said\n")
    monkeypatch.setenv(step_summary.VARIABLE, str(page))
    before, after = saved("before"), saved("after", export(0.5))
    assert invoke(before, after, "--markdown", page).exit_code == 1
    assert page.read_text().count("## Worse than before") == 1
    assert invoke(before, after, "--json").exit_code == 1
    assert page.read_text().count("## Worse than before") == 2
    assert page.read_text().startswith("what an earlier step said\n")


def test_the_step_summary_gets_what_report_md_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(step_summary.VARIABLE, str(tmp_path / "summary.md"))
    report().save(tmp_path)
    step_summary.append(report())
    assert (tmp_path / "summary.md").read_text() == (tmp_path / "report.md").read_text() + "\n"


@pytest.mark.parametrize("words", [("run", "recipe.yaml", "--out", "x"), ("export", "x"), ("validate", "x")])
def test_every_verb_that_judges_tells_the_step_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    failing = replace(export(), findings=(export().findings[2].judged(Gate(type="threshold", value=1)),))
    names = {"run": Report((failing,)), "validate": Report((failing,)), "export": SimpleNamespace(name="onnx-int8")}
    module = SimpleNamespace(**{name: lambda *_, found=found, **__: found for name, found in names.items()})
    for room in ("pipeline", "exporting", "proving"):
        monkeypatch.setitem(sys.modules, f"compressor.{room}", module)
        monkeypatch.setattr(compressor, room, module, raising=False)
    monkeypatch.setattr("compressor.recipe.read", lambda *_: None)
    monkeypatch.setenv(step_summary.VARIABLE, str(tmp_path / "summary.md"))
    assert CliRunner().invoke(app, list(words)).exit_code == 1
    assert (tmp_path / "summary.md").read_text().count("## Fail: 1 of 1 gates does not hold") == 1


def test_a_page_that_cannot_be_written_is_told_after_the_result(saved: Callable[..., Path], tmp_path: Path) -> None:
    result = invoke(saved("before"), saved("after"), "--markdown", tmp_path / "no" / "page.md")
    assert result.exit_code == 2
    assert "No worse than before" in result.stdout
    assert re.fullmatch(r"error: No such file or directory: .*page\.md\.\n", result.stderr)


def test_without_the_variable_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (None, ""):
        monkeypatch.delenv(step_summary.VARIABLE, raising=False)
        if value is not None:
            monkeypatch.setenv(step_summary.VARIABLE, value)
        step_summary.append(report())
    assert list(tmp_path.iterdir()) == []


def test_a_summary_that_cannot_be_written_hides_neither_result_nor_exit_code(
    saved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(step_summary.VARIABLE, str(tmp_path / "no" / "folder.md"))
    result = invoke(saved("before"), saved("after", export(0.5)))
    assert result.exit_code == 1
    assert "Worse than before" in result.stdout
    assert "warning: $GITHUB_STEP_SUMMARY names" in result.stderr
    assert "No such file or directory" in result.stderr
