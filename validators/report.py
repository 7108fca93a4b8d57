"""The report: what was measured of every export, the verdict, and what to deploy.

`report.json` is the data; `report.md`, `junit.xml` and `report.html` are drawn from it. Nothing here imports torch, and
nothing at import time loads a template engine or a plotting library.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from compressor.artifact import MANIFEST, REPORT, going_on
from compressor.display import columns
from compressor.errors import ArtifactError, GateError, field_faults
from compressor.files import write_text
from compressor.run_folder import STATE
from validators import advice, budget_search, contest, facts, remarks, wording
from validators.base import Finding
from validators.export_report import ExportReport
from validators.report_json import jsonable, restored

SCHEMA_VERSION = 1
AUTO = "auto"  # the recipe's `export` where the best of all exports is looked for


@dataclass(frozen=True)
class Report:
    """All exports of a run with the context (machine, versions, seeds, digests) they were measured in.

    `context` is JSON data; docs/report.md lists the keys that are drawn, all of them optional.
    """

    exports: tuple[ExportReport, ...]
    context: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def auto(self) -> bool:
        """Whether the best of all exports, dense ones too, was looked for."""
        recipe = self.context.get("recipe")
        return isinstance(recipe, Mapping) and recipe.get("export") == AUTO

    @property
    def winner(self) -> ExportReport | None:
        """Of `export: auto` the export that won; None without one, or where there was no contest."""
        return contest.winner(self.exports) if self.auto else None

    @property
    def failures(self) -> tuple[tuple[ExportReport, Finding], ...]:
        """Every failed gate with the export that failed it."""
        return tuple((export, finding) for export in self.exports for finding in export.failures)

    @property
    def unmeasured(self) -> dict[str, str]:
        """Candidates that could not be run, each with the error."""
        found = facts.records(self.context, "unmeasured")
        return {str(one.get("export")): str(one.get("error")) for one in found if one.get("role") == "candidate"}

    @property
    def told(self) -> set[str]:
        """The names of all exports that were to be measured."""
        lost = facts.records(self.context, "unmeasured")
        return {*(export.name for export in self.exports), *(str(one.get("export")) for one in lost)}

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """`fail` when an export fails or cannot be run, or where of many budgets or exports none holds its gates."""
        lost = self.unmeasured or budget_search.in_vain(self.context) or (self.auto and self.winner is None)
        return "fail" if self.failures or lost else "pass"

    @property
    def headline(self) -> str:
        """The verdict in plain words."""
        if budget_search.in_vain(self.context):
            return "Fail: no budget that was tried holds every gate"
        if self.unmeasured:
            return f"Fail: {wording.listed(list(self.unmeasured))} could not be measured"
        if self.auto:
            return self._contest()
        gates = sum(len(export.gated) for export in self.exports)
        if not gates:
            return "No gates were set: nothing was judged"
        if not self.failures:
            return "Pass: the gate holds" if gates == 1 else f"Pass: all {gates} gates hold"
        return f"Fail: {len(self.failures)} of {gates} gates {'does' if len(self.failures) == 1 else 'do'} not hold"

    def _contest(self) -> str:
        if self.winner is None:
            return f"Fail: {contest.unwon(self.exports)}"
        held = f" and holds {_gates(len(self.winner.gated))}" if self.winner.gated else ""
        return f"Pass: {self.winner.name} wins among {len(self.exports)} exports{held}"

    @property
    def recommendation(self) -> advice.Recommendation:
        """The option to deploy, and why."""
        return advice.defend(self.exports) if self.auto else advice.recommend(self.exports)

    def advice(self) -> str:
        """Which of dense and low-rank, fp32 and int8, is best here; says plainly when low-rank is not the answer."""
        return self.recommendation.text

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader has to know before the figures."""
        return tuple(remarks.remarks(self.exports, self.context))

    def raise_for_gates(self) -> None:
        """Do nothing when every gate holds.

        Raises:
            GateError: one line per failed gate, with the figures and the limit.
        """
        if self.verdict == "pass":
            return
        lines = [f"  {name}: {error}" for name, error in self.unmeasured.items()]
        lines += [f"  {export.name}: {wording.complaint(finding)}" for export, finding in self.failures]
        if self.auto and self.winner is None:
            lines.append(self.advice())
        if any(finding.verdict == "unsure" for _, finding in self.failures):
            lines.append("Where a gate is unsure, measure more (validate.runs, more rows) or set its `unsure: pass`.")
        failed = [finding.quantity for _, finding in self.failures]
        if said := budget_search.hint(self.context, failed) or budget_search.sentence(self.context):
            lines.append(said)
        raise GateError("\n".join([f"{self.headline}.", *lines]))

    def to_dict(self) -> dict[str, Any]:
        """JSON data; numbers that are not finite become None."""
        head: dict[str, Any] = {"schema_version": self.schema_version, "verdict": self.verdict, "advice": self.advice()}
        head["remarks"] = list(self.remarks)
        head |= {"winner": self.winner.name if self.winner else None, "front": list(contest.front(self.exports))}
        exports = [export.to_dict() for export in self.exports]
        return head | {"exports": exports, "context": jsonable(self.context)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The report behind `to_dict`; verdict and advice are derived again.

        Raises:
            ArtifactError: another schema version, or fields that are missing or of the wrong type; all are listed.
        """
        import pydantic

        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"The report has schema_version {version!r}; this version reads {SCHEMA_VERSION}. "
                "Read it with the version that wrote it, or run `python -m compressor validate` again."
            )
        try:
            return pydantic.TypeAdapter(cls).validate_python(restored(data))
        except pydantic.ValidationError as error:
            raise ArtifactError("\n".join(["The report cannot be read:", *field_faults(error)])) from error

    def save(self, folder: Path) -> None:
        """Write report.json, then the pages; nothing measured is lost when drawing fails."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / REPORT, json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        self.draw(folder)

    def draw(self, folder: Path) -> None:
        """Write report.md, junit.xml and report.html, each under a scratch name that is then renamed."""
        from validators import render

        write_text(folder / "report.md", render.markdown(self))
        write_text(folder / "junit.xml", render.junit(self))
        write_text(folder / "report.html", render.html(self))

    @classmethod
    def read(cls, folder: Path) -> Report:
        """The report saved in a run folder, or the file itself.

        Raises:
            ArtifactError: there is none, or it cannot be read.
        """
        path = folder if folder.suffix == ".json" or folder.is_file() else folder / REPORT
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ArtifactError(_missing(path)) from error
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} is not JSON ({error}): run `python -m compressor validate` again.") from error
        if not isinstance(data, dict):
            raise ArtifactError(f"{path} holds no report: a JSON object is expected, not {type(data).__name__}.")
        try:
            return cls.from_dict(data)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error

    def to_markdown(self) -> str:
        """A short summary, fit for a GitHub step summary: what report.md holds."""
        from validators import render

        return render.markdown(self)

    def __str__(self) -> str:
        tables = [f"{export.name} ({export.role})\n{_table(export)}" for export in self.exports]
        tried = budget_search.table(self.context)
        searched = [f"{budget_search.sentence(self.context)}\n{_aligned(tried)}"] if tried else []
        head = [self.headline, self.advice(), *(f"Note: {remark}" for remark in self.remarks)]
        return "\n\n".join(["\n".join(head), *searched, *tables])


def _gates(count: int) -> str:
    return {1: "its gate", 2: "both gates"}.get(count, f"all {count} gates")


def _table(export: ExportReport) -> str:
    return _aligned([wording.HEADERS, *(wording.row(finding) for finding in export.findings)])


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    return textwrap.indent(columns(rows[0], rows[1:]), "  ")


def _missing(path: Path) -> str:
    """What would make the report that is not there."""
    folder = path.parent
    if not folder.is_dir():
        return f"{path} does not exist, nor does {folder}."
    if path.name == REPORT and (folder / STATE).is_file() and not (folder / MANIFEST).is_file():
        return f"{folder} is an unfinished run, so it has no report; {going_on(folder)}"
    if (folder / MANIFEST).is_file() and not (folder / "exports").is_dir():
        return f"{path} does not exist, for nothing is exported yet: `python -m compressor export {folder}` does both."
    return f"{path} does not exist: `python -m compressor validate` writes it."
