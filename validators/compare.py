"""Two reports beside each other: is AFTER worse than BEFORE, the last release's report?

Every quantity that AFTER's recipe gates is judged, with BEFORE's candidate in the place of the dense model. How much
worse it may be is the tolerance: that of `--gate`, else of the recipe's degradation gate, else the default. Nothing
here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compressor.artifact import DENSE
from compressor.errors import ArtifactError, InputError, did_you_mean, field_faults
from compressor.recipe import Gate
from compressor.sections.proof import SHARES
from compressor.tasks.base import QUALITIES
from validators import comparable
from validators.base import Finding
from validators.changes import Change, Comparison, ExportChanges
from validators.export_report import ExportReport
from validators.facts import look
from validators.intervals import Span, difference_margins
from validators.report import Report

POINT = Gate(type="max-degradation", value=0.01)  # default tolerance of shares: one point
PERCENT = Gate(type="percent-max-degradation", value=5)  # and of everything with a unit of its own
NOTABLE = 0.02  # by how much a dense model's time has to differ from the last one to be told
DECIDED = (*QUALITIES, "parity", "parity_max_difference")  # the same file gives the same on the same data


def read(before: Path, after: Path) -> tuple[Report, Report]:
    """The reports of two run folders or `report.json` files.

    Raises:
        ArtifactError: one of them is missing or cannot be read, or both.
    """
    found, faults = [], []
    for path in (before, after):
        try:
            found.append(Report.read(path))
        except ArtifactError as error:
            faults.append(str(error))
    if faults:
        raise ArtifactError("\n".join(faults))
    return found[0], found[1]


def percentages(settings: Sequence[str]) -> dict[str, float]:
    """`["latency_p50=10"]` as `{"latency_p50": 10.0}`: by how many percent of BEFORE's value a quantity may be worse.

    Raises:
        InputError: settings that are not QUANTITY=PERCENT, negative, or twice the same; all are listed.
    """
    found: dict[str, float] = {}
    faults = []
    for setting in settings:
        quantity, _, text = setting.partition("=")
        value = _percent(text)
        if not quantity or value is None:
            faults.append(f"--gate {setting}: write QUANTITY=PERCENT with a percentage from 0 on, as latency_p50=10.")
        elif quantity in found:
            faults.append(f"--gate {setting}: {quantity} stands twice; keep one of them.")
        else:
            found[quantity] = value
    if faults:
        raise InputError("\n".join(faults))
    return found


def _percent(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def compare(
    before: Report, after: Report, percents: Mapping[str, float] | None = None, *, allow_different_data: bool = False
) -> Comparison:
    """Hold every export of AFTER against that of the same name in BEFORE; of `export: auto`, the winners too.

    Args:
        before: the report of the last release.
        after: the report of what may be released next.
        percents: by quantity, instead of the tolerance that its recipe gives it; see `percentages`.
        allow_different_data: compare qualities that were measured on different evaluation data, with a warning.

    Raises:
        DataError: the evaluation data differs.
        InputError: `percents` names a quantity that the reports do not share.
        ArtifactError: the gates of AFTER's recipe cannot be read.
    """
    warnings = [*comparable.data(before, after, allow_different_data), *comparable.circumstances(before, after)]
    old = {export.name: export for export in before.exports}
    won = comparable.winners(before, after)
    counterparts = old | ({won[1]: old[won[0]]} if won else {})
    pairs = [(counterparts[export.name], export) for export in after.exports if export.name in counterparts]
    _refuse_unshared(percents or {}, pairs)
    chosen = _gates(after), percents or {}
    held = [_Pair(old, new, *_same(before, after, old, new)) for old, new in pairs]
    exports = tuple(_export(pair, *chosen) for pair in held)
    names = {export.name for export in after.exports}
    gone = tuple(name for name, export in old.items() if export.role == "candidate" and name not in names)
    new = tuple(export.name for export in after.exports if export.name not in old)
    return Comparison(exports, gone, new, (*warnings, *_paces(held), *comparable.leftovers(before, after)))


@dataclass(frozen=True)
class _Pair:
    """An export before and after: whether its files are the same, and those of the dense one that it was held against.

    One dense model is a common measure: of how much two candidates differ from it, and of how fast two days were.
    """

    before: ExportReport
    after: ExportReport
    same: bool
    same_dense: bool

    def former(self, finding: Finding) -> Finding | None:
        """BEFORE's finding of a quantity of AFTER; times at AFTER's pace, where the dense model says what that is."""
        found = self.before.finding(finding.quantity)
        pace = self.pace(finding)
        if found is None or pace is None:
            return found
        ends = None if found.interval is None else (found.interval[0] * pace, found.interval[1] * pace)
        return replace(found, dense=found.dense * pace, candidate=found.candidate * pace, interval=ends, alone=None)

    def pace(self, finding: Finding) -> float | None:
        """The dense model's time after by that before; None of what is no time, or where they are two models."""
        found = self.before.finding(finding.quantity)
        if found is None or not self.same_dense or not finding.quantity.startswith("latency"):
            return None
        return finding.dense / found.dense if min(found.dense, finding.dense) > 0 else None


def _same(before: Report, after: Report, old: ExportReport, new: ExportReport) -> tuple[bool, bool]:
    """Whether two exports' files are the same, and those of the dense ones in fp32."""
    alike = old.name == new.name and comparable.same_files(before, after, new.name)
    dense = old.runtime == new.runtime and comparable.same_files(before, after, f"{DENSE}{new.runtime}-fp32")
    return alike, dense


def _paces(pairs: Sequence[_Pair]) -> Iterator[str]:
    """What is said where the same dense model took another time."""
    medians = ((pair, pair.after.finding("latency_p50")) for pair in pairs)
    found = {pair.after.runtime: pace for pair, one in medians if one and (pace := pair.pace(one))}
    for runtime, pace in found.items():
        if abs(pace - 1) > NOTABLE:
            yield (
                f"The same dense model takes {pace:.2f}x the time that it took before ({runtime}): latencies before "
                "are told as they would be at the pace of after."
            )


def tolerance(quantity: str, gate: Gate | None, percent: float | None = None) -> Gate:
    """How much worse than BEFORE a gated quantity of AFTER may be, or the `threshold` that it has to keep.

    A degradation gate of 0 or less asks for no worse than dense, and an improvement gate for better: neither says how
    much two releases may differ, so both get the default.
    """
    unsure = gate.unsure if gate else "fail"
    if percent is not None:
        return Gate(type="percent-max-degradation", value=percent, unsure=unsure)
    if gate and (gate.type == "threshold" or (gate.type.endswith("max-degradation") and gate.value > 0)):
        return gate
    return (POINT if quantity in SHARES else PERCENT).model_copy(update={"unsure": unsure})


def interval(before: Finding, after: Finding, *, same_dense: bool = True) -> tuple[float, float] | None:
    """Where AFTER's value lies given BEFORE's, from the intervals of both as if they were independent.

    By the margins of their difference, see `validators.intervals.difference_margins`; of what is no share by those of
    the ratio, on logarithms: no time is negative. Runs that share data or machine vary together; for them it is wider
    than needed. A side without an interval counts as exact. The intervals are those against the dense model where that
    is the same, else those that each has alone.
    """
    theirs, ours = ((one.interval if same_dense else one.alone or one.interval) for one in (before, after))
    if theirs is None and ours is None:
        return None
    old, new = _span(before.candidate, theirs), _span(after.candidate, ours)
    if after.quantity not in SHARES and min(old.value, new.value) > 0:
        below, above = difference_margins(Span(*map(_log, new)), Span(*map(_log, old)))
        return new.value * math.exp(-below), new.value * math.exp(above)
    below, above = difference_margins(new, old)
    low, high = new.value - below, new.value + above
    return (max(0.0, low), min(1.0, high)) if after.quantity in SHARES else (low, high)


def _span(value: float, ends: tuple[float, float] | None) -> Span:
    low, high = ends or (value, value)
    return Span(low, value, high)


def _log(value: float) -> float:
    return -math.inf if value <= 0 else math.log(value)


def _export(pair: _Pair, gates: Mapping[str, Gate], percents: Mapping[str, float]) -> ExportChanges:
    changes, after = list[Change](), pair.after
    for finding in after.findings:
        name = finding.quantity
        old, gate, percent = pair.former(finding), gates.get(name), percents.get(name)
        if old is None:
            continue
        judges = after.role == "candidate" and (gate or percent is not None or finding.verdict != "ungated")
        chosen = tolerance(name, gate, percent) if judges else None
        changes.append(Change(old, finding, _judged(pair, old, finding, chosen)))
    return ExportChanges(after.name, after.role, tuple(changes))


def _judged(pair: _Pair, before: Finding, after: Finding, gate: Gate | None) -> Finding:
    """AFTER's finding with BEFORE's candidate as dense; a threshold is kept or not whatever was before."""
    absolute = gate is not None and gate.type == "threshold"
    exact = pair.same and after.quantity in DECIDED
    lies = interval(before, after, same_dense=pair.same_dense)
    lies = (after.alone or after.interval) if absolute else None if exact else lies
    known = [f.confidence for f in ((after,) if absolute else (before, after)) if f.interval is not None]
    confidence = None if lies is None or None in known else min(one for one in known if one is not None)
    bare = Finding(after.quantity, after.unit, after.better, before.candidate, after.candidate, lies, confidence)
    return bare if gate is None else bare.judged(gate)


def _gates(report: Report) -> dict[str, Gate]:
    """The gates of the recipe that a report was made with."""
    import pydantic

    found = look(report.context, "recipe", "gates")
    try:
        return pydantic.TypeAdapter(dict[str, Gate]).validate_python(found or {})
    except pydantic.ValidationError as error:
        said = ["context.recipe.gates of AFTER cannot be read:", *field_faults(error)]
        raise ArtifactError("\n".join(said)) from error


def _refuse_unshared(percents: Mapping[str, float], pairs: Sequence[tuple[ExportReport, ExportReport]]) -> None:
    both = {
        f.quantity for old, new in pairs if new.role == "candidate" for f in new.findings if old.finding(f.quantity)
    }
    allowed = ", ".join(sorted(both)) or "none"
    faults = [
        f"--gate {name}: no export has it in both reports; allowed are {allowed}.{did_you_mean(name, both)}"
        for name in percents
        if name not in both
    ]
    if faults:
        raise InputError("\n".join(faults))
