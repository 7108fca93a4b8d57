"""`export: auto`: the best of the dense and low-rank exports that hold every gate wins, and it alone is judged."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from compressor.errors import GateError
from compressor.packaging import proof
from compressor.recipe import Gate
from validators import advice
from validators.base import Finding
from validators.contest import crowned, front
from validators.export_report import ExportReport
from validators.report import Report

GATES = {
    "accuracy": Gate(type="max-degradation", value=0.01),
    "latency_p50": Gate(type="percent-min-improvement", value=20),
}
CONTEXT = {"recipe": {"export": "auto"}}


def export(name: str, role: Any, accuracy: float = 0.93, size: float = 50, latency: float = 5) -> ExportReport:
    """An export beside a dense model of accuracy 0.93, 100 MiB and 10 ms, judged by GATES."""
    findings = (
        Finding("accuracy", "share", "higher", 0.93, accuracy, (accuracy - 0.005, accuracy + 0.005), 0.95),
        Finding("size", "MiB", "lower", 100.0, size),
        Finding("latency_p50", "ms", "lower", 10.0, latency, (0.98 * latency, 1.02 * latency), 0.95),
    )
    judged = tuple(f.judged(GATES[f.quantity]) if f.quantity in GATES else f for f in findings)
    return ExportReport(name, "onnx", name.rpartition("-")[2], role, judged)


def low(precision: str, **figures: float) -> ExportReport:
    return export(f"onnx-{precision}", "candidate", **figures)


def dense(precision: str, **figures: float) -> ExportReport:
    return export(f"dense-onnx-{precision}", "reference", **figures)


def contest(*exports: ExportReport) -> Report:
    return Report(crowned(exports), CONTEXT)


def test_the_best_export_wins_and_is_the_only_one_judged() -> None:
    report = contest(low("fp32", size=60), low("int8", size=15, latency=3), dense("int8", size=25))
    assert report.winner is not None
    assert report.winner.name == "onnx-int8"
    assert [one.role for one in report.exports] == ["reference", "candidate", "reference"]
    assert report.headline == "Pass: onnx-int8 wins among 3 exports and holds both gates"
    assert report.advice() == (
        "Low-rank int8 wins: smaller (0.15x) and faster (0.30x) than dense fp32 at the same accuracy. "
        "Against dense int8 it is smaller (0.60x) and faster (0.60x) at the same accuracy."
    )


def test_a_dense_winner_passes_and_says_that_low_rank_is_not_the_answer() -> None:
    report = contest(low("int8", accuracy=0.80, size=15, latency=3), dense("int8", size=25))
    assert (report.verdict, report.winner and report.winner.name) == ("pass", "dense-onnx-int8")
    assert report.advice().endswith("No low-rank export holds every gate. Low-rank is not the answer here.")
    report.raise_for_gates()


def test_the_cheapest_does_not_win_where_it_fails_a_gate() -> None:
    report = contest(low("int4", size=5, latency=9), low("int8", size=15, latency=3))
    assert report.winner is not None
    assert report.winner.name == "onnx-int8"  # int4's latency is not a fifth below dense


def test_without_a_winner_every_low_rank_export_fails() -> None:
    report = contest(low("int8", accuracy=0.80), low("fp32", latency=12), dense("int8", latency=11))
    assert (report.verdict, report.winner) == ("fail", None)
    assert report.headline == "Fail: none of 3 exports holds every gate"
    assert report.advice().endswith("dense or low-rank alike. " + advice.LEFT)
    with pytest.raises(GateError, match=r"(?s)onnx-int8: accuracy.*onnx-fp32: latency_p50") as caught:
        report.raise_for_gates()
    assert "dense-onnx-int8:" not in str(caught.value)


def test_the_front_has_what_nothing_beats_everywhere() -> None:
    exports = (low("fp32", size=60), low("int8", size=15, latency=3), dense("int8", accuracy=0.95, size=25))
    assert front(exports) == ("onnx-int8", "dense-onnx-int8")  # more accurate, but larger


def test_the_winner_stands_in_the_files_and_is_found_again(tmp_path: Path) -> None:
    report = contest(low("fp32", accuracy=0.80), low("int8", size=15, latency=3), dense("int8"))
    report.save(tmp_path)
    data = report.to_dict()
    assert (data["winner"], data["front"]) == ("onnx-int8", ["onnx-int8"])
    assert Report.read(tmp_path) == report
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert {suite.get("name"): suite.get("failures") for suite in suites} == {
        "onnx-fp32": "0",  # it lost, and is no failure of the build
        "onnx-int8": "0",
        "dense-onnx-int8": "0",
    }
    page = (tmp_path / "report.html").read_text()
    assert "onnx-int8 wins" in page
    assert page.count("did not win") == 2
    assert page.count("on the front") == 1
    assert "✗ fail" in page  # the accuracy of onnx-fp32


def test_where_nothing_is_looked_for_there_is_no_winner() -> None:
    report = Report((low("int8", size=15, latency=3), dense("int8")))
    assert (report.winner, report.to_dict()["winner"]) == (None, None)


def test_the_winner_is_packaged_a_dense_one_too(tmp_path: Path) -> None:
    for place in ("exports/onnx-fp32", "exports/onnx-int8", "baseline/onnx-int8"):
        (tmp_path / place).mkdir(parents=True)
    won = contest(low("fp32"), low("int8", size=60, latency=3))
    assert proof.choose(won, tmp_path).name == "onnx-int8"
    lost = contest(low("fp32", accuracy=0.8), low("int8", accuracy=0.8), dense("int8", size=25))
    assert proof.choose(lost, tmp_path).name == "dense-onnx-int8"
    with pytest.raises(GateError, match="onnx-int8: accuracy fails"):
        proof.choose(lost, tmp_path, "onnx-int8")


def unsound(name: str, role: Any) -> ExportReport:
    """Its gate on latency holds; nothing limits the accuracy that it loses."""
    found = export(name, role, accuracy=0.80)
    bare = tuple(
        replace(one, limit=None, verdict="ungated") if one.quantity == "accuracy" else one for one in found.findings
    )
    return replace(found, findings=bare)


def test_where_no_export_keeps_accuracy_that_is_said_and_fails_everywhere(tmp_path: Path) -> None:
    report = contest(unsound("onnx-int8", "candidate"), unsound("dense-onnx-int8", "reference"))
    assert report.winner is None
    assert not report.failures
    assert report.headline == (
        "Fail: 2 of 2 exports hold every gate that is set, but none of them keeps accuracy and parity"
    )
    assert report.advice().endswith("A gate on accuracy or parity says how much of either may be lost.")
    with pytest.raises(GateError, match="A gate on accuracy or parity says how much"):
        report.raise_for_gates()
    report.save(tmp_path)
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suites.attrib["failures"] == "1"
    assert [case.attrib["name"] for case in suites.iter("testcase") if case.find("failure") is not None] == ["winner"]
    for name in ("onnx-int8",):
        (tmp_path / "exports" / name).mkdir(parents=True)
    with pytest.raises(GateError, match=r"No export has won, so there is none to package: 2 of 2"):
        proof.choose(report, tmp_path)
    assert proof.choose(report, tmp_path, "onnx-int8").name == "onnx-int8"


def test_an_export_that_holds_every_gate_and_loses_the_accuracy_is_not_said_to_fail_one() -> None:
    said = contest(low("int8", size=15, latency=3), unsound("dense-onnx-int8", "reference")).advice()
    assert said.endswith("No other dense export that holds every gate keeps accuracy and parity.")
    said = contest(unsound("onnx-int8", "candidate"), dense("int8", size=25)).advice()
    assert "No low-rank export that holds every gate keeps accuracy and parity." in said


def test_a_winner_is_explained_beside_an_export_whose_costs_are_no_numbers() -> None:
    lost = unsound("onnx-int4", "candidate")
    bare = tuple(
        replace(one, candidate=math.nan, interval=None, limit=None, verdict="ungated")
        if one.quantity in ("size", "latency_p50")
        else one
        for one in lost.findings
    )
    said = contest(low("int8", size=15, latency=3), dense("int8", size=25), replace(lost, findings=bare)).advice()
    assert said.startswith("Low-rank int8 wins: smaller (0.15x) and faster (0.30x) than dense fp32")
