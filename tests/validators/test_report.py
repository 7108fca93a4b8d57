"""The report: verdicts, files that read back, and drawings that are safe to open."""

from __future__ import annotations

import html.parser
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from compressor.errors import ArtifactError, GateError
from compressor.recipe import Gate
from validators import facts, plots, render
from validators.base import Finding
from validators.compare import compare
from validators.export_report import ExportReport
from validators.report import Report

HOSTILE = """<script>alert("x")</script>|`*$a_b$*`\x00&"""
LAYERS = [
    {"name": "encoder.layer.0.query", "out_features": 64, "in_features": 64, "rank": 16, "break_even": 32},
    {
        "name": "encoder.layer.1.query",
        "out_features": 64,
        "in_features": 64,
        "rank": None,
        "break_even": 32,
        "kept": True,
    },
]
CONTEXT: dict[str, Any] = {
    "model": {
        "path": "minilm-l6",
        "class": "BertForSequenceClassification",
        "digest": "sha256:9f",
        "parameters": {"model": 2000, "model_deployed": 1500, "targets": 1000, "targets_deployed": 500},
        "trust_remote_code": False,
    },
    "method": {"name": "jactus", "union": 0.75},
    "plan": {"strategy": "gain", "budget": {"parameters": 0.5}},
    "layers": LAYERS,
    "linear_layers": [
        *({**layer, "target": True, "reason": "in a repeated block"} for layer in LAYERS),
        {"name": "pooler", "out_features": 64, "in_features": 48, "target": False, "reason": "outside of blocks"},
    ],
    "spectra": {
        "encoder.layer.0.query": [0.5, 0.8, 1.0],
        "encoder.layer.1.query": {"rank": [1, 8, 64], "energy": [0.3, 0.7, 1.0]},
    },
    "history": [{"epoch": 0.5, "loss": 2.0}, {"epoch": 1.0, "eval_loss": 1.0, "eval_accuracy": 0.8}],
    "baseline_history": [{"epoch": 0.5, "loss": 2.1}, {"epoch": 1.0, "eval_loss": 0.9, "eval_accuracy": 0.9}],
    "data": {"train": {"path": "train.parquet", "rows": 10003}, "labels": 77},
    "machine": {"cpu": "a CPU", "threads": 2, "gpu": None},
    "versions": {"python": "3.11", "torch": "2.13"},
    "seed": 1234,
    "seconds": {"adapt": 125.0, "fold": 119.7, "plan": 0.5},
    "created": "2026-11-22",
    "recipe": {"version": 1, "plan": {"strategy": "gain"}},
}


def export(
    precision: str,
    role: Any = "candidate",
    accuracy: float = 0.93,
    size: float = 50.0,
    memory: float = 80.0,
    latency: float = 5.0,
    gates: dict[str, Gate] | None = None,
) -> ExportReport:
    """An export beside a dense model of accuracy 0.93, 100 MiB, 100 MiB and 10 ms."""
    near = (accuracy - 0.005, accuracy + 0.005)
    findings = [
        Finding("accuracy", "share", "higher", 0.93, accuracy, near, 0.95, details={"n": 1000}),
        Finding("parity", "agreement", "higher", 1.0, 0.999),
        Finding("size", "MiB", "lower", 100.0, size),
        Finding("peak_memory", "MiB", "lower", 100.0, memory, (memory - 1, memory + 1)),
        Finding("latency_p50", "ms", "lower", 10.0, latency, (0.98 * latency, 1.02 * latency), 0.95),
    ]
    judged = tuple(f.judged(gates[f.quantity]) if gates and f.quantity in gates else f for f in findings)
    name = f"onnx-{precision}" if role == "candidate" else f"dense-onnx-{precision}"
    return ExportReport(name, "onnx", precision, role, judged)


ACCURACY = Gate(type="max-degradation", value=0.01)
SMALLER = Gate(type="percent-min-improvement", value=30)
GATES = {"accuracy": ACCURACY, "size": SMALLER}


def unsure(accept: bool) -> ExportReport:
    """Accuracy 0.92 +- 0.005 against a limit of 0.92."""
    gate = Gate(type="max-degradation", value=0.01, unsure="pass" if accept else "fail")
    return export("int8", accuracy=0.92, gates={"accuracy": gate})


# --- verdicts


def test_a_report_passes_when_every_gate_holds() -> None:
    report = Report((export("fp32", gates=GATES), export("int8", gates=GATES)))
    report.raise_for_gates()
    assert report.verdict == "pass"
    assert report.headline == "Pass: all 4 gates hold"


def test_an_unsure_gate_fails_unless_the_recipe_accepts_it() -> None:
    assert Report((unsure(accept=False),)).verdict == "fail"
    assert Report((unsure(accept=True),)).verdict == "pass"


def test_a_reference_is_never_judged() -> None:
    failed = export("int8", accuracy=0.5, gates=GATES)
    assert failed.verdict == "fail"
    report = Report((replace(failed, role="reference"),))
    assert report.verdict == "pass"
    assert "nothing was judged" in report.headline


def test_a_gate_error_has_one_line_with_the_figures_of_each_failed_gate() -> None:
    report = Report((export("fp32", size=90, gates=GATES), unsure(accept=False)))
    with pytest.raises(GateError) as caught:
        report.raise_for_gates()
    head, size, accuracy, hint = str(caught.value).splitlines()
    assert head == "Fail: 2 of 3 gates do not hold."
    assert "onnx-fp32: size fails: candidate 90.00 MiB, dense 100.0 MiB, limit max 70.00 MiB" in size
    assert "onnx-int8: accuracy is unsure" in accuracy
    assert "interval 91.50% to 92.50% (95%)" in accuracy
    assert "unsure: pass" in hint
    assert caught.value.exit_code == 1


# --- report.json


def test_a_saved_report_reads_back_equal(tmp_path: Path) -> None:
    report = Report((export("fp32", gates=GATES), export("int8", "reference")), CONTEXT)
    report.save(tmp_path / "run")
    assert Report.read(tmp_path / "run") == report
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "junit.xml",
        "report.html",
        "report.json",
        "report.md",
    ]


def test_the_json_has_every_field_of_every_quantity(tmp_path: Path) -> None:
    Report((export("int8", size=20, gates=GATES),), CONTEXT).save(tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    size = data["exports"][0]["findings"]["size"]
    assert (size["dense"], size["candidate"], size["ratio"], size["limit"], size["verdict"]) == (
        100,
        20,
        0.2,
        70,
        "pass",
    )
    accuracy = data["exports"][0]["findings"]["accuracy"]
    assert accuracy["interval"] == pytest.approx([0.925, 0.935])
    assert accuracy["details"] == {"n": 1000}
    assert (data["schema_version"], data["verdict"]) == (1, "pass")


def test_what_is_no_number_is_null_in_json_and_fails_its_gate(tmp_path: Path) -> None:
    broken = Finding(
        "accuracy", "share", "higher", 0.93, math.nan, (math.nan, math.inf), 0.95, details={"kl": math.nan}
    )
    report = Report((ExportReport("x", "onnx", "int8", "candidate", (broken.judged(ACCURACY),)),), {"loss": math.inf})
    assert report.verdict == "fail"
    report.save(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    finding = data["exports"][0]["findings"]["accuracy"]
    assert (finding["candidate"], finding["ratio"], finding["interval"]) == (None, None, [None, None])
    again = Report.read(tmp_path)
    assert math.isnan(again.exports[0].findings[0].candidate)
    assert again.verdict == "fail"
    assert "not a number" in str(again)


def test_a_limit_that_is_no_number_is_one_again_when_it_is_read(tmp_path: Path) -> None:
    """Infinite perplexity of the dense model sets a limit; without one the gate that fails would have none to show."""
    infinite = Finding("perplexity", "perplexity", "lower", math.inf, math.inf)
    judged = infinite.judged(Gate(type="percent-max-degradation", value=10))
    Report((replace(export("int8"), findings=(judged, *export("fp32").findings)),)).save(tmp_path)
    found = Report.read(tmp_path).exports[0].findings
    assert found[0].verdict == "fail"
    assert found[0].limit is not None
    assert not found[0].within
    assert found[1].limit is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "does not exist"),
        ("{", "is not JSON"),
        ("[]", "holds no report"),
        ('{"schema_version": 99}', "schema_version 99"),
        ('{"schema_version": 1}', "exports"),
        ('{"schema_version": 1, "exports": {"a": 1}}', "cannot be read"),
        ('{"schema_version": 1, "exports": [{"name": "x", "findings": {"size": {"dense": "wide"}}}]}', "candidate"),
    ],
)
def test_a_report_that_cannot_be_read_is_explained(tmp_path: Path, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(ArtifactError, match=sentence):
        Report.read(tmp_path)


def test_saving_again_replaces_the_files_and_a_failed_drawing_keeps_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Report((export("fp32"),)).save(tmp_path)
    monkeypatch.setattr("validators.render.markdown", lambda report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Report((export("int8"),)).save(tmp_path)
    assert Report.read(tmp_path).exports[0].precision == "int8"
    assert len(list(tmp_path.iterdir())) == 4


def test_the_report_is_read_without_torch_and_without_a_plotting_library() -> None:
    code = "import sys, validators.report; print([m for m in ('torch', 'matplotlib', 'jinja2') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_an_open_interval_is_null_in_the_data_and_open_again_when_it_is_read(tmp_path: Path) -> None:
    gate = Gate(type="percent-max-degradation", value=10)
    unknown = Finding("latency_p99", "ms", "lower", 10.0, 9.0, (0.0, math.inf), 0.95, alone=(4.0, math.inf))
    unknown = replace(unknown, details={"runs": 200, "runs_needed": 500})
    report = Report((replace(export("fp32"), findings=(unknown.judged(gate),)),), {})
    report.save(tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    finding = data["exports"][0]["findings"]["latency_p99"]
    assert (finding["interval"], finding["alone"], finding["verdict"]) == ([0, None], [4, None], "unsure")
    assert Report.read(tmp_path) == report
    for text in (str(report), (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()):
        assert "not known: takes 500 runs" in text
    assert compare(report, report).exports[0].changes[0].to_dict()["interval"] == [0, None]


# --- junit.xml and report.md


def test_junit_has_one_case_per_gate_and_one_failure_per_failed_gate(tmp_path: Path) -> None:
    reference = export("int8", "reference")
    Report((export("fp32", size=90, gates=GATES), unsure(accept=True), reference)).save(tmp_path)
    root = ElementTree.parse(tmp_path / "junit.xml").getroot()
    suites = {suite.get("name"): suite for suite in root.iter("testsuite")}
    assert {name: len(suite.findall("testcase")) for name, suite in suites.items()} == {
        "onnx-fp32": 2,
        "onnx-int8": 1,
        "dense-onnx-int8": 0,
    }
    failures = root.findall(".//failure")
    assert [failure.get("type") for failure in failures] == ["fail"]
    assert "limit max 70.00 MiB" in (failures[0].get("message") or "")
    assert (root.get("tests"), root.get("failures")) == ("3", "1")
    assert len(suites["dense-onnx-int8"].findall("properties/property")) == len(reference.findings)


def test_junit_holds_names_that_xml_cannot(tmp_path: Path) -> None:
    Report((replace(export("int8", gates=GATES), name=HOSTILE),)).save(tmp_path)
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert suite.get("name") == HOSTILE.replace("\x00", "\N{REPLACEMENT CHARACTER}")


def test_markdown_shows_hostile_names_as_text(tmp_path: Path) -> None:
    Report((replace(export("int8"), name=HOSTILE),), {"machine": {"cpu": "a\nb | <img src=x>"}}).save(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "<script>" not in text
    assert "<img" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}


# --- report.html


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page(tmp_path: Path, report: Report) -> Page:
    report.save(tmp_path)
    return Page((tmp_path / "report.html").read_text())


def test_the_page_needs_nothing_from_outside_and_runs_nothing(tmp_path: Path) -> None:
    found = page(tmp_path, Report((export("fp32", gates=GATES), export("int8")), CONTEXT))
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(found.tags)
    links = [value for name, value in found.attributes if name.rpartition(":")[2] in {"href", "src", "action", "data"}]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    identities = re.findall(r'\bid="([^"]+)"', text)
    assert len(identities) == len(set(identities))


def test_the_page_folds_away_every_linear_layer_with_its_reason(tmp_path: Path) -> None:
    page(tmp_path, Report((export("fp32"),), CONTEXT))
    text = (tmp_path / "report.html").read_text()
    (folded,) = re.findall(
        r"<details>\s*<summary>All linear layers of the model \(3\).*?</details>", text, flags=re.DOTALL
    )
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t", row) for row in re.findall(r"<tr>.*?</tr>", folded, flags=re.DOTALL)]
    assert rows[0] == ["Linear layer", "Out", "In", "Target", "Why"]
    assert rows[1] == ["encoder.layer.0.query", "64", "64", "yes", "in a repeated block"]
    assert rows[3] == ["pooler", "64", "48", "no", "outside of blocks"]
    page(tmp_path, Report((export("fp32"),), {}))
    assert "All linear layers" not in (tmp_path / "report.html").read_text()


def test_the_page_shows_hostile_names_as_text_everywhere(tmp_path: Path) -> None:
    layer = LAYERS[0] | {"name": HOSTILE, "reason": HOSTILE}
    context = {
        "model": {"path": HOSTILE, HOSTILE: HOSTILE},
        "layers": [layer],
        "linear_layers": [layer | {"target": False}],
        "spectra": {HOSTILE: [0.5, 1.0]},
        "recipe": {"labels": [HOSTILE]},
        "machine": {"cpu": HOSTILE},
    }
    hostile = replace(export("int8", gates=GATES), name=HOSTILE, precision=HOSTILE)
    found = page(tmp_path, Report((hostile,), context))
    assert "script" not in found.tags
    assert sum("alert(" in text for text in found.texts) >= 5
    assert found.tags.count("figure") == 4


def test_every_plot_is_drawn_and_described_and_follows_the_page_colors(tmp_path: Path) -> None:
    found = page(tmp_path, Report((export("fp32", gates=GATES), export("int8")), CONTEXT))
    described = [value for name, value in found.attributes if name == "aria-label" and "plot" in value.lower()]
    assert found.tags.count("svg") == 6
    assert len(described) == 5  # the sixth is a bar chart
    assert any("low-rank int8: 50.00 MiB, 93.00%" in alt for alt in described)
    text = (tmp_path / "report.html").read_text()
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--accent)" in drawn
    assert not re.search(r"#[0-9a-f]{6}\b(?!['\")])", re.sub(r'(?:href|url|id)\W*"?#?\w+', "", drawn))
    assert "encoder.layer" not in drawn  # names are shortened from the block's number on
    assert "0.query" in drawn


def test_tables_have_header_cells_and_verdicts_readable_without_color(tmp_path: Path) -> None:
    found = page(tmp_path, Report((export("fp32", size=90, gates=GATES), unsure(accept=True)), CONTEXT))
    scopes = [value for name, value in found.attributes if name == "scope"]
    assert {"row", "col"} == set(scopes)
    words = " ".join(found.texts)
    assert "✗ fail" in words
    assert "✓ pass" in words
    assert "? unsure (passes)" in words


def test_the_page_says_what_was_measured_on_what(tmp_path: Path) -> None:
    words = " ".join(page(tmp_path, Report((export("int8"),), CONTEXT)).texts)
    for said in (
        "2,000 → 1,500 (75.0%)",
        "2 min 05 s",
        "2 min 00 s",
        "1234",
        "10,003",
        "strategy: gain",
        "sha256:9f",
        "2.13",
    ):
        assert said in words


@pytest.mark.parametrize("absent", [None, *CONTEXT])
def test_every_key_of_the_context_may_be_absent(tmp_path: Path, absent: str | None) -> None:
    context = {} if absent is None else {key: value for key, value in CONTEXT.items() if key != absent}
    report = Report((export("int8", gates=GATES),), context)
    report.save(tmp_path)
    assert Report.read(tmp_path) == report


@pytest.mark.parametrize(
    "odd",
    [
        None,
        "text",
        3,
        [],
        [None, "x", {}],
        {},
        {"a": None},
        {"rank": 1, "energy": [1]},
        {"a": {"rank": 1, "energy": [1]}},
    ],
)
def test_a_context_of_odd_shapes_still_gives_a_report(tmp_path: Path, odd: Any) -> None:
    Report((export("int8"),), dict.fromkeys(CONTEXT, odd)).save(tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 0


def test_a_report_without_exports_can_be_drawn(tmp_path: Path) -> None:
    Report(()).save(tmp_path)
    assert "nothing was judged" in (tmp_path / "report.md").read_text()


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    report = Report((export("fp32", gates=GATES), export("int8")), CONTEXT)
    for folder in ("one", "two"):
        report.save(tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


# --- str


def test_the_printed_report_has_the_verdict_the_advice_and_aligned_tables() -> None:
    report = Report((export("int8", size=90, gates=GATES),))
    headline, advice, _, name, header, *rows = str(report).splitlines()
    assert (headline, advice) == ("Fail: 1 of 2 gates does not hold", report.advice())
    assert name == "onnx-int8 (candidate)"
    starts = {row.index("100.0 MiB") for row in rows if "100.0 MiB" in row}
    assert starts == {header.index("Dense")}
    assert any(row.endswith("max 70.00 MiB  fail") for row in rows)


def test_a_spectrum_ends_at_the_break_even_of_its_layer_and_the_dot_is_on_it() -> None:
    layer = {"name": "a", "rank": 96, "out_features": 384, "in_features": 384}
    ranks, energy = plots._spectrum({"rank": [1, 96, 191], "energy": [0.1, 0.5, 0.9]}, plots._full(layer)) or ([], [])
    assert ranks == pytest.approx([100 / 384, 25, 100 * 191 / 384])
    assert (plots._kept(layer), energy[1]) == (25, 50)
    assert plots._full({"name": "b", "rank": 3}) is None
    assert plots._spectrum([0.5, 1.0], None) == ([50, 100], [50, 100])


def test_a_taught_loss_says_what_it_holds() -> None:
    taught = CONTEXT | {"recipe": {"adapt": {"distill": {"predictions": 0.5}}}}
    figures = {plot.title: plot.caption for plot in plots.draw(Report((export("fp32"),), taught))}
    assert "its teacher's terms" in figures["Training loss"]
    alone = {plot.title: plot.caption for plot in plots.draw(Report((export("fp32"),), CONTEXT))}
    assert alone["Training loss"] == ""


def test_what_makes_a_report_prove_less_stands_beneath_its_advice(tmp_path: Path) -> None:
    guessing = replace(export("fp32").findings[0], dense=0.3, details={"n": 100, "commonest_label": 0.33})
    said = Report(
        (replace(export("fp32"), findings=(guessing, *export("fp32").findings[1:])),),
        CONTEXT | {"data": {"evaluation": {"rows": 40, "rows_also_in_train": 3}}},
    )
    first, second = said.remarks
    assert first.startswith("3 of the 40 rows that quality is measured on stand in the training data, too")
    assert "right on 30.0% of the rows; to say the commonest label each time is right on 33.0%" in second
    words = " ".join(page(tmp_path, said).texts)
    for text in (str(said), render.markdown(said), words):
        assert "3 of the 40 rows" in text
        assert "has not learned this task" in text
    assert said.to_dict()["remarks"] == [first, second]
    assert Report((export("fp32"),), CONTEXT).remarks == ()


@pytest.mark.parametrize("accuracy", [1.0, 0.9])
def test_rows_of_one_class_are_said_to_prove_nothing_however_good_the_model(accuracy: float) -> None:
    one = replace(export("fp32").findings[0], dense=accuracy, details={"n": 100, "commonest_label": 1.0})
    (said,) = Report((replace(export("fp32"), findings=(one,)),), CONTEXT).remarks
    assert said.startswith("All rows that quality is measured on are of one class")


def test_the_confidence_of_a_contest_is_said() -> None:
    sharp = replace(export("fp32").findings[0], confidence=1 - 0.05 / 9)
    context = {"recipe": {"export": "auto", "validate": {"confidence": 0.95}}}
    (said,) = Report((replace(export("fp32"), findings=(sharp,)),), context).remarks
    assert "among 9 exports" in said
    assert "judged with 99.44% confidence: 95% for all of them together" in said


def test_every_point_of_a_crowded_picture_has_its_number_and_no_two_stand_on_each_other() -> None:
    """Eight exports that are as large, fast and accurate as each other."""
    precisions = ("fp32", "fp16", "int8", "int8-static", "int8-weights", "int4", "fp32-fused", "int8-fused")
    figures = {plot.title: plot for plot in plots.draw(Report(tuple(map(export, precisions))))}
    for title in ("Accuracy against size", "Latency against memory"):
        assert figures[title].caption.startswith("1 dense fp32, 2 low-rank fp32, 3 low-rank fp16, ")
        pattern = r'<text style="font-size: 8px[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>(\d)</text>'
        found = {number: (float(x), float(y)) for x, y, number in re.findall(pattern, figures[title].svg)}
        assert sorted(found) == list("123456789")
        assert min(math.dist(one, other) for one, other in combinations(found.values(), 2)) >= 6


def test_exports_that_were_timed_in_several_ways_on_a_gpu_are_said_not_to_compare() -> None:
    def timed(precision: str, **details: float) -> Any:
        made = export(precision)
        found = tuple(replace(f, details=details) if f.quantity == "latency_p50" else f for f in made.findings)
        return replace(made, findings=found)

    graphs, copied = {"kept_on_gpu": 1.0, "cuda_graphs": 1.0}, {"kept_on_gpu": 0.0, "cuda_graphs": 0.0}
    (said,) = Report((timed("fp32", **graphs), timed("fp16", **graphs), timed("int4", **copied)), CONTEXT).remarks
    assert said.endswith("onnx-fp32, onnx-fp16 replayed as CUDA graphs; onnx-int4 with copies to the GPU and back.")
    assert Report((timed("fp32", **graphs), timed("fp16", **graphs)), CONTEXT).remarks == ()
    assert Report((timed("fp32"), timed("fp16", **graphs)), CONTEXT).remarks == ()


def test_a_summary_names_its_model_without_a_path_of_the_machine() -> None:
    named = CONTEXT | {"model": {"path": "/home/somebody/models/mine"}, "plan": {"budget": {"parameters": 0.5}}}
    assert facts.title(named) == "mine · jactus · 50% of the parameters"
    assert facts.title(named | {"plan": {"budget": 0.3}}) == "mine · jactus · 30% of the parameters"
    assert facts.title({"model": {"path": "owner/name"}}) == "owner/name"
    assert "mine · jactus · 50% of the parameters" in render.markdown(Report((export("fp32"),), named))
