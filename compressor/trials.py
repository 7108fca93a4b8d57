"""What a search says about its trials: the record of each, made from its report, and what they come to in words.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compressor.artifact import TRIALS
from compressor.bisection import Want
from compressor.planning import Plan
from compressor.search_record import EVERY, ExportFigures, FailedGate, Search, TrialRecord
from compressor.tasks.base import QUALITIES
from validators import contest
from validators.base import Finding
from validators.export_report import ExportReport
from validators.report import Report
from validators.wording import COST_PREFIXES, NOT_THE_ANSWER, complaint


def name(budget: float) -> str:
    """Folder name under trials/."""
    return f"{budget:.3f}"


def record(report: Report, plan: Plan, budget: float, seconds: float) -> TrialRecord:
    """What is kept of one trial; `seconds` is what its plan, training and folding took."""
    exports = [export for export in report.exports if not export.dense]
    return TrialRecord(
        budget=budget,
        parameters=plan.parameters,
        dense_parameters=plan.dense_parameters,
        seconds=round(seconds, 1),
        wants=_alternatives(report.auto, exports),
        failed=tuple(
            FailedGate(export.name, finding.quantity, complaint(finding))
            for export in exports
            for finding in _failed(export)
        ),
        winner=_winner(report),
        exports=tuple(ExportFigures(export.name, export.to_dict()["findings"]) for export in exports),
    )


def _alternatives(auto: bool, exports: Sequence[ExportReport]) -> dict[str, tuple[Want, ...]]:
    """What failed gates ask for: by export where one of them is enough, together where all must hold."""
    if auto:
        return {export.name: _wants(_failed(export)) for export in exports}
    return {EVERY: _wants([finding for export in exports for finding in _failed(export)])}


def _wants(failed: Sequence[Finding]) -> tuple[Want, ...]:
    found: set[Want] = {"less" if finding.quantity.startswith(COST_PREFIXES) else "more" for finding in failed}
    return tuple(sorted(found))


def _failed(export: ExportReport) -> list[Finding]:
    """Gates that do not hold, for choosing: an unsure one that passes has to have its value within the limit too.

    Else the smallest budget would win that the rows cannot tell to be bad, and the fewer rows the smaller.
    """
    return [finding for finding in export.findings if not (finding.ok and finding.within)]


def _winner(report: Report) -> str | None:
    """Of `export: auto` the best of the exports that hold, dense ones too."""
    holding = [export for export in report.exports if not _failed(export)]
    best = contest.winner(holding) if report.auto else None
    return best.name if best else None


# ---- in words ----


def told(search: Search) -> dict[str, Any]:
    """JSON data of search.json: a search with a trial, and its conclusion."""
    return search.to_dict() | {"conclusion": conclusion(search)}


def conclusion(search: Search) -> str:
    """What the trials come to so far, in sentences; there must be one."""
    count, on = len(search.trials), f"{search.rows:,} validation rows"
    tried = "1 budget" if count == 1 else f"{count} budgets"
    if search.chosen is not None:
        below = [one.budget for one in search.trials if one.budget < search.chosen.budget and _is_too_small(one)]
        text = f"Budget {name(search.chosen.budget)} is the smallest of {tried} tried whose gates hold on {on}"
        return f"{text}; {name(max(below))} is too small." if below else f"{text}."
    lead = f"None of {tried} tried, up to {name(max(one.budget for one in search.trials))}, holds the gates on {on}"
    measured = any(one.wants for one in search.trials)
    answer = NOT_THE_ANSWER if measured else "no low-rank export could be measured"
    won = [f"{search.stands.winner} does."] if search.stands is not None else []
    return " ".join([f"{lead}: {answer}.", *won, *_reasons(search), _nearest(search.closest)])


def _is_too_small(one: TrialRecord) -> bool:
    return bool(one.wants) and all("more" in wants for wants in one.wants.values())


def _reasons(search: Search) -> Iterator[str]:
    """Gates that fail whatever the budget, and those that pull in opposite directions."""
    always = [f"{quantity} of {export}" for export, quantity in _always(search)]
    if always:
        yield f"Whatever the budget, the gate on {', '.join(always)} does not hold."
    torn = ((one, among) for one in search.trials for among, wants in one.wants.items() if len(wants) == 2)
    if first := next(torn, None):
        yield _torn(*first)


def _always(search: Search) -> list[tuple[str, str]]:
    """Export and quantity of the gates that failed in every trial, where the budget that is best for them was tried."""
    failed = [{(fault.export, fault.quantity) for fault in one.failed} for one in search.trials]
    tried, budgets = {one.budget for one in search.trials}, search.budgets
    return [
        (export, quantity)
        for export, quantity in sorted(set.intersection(*failed))
        if (min(budgets) if quantity.startswith(COST_PREFIXES) else max(budgets)) in tried
    ]


def _torn(one: TrialRecord, alternative: str) -> str:
    """Of a trial in which one alternative would need a larger and a smaller budget."""
    quantities = {fault.quantity for fault in one.failures(alternative)}
    less = sorted(quantity for quantity in quantities if quantity.startswith(COST_PREFIXES))
    more = sorted(quantities - set(less))
    of = "" if alternative == EVERY else f" of {alternative}"
    said = f"At {name(one.budget)} {' and '.join(more)}{of} would need a larger budget, {' and '.join(less)}"
    return f"{said} a smaller one."


def _nearest(closest: TrialRecord) -> str:
    if not closest.wants:
        return f"{TRIALS}/{name(closest.budget)}/report.md says why."
    failed = "; ".join(f"{fault.export}: {fault.text}" for fault in closest.failed)
    return f"The closest is {name(closest.budget)}: {failed}."


def line(one: TrialRecord) -> str:
    """One trial on one line: budget, quality against dense, size, verdict."""
    exports = ", ".join(f"{export.name} {_figures(export.findings)}" for export in one.exports)
    share = one.parameters / one.dense_parameters
    figures = f": {exports}" if exports else ""
    return f"  budget {name(one.budget)} ({share:.1%} of the matrices){figures}: {_verdict(one)}"


def _verdict(one: TrialRecord) -> str:
    """`holds`, or the quantities whose gates do not."""
    if not one.wants:
        return "no low-rank export could be measured"
    if one.tried.holds:
        return "holds"
    return f"fails {', '.join(dict.fromkeys(fault.quantity for fault in one.failed))}"


def _figures(findings: Mapping[str, Any]) -> str:
    shown = [_quality(quantity, findings[quantity]) for quantity in QUALITIES if quantity in findings]
    if "size" in findings:
        shown.append(f"{_number(findings['size'], 'candidate'):.1f} MiB ({_number(findings['size'], 'ratio'):.2f}x)")
    return ", ".join(shown)


def _quality(quantity: str, finding: Mapping[str, Any]) -> str:
    shown = "{:.2%}" if quantity == "accuracy" else "{:.3f}"
    ours, theirs = (shown.format(_number(finding, key)) for key in ("candidate", "dense"))
    return f"{quantity} {ours} (dense {theirs})"


def _number(finding: Mapping[str, Any], key: str) -> float:
    """JSON has no number that is not finite."""
    return float("nan") if finding[key] is None else float(finding[key])
