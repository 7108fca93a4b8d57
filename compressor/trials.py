"""What a search says about its trials: one record for each, the choice among them, and both in words.

A search is the JSON data of search.json: `budgets`, `trials` (records), `chosen`, `closest`, `stands`, `conclusion`.
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compressor import bisection
from compressor.bisection import Trial, Want
from compressor.planning import Plan
from compressor.tasks.base import QUALITIES
from validators import advice
from validators.base import Finding
from validators.report import ExportReport, Report
from validators.wording import COST_PREFIXES, NOT_THE_ANSWER, complaint

Record = dict[str, Any]
EVERY = "every export"  # the alternative of a recipe whose exports must all hold


def name(budget: float) -> str:
    """Folder name under trials/."""
    return f"{budget:.3f}"


def record(report: Report, plan: Plan, budget: float, seconds: float) -> Record:
    """What is kept of one trial; `seconds` is what its plan, training and folding took."""
    exports = [export for export in report.exports if not export.dense]
    told = {export["name"]: export for export in report.to_dict()["exports"]}
    return {
        "budget": budget,
        "parameters": plan.parameters,
        "dense_parameters": plan.dense_parameters,
        "seconds": round(seconds, 1),
        "wants": {alternative: sorted(found) for alternative, found in _alternatives(report.auto, exports).items()},
        "failed": [
            {"export": export.name, "quantity": finding.quantity, "text": complaint(finding)}
            for export in exports
            for finding in _failed(export)
        ],
        "winner": _winner(report),
        "exports": [{key: told[export.name][key] for key in ("name", "findings")} for export in exports],
    }


def _alternatives(auto: bool, exports: Sequence[ExportReport]) -> dict[str, frozenset[Want]]:
    """What failed gates ask for: by export where one of them is enough, together where all must hold."""
    wants = {export.name: frozenset(map(_want, _failed(export))) for export in exports}
    return wants if auto else {EVERY: frozenset().union(*wants.values())}


def _failed(export: ExportReport) -> list[Finding]:
    """Gates that do not hold, for choosing: an unsure one that passes has to have its value within the limit too.

    Else the smallest budget would win that the rows cannot tell to be bad, and the fewer rows the smaller.
    """
    return [finding for finding in export.findings if not (finding.ok and finding.within)]


def _winner(report: Report) -> str | None:
    """Of `export: auto` the best of the exports that hold, dense ones too."""
    holding = [export for export in report.exports if not _failed(export)]
    best = advice.winner(holding) if report.auto else None
    return best.name if best else None


def _want(finding: Finding) -> Want:
    return "less" if finding.quantity.startswith(COST_PREFIXES) else "more"


def tried(search: Mapping[str, Any]) -> list[Trial]:
    """The trials as the bisection reads them."""
    return [
        Trial(one["budget"], {alternative: frozenset(found) for alternative, found in one["wants"].items()})
        for one in search["trials"]
    ]


def concluded(search: dict[str, Any]) -> dict[str, Any]:
    """The search (changed in place) with what its trials come to so far.

    `chosen` is the smallest budget that holds, `closest` the one that came closest, and `stands` the one whose files
    stand in the search's own folder: the chosen one, or the closest of those where a dense export won.
    """
    found = bisection.chosen(tried(search))
    won = [one for one in search["trials"] if one["winner"]]
    chosen = found.budget if found else None
    stands = _closest(won)["budget"] if found is None and won else chosen
    search |= {"chosen": chosen, "closest": _closest(search["trials"])["budget"], "stands": stands}
    search["conclusion"] = _conclusion(search)
    return search


def _closest(records: Sequence[Record]) -> Record:
    """Of those with the fewest failed gates the largest budget, or the smallest where they only cost too much."""
    fewest = min(_distance(one)[0] for one in records)
    tied = [one for one in records if _distance(one)[0] == fewest]
    nearest = min if all(_distance(one)[1] == ["less"] for one in tied) else max
    return nearest(tied, key=lambda one: one["budget"])


def _distance(one: Record) -> tuple[int, list[Want]]:
    """How many gates failed, of the best export where one is enough, and what they ask for."""
    failed = [fault["export"] for fault in one["failed"]]
    return min((len(failed) if name == EVERY else failed.count(name), wants) for name, wants in one["wants"].items())


def _conclusion(search: Mapping[str, Any]) -> str:
    count, on = len(search["trials"]), f"{search['rows']:,} validation rows"
    tried = "1 budget" if count == 1 else f"{count} budgets"
    if search["chosen"] is not None:
        below = [one["budget"] for one in search["trials"] if one["budget"] < search["chosen"] and _too_small(one)]
        text = f"Budget {name(search['chosen'])} is the smallest of {tried} tried whose gates hold on {on}"
        return f"{text}; {name(max(below))} is too small." if below else f"{text}."
    lead = f"None of {tried} tried, up to {name(max(one['budget'] for one in search['trials']))}, holds the gates"
    by_budget = {one["budget"]: one for one in search["trials"]}
    won = f" {by_budget[search['stands']]['winner']} does." if search["stands"] is not None else ""
    nearest = _nearest(by_budget[search["closest"]])
    return " ".join([f"{lead} on {on}: {NOT_THE_ANSWER}.{won}", *_reasons(search), nearest])


def _too_small(one: Record) -> bool:
    return all("more" in wants for wants in one["wants"].values())


def _always(search: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Export and quantity of the gates that failed in every trial, where the budget that is best for them was tried."""
    failed = [{(fault["export"], fault["quantity"]) for fault in one["failed"]} for one in search["trials"]]
    tried, budgets = {one["budget"] for one in search["trials"]}, search["budgets"]
    return [
        (export, quantity)
        for export, quantity in sorted(set.intersection(*failed))
        if (min(budgets) if quantity.startswith(COST_PREFIXES) else max(budgets)) in tried
    ]


def _reasons(search: Mapping[str, Any]) -> list[str]:
    """Gates that fail whatever the budget, and those that pull in opposite directions."""
    told = [f"{quantity} of {export}" for export, quantity in _always(search)]
    found = [f"Whatever the budget, the gate on {', '.join(told)} does not hold."] if told else []
    torn = [one for one in search["trials"] if any(set(wants) == {"more", "less"} for wants in one["wants"].values())]
    if torn:
        quantities = {fault["quantity"] for fault in torn[0]["failed"]}
        less = sorted(quantity for quantity in quantities if quantity.startswith(COST_PREFIXES))
        more = sorted(quantities - set(less))
        said = f"At {name(torn[0]['budget'])} {' and '.join(more)} would need a larger budget, {' and '.join(less)}"
        found.append(f"{said} a smaller one.")
    return found


def _nearest(closest: Record) -> str:
    told = "; ".join(f"{fault['export']}: {fault['text']}" for fault in closest["failed"])
    return f"The closest is {name(closest['budget'])}: {told}."


def line(one: Record) -> str:
    """One trial on one line: budget, quality against dense, size, verdict."""
    told = ", ".join(f"{export['name']} {_figures(export['findings'])}" for export in one["exports"])
    share = one["parameters"] / one["dense_parameters"]
    return f"  budget {name(one['budget'])} ({share:.1%} of the matrices): {told}: {verdict(one)}"


def verdict(one: Record) -> str:
    """`holds`, or the quantities whose gates do not."""
    if not all(one["wants"].values()):
        return "holds"
    return f"fails {', '.join(dict.fromkeys(fault['quantity'] for fault in one['failed']))}"


def _figures(findings: Mapping[str, Any]) -> str:
    told = [_quality(quantity, findings[quantity]) for quantity in QUALITIES if quantity in findings]
    if "size" in findings:
        told.append(f"{findings['size']['candidate']:.1f} MiB ({findings['size']['ratio']:.2f}x)")
    return ", ".join(told)


def _quality(quantity: str, finding: Mapping[str, Any]) -> str:
    ours, theirs = (float("nan") if finding[key] is None else finding[key] for key in ("candidate", "dense"))
    shown = "{:.2%}" if quantity == "accuracy" else "{:.3f}"
    return f"{quantity} {shown.format(ours)} (dense {shown.format(theirs)})"
