"""What changed between two reports, as data, text and markdown; `validators.compare` decides what is worse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from compressor.display import columns
from compressor.errors import GateError, InputError
from compressor.sections.proof import SHARES
from validators import render, wording
from validators.base import Finding
from validators.export_report import Role
from validators.report_json import jsonable

HEADERS = ("Quantity", "Before", "After", "Difference", "Ratio", "Intervals", "Limit", "Verdict")
KEPT = ("unit", "better", "confidence", "verdict", "accept_unsure", "interval", "limit")
OVERLAP = {True: "overlap", False: "apart", None: "-"}


@dataclass(frozen=True)
class Change:
    """One quantity of one export, before and after.

    `judged` has BEFORE's candidate in the place of dense: its interval is where AFTER's value lies given BEFORE's.
    """

    before: Finding
    after: Finding
    judged: Finding

    @property
    def difference(self) -> float:
        """after - before, in the quantity's unit."""
        return self.after.candidate - self.before.candidate

    @property
    def overlap(self) -> bool | None:
        """Whether the two measured intervals overlap; None where one of them was not measured."""
        if self.before.interval is None or self.after.interval is None:
            return None
        (low, high), (other_low, other_high) = self.before.interval, self.after.interval
        return low <= other_high and other_low <= high

    @property
    def row(self) -> tuple[str, ...]:
        """One cell for each of HEADERS."""
        one = self.judged
        values = (wording.amount(one, one.dense), wording.amount(one, one.candidate), self._difference())
        overlap = OVERLAP[self.overlap]
        limit, verdict = wording.limit(one), wording.verdict(one)
        return (wording.label(one.quantity), *values, wording.ratio(one), overlap, limit, verdict)

    def _difference(self) -> str:
        """`+0.4 ms`; shares differ in points, so that nobody takes it for a percentage of the value before."""
        if not math.isfinite(self.difference):
            return "-"
        sign = "+" if self.difference > 0 else "-" if self.difference < 0 else ""
        if self.judged.quantity in SHARES:
            return f"{sign}{100 * abs(self.difference):.2f} points"
        return sign + wording.amount(self.judged, abs(self.difference))

    def to_dict(self) -> dict[str, Any]:
        """JSON data; numbers that are not finite become None."""
        both = {"before": self.before, "after": self.after}
        data: dict[str, Any] = {name: finding.candidate for name, finding in both.items()}
        data |= {f"{name}_interval": finding.interval for name, finding in both.items()}
        data |= {"difference": self.difference, "ratio": self.judged.ratio, "overlap": self.overlap}
        return dict(jsonable(data | {name: getattr(self.judged, name) for name in KEPT}))


@dataclass(frozen=True)
class ExportChanges:
    """Everything measured of one export in both reports; a `reference` is shown and never judged."""

    name: str
    role: Role
    changes: tuple[Change, ...]

    @property
    def gated(self) -> tuple[Change, ...]:
        """What a tolerance judged."""
        return tuple(change for change in self.changes if change.judged.verdict != "ungated")

    @property
    def failures(self) -> tuple[Change, ...]:
        """What is worse than the tolerance, or may be where that is not accepted."""
        return tuple(change for change in self.gated if not change.judged.ok)


@dataclass(frozen=True)
class Comparison:
    """Two reports beside each other.

    `gone` are candidates that only BEFORE has, which fail the comparison; `new` are exports that only AFTER has.
    """

    exports: tuple[ExportChanges, ...]
    gone: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[tuple[str, Finding], ...]:
        """Every failed quantity with the name of its export."""
        return tuple((export.name, change.judged) for export in self.exports for change in export.failures)

    @property
    def verdict(self) -> Literal["pass", "fail", "unjudged"]:
        """`fail` when a quantity is worse or an export is gone; `unjudged` when there was nothing to judge."""
        if self.failures or self.gone:
            return "fail"
        return "pass" if any(export.gated for export in self.exports) else "unjudged"

    @property
    def headline(self) -> str:
        """The verdict in plain words."""
        judged = sum(len(export.gated) for export in self.exports)
        failed, unsure = (sum(f.verdict == said for _, f in self.failures) for said in ("fail", "unsure"))
        worse = [f"{failed} of {judged} judged quantities {'does' if failed == 1 else 'do'} not hold"] if failed else []
        worse += [f"{unsure} of {judged} judged quantities {_are(unsure)} unsure"] if unsure else []
        worse += [f"{wording.listed(list(self.gone))} {_are(len(self.gone))} gone"] if self.gone else []
        if worse:
            return f"{'Worse' if failed or self.gone else 'Perhaps worse'} than before: {wording.listed(worse)}"
        if not judged:
            return "Nothing was judged: no gate names a quantity that both reports have"
        return f"No worse than before: {'the one' if judged == 1 else f'all {judged}'} judged {_nouns(judged)}"

    def raise_for_gates(self) -> None:
        """Do nothing when nothing is worse.

        Raises:
            GateError: one line per quantity that is worse and per export that is gone.
            InputError: nothing was judged, so that nothing is known.
        """
        if self.verdict == "pass":
            return
        if self.verdict == "unjudged":
            raise InputError(f"{self.headline}. Name one, as --gate latency_p50=10, or gate it in the recipe.")
        told = ((name, wording.complaint(finding, "before", "after")) for name, finding in self.failures)
        lines = [f"  {name}: {complaint}" for name, complaint in told]
        lines += [f"  {name}: is in the report before and not in the one after" for name in self.gone]
        if any(finding.verdict == "unsure" for _, finding in self.failures):
            lines.append("Where it is unsure, measure more (validate.runs, more rows), or widen it with --gate.")
        raise GateError("\n".join([f"{self.headline}.", *lines]))

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        head: Mapping[str, Any] = {"verdict": self.verdict, "headline": self.headline, "warnings": list(self.warnings)}
        exports = [
            {
                "name": export.name,
                "role": export.role,
                "verdict": "fail" if export.failures else "pass",
                "changes": {change.after.quantity: change.to_dict() for change in export.changes},
            }
            for export in self.exports
        ]
        return {**head, "gone": list(self.gone), "new": list(self.new), "exports": exports}

    def to_markdown(self) -> str:
        """A short summary, fit for a GitHub step summary or a comment."""
        parts = [f"## {render.escaped(self.headline)}"]
        parts += [f"- {render.escaped(remark)}" for remark in self._remarks()]
        for export in self.exports:
            rows = [HEADERS, *(change.row for change in export.changes)]
            parts += [f"### {render.escaped(export.name)} ({export.role})", render.markdown_table(rows)]
        return "\n\n".join(parts) + "\n"

    def __str__(self) -> str:
        tables = [
            f"{export.name} ({export.role})\n{columns(HEADERS, [change.row for change in export.changes])}"
            for export in self.exports
        ]
        return "\n\n".join(["\n".join([self.headline, *self._remarks()]), *tables])

    def _remarks(self) -> list[str]:
        new = [f"New, with nothing to compare with: {wording.listed(list(self.new))}."] if self.new else []
        return [f"Warning: {text}" for text in self.warnings] + new


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _nouns(count: int) -> str:
    return "quantity holds" if count == 1 else "quantities hold"
