"""The report drawn as markdown, JUnit XML and one self-contained HTML page.

Names of models, layers and labels are untrusted text: every format escapes them.
"""

from __future__ import annotations

import html as html_text
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from compressor.sections.proof import SHARES
from validators import budget_search, contest, facts, wording
from validators.base import Finding
from validators.options import DENSE_FP32, entered, options

if TYPE_CHECKING:
    from validators.export_report import ExportReport
    from validators.report import Report

OVERVIEW = ("perplexity", "accuracy", "size", "peak_memory", "latency_p50")
MARKS = {"pass": "✓", "fail": "✗", "unsure": "?", "ungated": ""}
ROLES = {"candidate": "candidate", "reference": "reference: shown beside the candidates, not judged"}
CONTEST = {"candidate": "the winner", "reference": "did not win: shown beside the winner, and fails nothing"}
NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 cannot hold


def markdown(report: Report) -> str:
    """A short summary, fit for a GitHub step summary."""
    named = facts.title(report.context)
    parts = [f"## {escaped(report.headline)}", *([escaped(named)] if named else []), escaped(report.advice())]
    parts += [f"**Note:** {escaped(remark)}" for remark in report.remarks]
    if tried := budget_search.table(report.context):
        parts += [f"### Budgets tried\n\n{escaped(budget_search.sentence(report.context))}", markdown_table(tried)]
    for export in report.exports:
        parts += [f"### {escaped(export.name)} ({export.role})", markdown_table([wording.HEADERS, *_rows(export)])]
    measured = [f"{name}: {value}" for name, value in facts.brief(report.context)]
    return "\n\n".join([*parts, *([escaped("; ".join(measured) + ".")] if measured else [])]) + "\n"


def _rows(export: ExportReport) -> list[tuple[str, ...]]:
    return [wording.row(finding) for finding in export.findings]


def markdown_table(rows: list[tuple[str, ...]]) -> str:
    """Headers and rows; the second to fourth columns are figures, aligned on the right."""
    lines = [f"| {' | '.join(map(escaped, row))} |" for row in rows]
    rule = "|".join(["", " --- ", *[" ---: "] * 3, *[" --- "] * (len(rows[0]) - 4), ""])
    return "\n".join([lines[0], rule, *lines[1:]])


def escaped(text: object) -> str:
    """Text that markdown shows as it stands: on one line, no markup, no HTML, no cell ends."""
    flat = html_text.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#@!])", r"\\\1", flat)


def junit(report: Report) -> str:
    """One test suite per export, one test case per gated finding; `unsure` that the recipe accepts passes.

    Findings without a gate are properties of their suite, not skipped cases: they cannot fail, and a skip would read as
    something that was left undone.
    """
    root = ElementTree.Element("testsuites", {"name": "rankfold"} | _counts(report.exports))
    if budget_search.in_vain(report.context):
        _lost(root, "search", "budget", budget_search.sentence(report.context))
    elif report.auto and report.winner is None:
        _lost(root, "auto", "winner", report.advice())
    for name, error in report.unmeasured.items():
        _lost(root, name, "measured", error)
    for export in report.exports:
        suite = ElementTree.SubElement(root, "testsuite", {"name": _xml(export.name)} | _counts((export,)))
        properties = ElementTree.SubElement(suite, "properties")
        for finding in export.findings:
            value = _xml(wording.amount(finding, finding.candidate))
            ElementTree.SubElement(properties, "property", name=_xml(finding.quantity), value=value)
        for finding in export.gated:
            _case(suite, export, finding)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _lost(root: ElementTree.Element, suite_name: str, case_name: str, sentence: str) -> None:
    """A suite of one failed case: a search that found no budget, a contest without a winner, what cannot be run."""
    root.attrib |= {name: str(int(root.attrib[name]) + 1) for name in ("tests", "failures")}
    counts = {"tests": "1", "failures": "1", "errors": "0", "skipped": "0"}
    suite = ElementTree.SubElement(root, "testsuite", {"name": _xml(suite_name)} | counts)
    case = ElementTree.SubElement(suite, "testcase", classname=_xml(f"rankfold.{suite_name}"), name=case_name)
    ElementTree.SubElement(case, "failure", type="fail", message=_xml(sentence))


def _counts(exports: tuple[ExportReport, ...]) -> dict[str, str]:
    tests, failures = (sum(len(getattr(export, name)) for export in exports) for name in ("gated", "failures"))
    return {"tests": str(tests), "failures": str(failures), "errors": "0", "skipped": "0"}


def _case(suite: ElementTree.Element, export: ExportReport, finding: Finding) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", classname=_xml(f"rankfold.{export.name}"), name=_xml(finding.quantity)
    )
    facts_of_it = "\n".join(f"{h}: {c}" for h, c in zip(wording.HEADERS, wording.row(finding), strict=True))
    if finding.ok:
        ElementTree.SubElement(case, "system-out").text = _xml(facts_of_it)
        return
    message = _xml(wording.complaint(finding))
    ElementTree.SubElement(case, "failure", type=finding.verdict, message=message).text = _xml(facts_of_it)


def _xml(text: str) -> str:
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def html(report: Report) -> str:
    """One page without scripts and without anything from the network; it follows the reader's light or dark mode."""
    import jinja2

    from validators import plots

    here = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(
        loader=here, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return page.get_template("report.html.j2").render(
        report=report,
        judged=any(export.gated for export in report.exports),
        recommendation=report.recommendation,
        overview=_overview(report),
        overview_headers=[wording.label(quantity) for quantity in _columns(report)],
        headers=wording.HEADERS,
        roles=CONTEST if report.winner else ROLES,
        exports=[(export, _html_rows(export)) for export in report.exports],
        complaints=[(export.name, wording.complaint(finding)) for export, finding in report.failures],
        searched=budget_search.sentence(report.context),
        tried=budget_search.table(report.context),
        plots=plots.draw(report),
        model=facts.title(report.context),
        remarks=report.remarks,
        groups=facts.groups(report.context),
        layers=facts.layers(report.context),
        linear_layers=facts.linear_layers(report.context),
        recipe=facts.recipe(report.context),
    )


def _html_rows(export: ExportReport) -> list[dict[str, Any]]:
    """Cells by header, with the mark that says the verdict without color, and the details in words."""
    return [
        {
            "name": row[0],
            "cells": list(zip(wording.HEADERS[1:-1], row[1:-1], strict=True)),
            "verdict": row[-1],
            "state": ("unsure-ok" if finding.ok else "unsure") if finding.verdict == "unsure" else finding.verdict,
            "mark": MARKS[finding.verdict],
            "details": [(key.replace("_", " "), wording.detail(value)) for key, value in finding.details.items()],
        }
        for row, finding in zip(_rows(export), export.findings, strict=True)
    ]


def _overview(report: Report) -> list[dict[str, Any]]:
    """Dense of each runtime, then every export: for each quantity of the columns the value and its ratio to dense."""
    columns = _columns(report)
    best = report.recommendation.best
    front = contest.front(report.exports) if report.auto else ()
    found = options(report.exports)
    rows = [
        {
            "label": dense.label,
            "name": "the baseline",
            "cells": [_dense_cell(report, dense.runtime, quantity) for quantity in columns],
            "best": dense == best,
            "verdict": "-",
            "state": "ungated",
            "front": False,
        }
        for dense in found
        if dense.name == DENSE_FP32
    ]
    labels: Mapping[str, str] = {option.name: option.label for option in entered(found)}
    for export in report.exports:
        state = _state(report, export)
        rows.append(
            {
                "label": labels.get(export.name, export.name),
                "name": export.name,
                "cells": [_cell(export.finding(quantity)) for quantity in columns],
                "best": best is not None and best.name == export.name,
                "verdict": f"{MARKS[state]} {state}".strip() if MARKS[state] else "-",
                "state": state,
                "front": export.name in front,
            }
        )
    return rows


def _state(report: Report, export: ExportReport) -> str:
    """Whether its gates hold; of a reference only where it was in a contest."""
    if export.gated or not report.auto:
        return export.verdict if export.gated else "ungated"
    judged = any(finding.verdict != "ungated" for finding in export.findings)
    return ("fail" if export.unmet else "pass") if judged else "ungated"


def _columns(report: Report) -> list[str]:
    """The quantities of OVERVIEW; perplexity where it was measured."""
    measured = any(export.finding("perplexity") for export in report.exports)
    return [quantity for quantity in OVERVIEW if quantity != "perplexity" or measured]


def _cell(finding: Finding | None) -> tuple[str, str]:
    if finding is None:
        return "-", ""
    ratio = wording.ratio(finding)
    shown = finding.quantity not in SHARES and ratio != "-"
    return wording.amount(finding, finding.candidate), f"{ratio}x" if shown else ""


def _dense_cell(report: Report, runtime: str, quantity: str) -> tuple[str, str]:
    """A runtime's dense value; where every export was measured beside dense anew, the middle one."""
    exports = [export for export in report.exports if export.runtime == runtime]
    found = [finding for export in exports if (finding := export.finding(quantity))]
    found.sort(key=lambda finding: finding.dense)
    return (wording.amount(found[len(found) // 2], found[len(found) // 2].dense), "") if found else ("-", "")
