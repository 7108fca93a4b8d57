"""What a search for the smallest budget found, drawn from the report's context: a sentence, a table, a plot, a hint.

A context without a search gives nothing, and a trial that is not whole is left out. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compressor import bisection
from compressor.sections.proof import SHARES
from compressor.tasks.base import QUALITIES
from validators import wording
from validators.facts import look
from validators.svg import ACCENT, DASHES, INK, MARKERS, MUTED, PAPER, RULE, SERIES, Plot, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARGIN = 0.0625  # of budget: what is worth trying above a chosen one where nothing larger was tried


@dataclass(frozen=True)
class Point:
    """One export of one trial; `quality` is the first of QUALITIES that a gate limits, else that was measured."""

    budget: float
    share: float  # of the targets' parameters that are kept
    export: str
    quantity: str
    quality: float
    dense: float
    limit: float | None
    size: float | None  # MiB
    holds: bool


def sentence(context: Mapping[str, Any]) -> str:
    """What the search came to; empty without one."""
    found = look(context, "search", "conclusion")
    return found if isinstance(found, str) else ""


def in_vain(context: Mapping[str, Any]) -> bool:
    """Whether there was a search and nothing came of it: no budget holds the gates, nor does a dense export."""
    found = look(context, "search")
    return isinstance(found, Mapping) and found.get("stands") is None


def table(context: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Headers, then one row for each export of each trial, the smallest budget first; empty without a search."""
    found = points(context)
    if not found:
        return []
    chosen = look(context, "search", "chosen")
    headers = ("Budget", "Matrices", wording.label(found[0].quantity), "Dense", "Size", "Export", "Gates")
    return [headers, *(_row(point, chosen) for point in found)]


def _row(point: Point, chosen: Any) -> tuple[str, ...]:
    values = (_shown(point.quantity, value) for value in (point.quality, point.dense))
    size = "-" if point.size is None else f"{wording.number(point.size)} MiB"
    held = f"{'hold' if point.holds else 'fail'}{', chosen' if point.budget == chosen else ''}"
    return (f"{point.budget:.3f}", f"{point.share:.1%}", *values, size, point.export, held)


def _shown(quantity: str, value: float) -> str:
    return f"{100 * value:.2f}%" if quantity in SHARES and math.isfinite(value) else wording.number(value)


def points(context: Mapping[str, Any]) -> list[Point]:
    """Every export of every trial, by budget."""
    found = look(context, "search", "trials")
    trials = found if isinstance(found, list | tuple) else []
    return sorted((point for one in trials for point in _whole(one)), key=lambda point: (point.budget, point.export))


def _whole(trial: Any) -> list[Point]:
    """The points of a trial, none where something is missing or of another type."""
    try:
        return list(_points(trial))
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _points(trial: Mapping[str, Any]) -> Iterator[Point]:
    failed = {fault["export"] for fault in trial.get("failed", ())}
    for export in trial.get("exports", ()):
        findings = export["findings"]
        there = [quantity for quantity in QUALITIES if quantity in findings]
        limited = [quantity for quantity in there if findings[quantity].get("limit") is not None]
        quantity = next(iter([*limited, *there]), None)
        if quantity is not None and trial.get("dense_parameters"):
            measured = findings[quantity]
            yield Point(
                float(trial["budget"]),
                trial["parameters"] / trial["dense_parameters"],
                export["name"],
                quantity,
                _number(measured["candidate"]),
                _number(measured["dense"]),
                measured.get("limit"),
                findings.get("size", {}).get("candidate"),
                export["name"] not in failed,
            )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def hint(context: Mapping[str, Any], failed: Collection[str]) -> str:
    """What to try where the chosen budget's gates do not hold on the evaluation data; empty where none was chosen.

    `failed` are the quantities: a larger budget betters no cost, and costs are none of the data's.
    """
    chosen = look(context, "search", "chosen")
    if chosen is None:
        return ""
    if failed and all(quantity.startswith(wording.COST_PREFIXES) for quantity in failed):
        return (
            f"Budget {chosen:.3f} held its gates when it was tried; {wording.listed(sorted(set(failed)))} came out "
            "otherwise when measured again, on the same files. Measure once more where nothing else runs (`validate`), "
            "with more validate.runs, or leave the gate more room than two measurements differ by."
        )
    enough = any if look(context, "recipe", "export") == "auto" else all
    larger = sorted({point.budget for point in points(context) if point.budget > chosen})
    held = [budget for budget in larger if enough(p.holds for p in points(context) if p.budget == budget)]
    untried = [budget for budget in _budgets(context) if budget > chosen and budget not in larger]
    said = f"Budget {chosen:.3f} held its gates on the validation rows, but not on the evaluation data. "
    if not held and not untried:
        return f"{said}No larger one is left to try: the dense model is what to ship, or other gates."
    far = [budget for budget in untried if budget >= round(chosen + MARGIN, 3)]
    following = min(held or far or untried[-1:])
    known = "which held its gates on the validation rows" if held else "which was not tried"
    return (
        f"{said}Worth trying next is {following:.3f}, {known}: --set 'plan.budget={{parameters: {following:.3f}}}' and "
        "another --out. Evaluation data that has turned a budget down has helped to choose: prove the next one on data "
        "that has not."
    )


def _budgets(context: Mapping[str, Any]) -> Sequence[float]:
    """Those that give this model a plan of its own, ascending; the whole grid where the search does not say."""
    found = look(context, "search", "budgets")
    known = found if isinstance(found, list | tuple) else bisection.grid()
    return sorted(budget for budget in known if isinstance(budget, int | float))


def draw(context: Mapping[str, Any]) -> Plot | None:
    """Quality against the size of the matrices, by export: the dense model, the gate's limit, and what was chosen."""
    found = [point for point in points(context) if math.isfinite(point.quality)]
    if not found:
        return None
    chosen = look(context, "search", "chosen")
    names = dict.fromkeys(point.export for point in found)
    lines = {name: [point for point in found if point.export == name] for name in names}
    quality = wording.label(found[0].quantity)
    unit = 100 if found[0].quantity in SHARES else 1
    limits = sorted({unit * point.limit for point in found if point.limit is not None})

    def paint(axes: Axes) -> None:
        for limit in limits[:1]:
            axes.axhline(limit, color=INK, lw=1, ls=":", label="limit of the gate")
        for index, (name, line) in enumerate(lines.items()):
            _line(axes, name, line, index % len(SERIES), unit)
        axes.plot(100, unit * found[0].dense, "s", color=MUTED, ms=7, label="dense")
        _mark(axes, [point for point in found if point.budget == chosen])
        axes.set(xlabel="parameters of the matrices, % of dense (left is better)", ylabel=_axis(quality, unit))
        axes.set_xlim(left=0)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)

    told = (f"{p.export} at {p.share:.0%} of the matrices: {_shown(p.quantity, p.quality)}" for p in found)
    caption = "Hollow points fail a gate. Measured on the validation rows, which the budget was chosen on."
    return plot(f"{quality} against size of the matrices", f"Line plot. {'; '.join(told)}.", caption, 3.6, paint)


def _axis(quality: str, unit: int) -> str:
    return f"{quality.lower()}, % (up is better)" if unit == 100 else f"{quality.lower()} (down is better)"


def _line(axes: Axes, name: str, line: Sequence[Point], index: int, unit: int) -> None:
    """One export over the budgets; hollow where a gate fails."""
    tone = (ACCENT, *SERIES[1:])[index]
    look: dict[str, Any] = {"color": tone, "marker": MARKERS[index], "mew": 1.6, "ms": 6}
    shares, qualities = [100 * p.share for p in line], [unit * p.quality for p in line]
    axes.plot(shares, qualities, ls=DASHES[index], lw=1.2, label=name, **look)
    for share, quality, point in zip(shares, qualities, line, strict=True):
        axes.plot(share, quality, mfc=tone if point.holds else PAPER, **look)


def _mark(axes: Axes, chosen: Sequence[Point]) -> None:
    for point in chosen[:1]:
        axes.axvline(100 * point.share, color=RULE, lw=6, zorder=0, label=f"chosen: budget {point.budget:.3f}")
