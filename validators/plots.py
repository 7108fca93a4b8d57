"""The figures of the report: what is drawn, from which findings and which keys of the context.

Every figure is optional: what the report has no data for is left out, and values that are no numbers are skipped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from validators import budget_search, wording
from validators.facts import look, records
from validators.intervals import Span
from validators.options import DENSE_FP32, Option, entered, options
from validators.svg import ACCENT, DASHES, INK, MUTED, PAPER, RULE, SERIES, Plot, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from validators.report import Report


KINDS = "Dense models are squares, low-rank ones dots."
PLACES = [  # offsets of a number from its point, in typographic points, the nearest first
    (far * right, far * up)
    for far in range(9, 40, 5)
    for right, up in ((0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8), (1, 0), (-1, 0), (0, 1), (0, -1))
]


def draw(report: Report) -> tuple[Plot, ...]:
    """Every figure that the report has data for."""
    context = report.context
    histories = {"low-rank": records(context, "history"), "dense baseline": records(context, "baseline_history")}
    plots = (
        budget_search.draw(context),
        _accuracy_size(report),
        _latency_memory(options(report.exports)),
        _curves("Training loss", "loss", {"loss": "train", "eval_loss": "validation"}, histories, _taught(context)),
        _curves("Validation accuracy", "accuracy", {"eval_accuracy": ""}, histories),
        _spectra(context.get("spectra"), records(context, "layers")),
        _ranks([layer for layer in records(context, "layers") if _is_number(layer.get("break_even"))]),
    )
    return tuple(plot for plot in plots if plot)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _scatter(axes: Axes, points: Mapping[str, tuple[Span, Span]]) -> None:
    """Points with the intervals of both coordinates; dense ones are gray squares, low-rank ones colored dots."""
    for index, (label, (x, y)) in enumerate(points.items()):
        tone, marker = (MUTED, "s") if label.startswith("dense") else (ACCENT, "o")
        sides = ([[x.value - x.low], [x.high - x.value]], [[y.value - y.low], [y.high - y.value]])
        axes.errorbar(x.value, y.value, sides[1], sides[0], fmt="none", ecolor=tone, elinewidth=1, zorder=2)
        axes.plot(x.value, y.value, marker, color=tone, mec=PAPER, ms=8, zorder=3 + index)
    axes.margins(0.15, 0.2)


def _number(axes: Axes, points: Sequence[tuple[Span, Span]]) -> None:
    """Write beside each point its number, as near as no other point or number is in the way."""
    import numpy as np
    from matplotlib.transforms import Bbox

    figure = cast("Figure", axes.figure)
    figure.draw_without_rendering()  # lays the axes out: only then do points have places on the page
    unit = figure.dpi / 72
    middles = [axes.transData.transform((x.value, y.value)) / unit for x, y in points]  # typographic points
    taken = [Bbox([middle - 5, middle + 5]) for middle in middles]
    within = Bbox(axes.bbox.get_points() / unit)
    for number, ((x, y), middle) in enumerate(zip(points, middles, strict=True), 1):
        half = np.array([3 * len(str(number)), 4])
        places = {place: Bbox([middle + place - half, middle + place + half]) for place in PLACES}
        free = (place for place, box in places.items() if not box.count_overlaps(taken))
        chosen = next((place for place in free if within.contains(*middle + place)), PLACES[0])
        taken.append(places[chosen])
        line = {"arrowstyle": "-", "color": INK, "lw": 0.5, "shrinkA": 0, "shrinkB": 4}
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "ha": "center", "va": "center"}
        axes.annotate(str(number), (x.value, y.value), chosen, arrowprops=line, in_layout=False, **style)


def _key(points: Iterable[str]) -> str:
    """`1 dense fp32, 2 low-rank fp32`: what the numbers beside the points mean."""
    return ", ".join(f"{number} {label}" for number, label in enumerate(points, 1))


def _accuracy_size(report: Report) -> Plot | None:
    found, by_name = options(report.exports), {export.name: export for export in report.exports}
    dense = {option.runtime: option.label for option in found if option.name == DENSE_FP32}
    base, points = dict[str, tuple[Span, Span]](), dict[str, tuple[Span, Span]]()
    for option in entered(found):
        accuracy, size = by_name[option.name].finding("accuracy"), by_name[option.name].finding("size")
        if accuracy is None or size is None or not _is_number(accuracy.candidate + size.candidate):
            continue
        ends = [100 * end for end in accuracy.interval or () if _is_number(end)]
        middle = 100 * accuracy.candidate
        points[option.label] = (Span(*[size.candidate] * 3), Span(min([middle, *ends]), middle, max([middle, *ends])))
        if _is_number(accuracy.dense + size.dense):
            base[dense[option.runtime]] = (Span(*[size.dense] * 3), Span(*[100 * accuracy.dense] * 3))
    if not points:
        return None
    points = base | points
    said = "; ".join(f"{label}: {wording.number(x.value)} MiB, {y.value:.2f}%" for label, (x, y) in points.items())

    def paint(axes: Axes) -> None:
        _scatter(axes, points)
        axes.set(xlabel="size, MiB (left is better)", ylabel="accuracy, % (up is better)")
        axes.set_xlim(left=0)
        _number(axes, list(points.values()))

    caption = f"{_key(points)}. {KINDS} Whiskers are the intervals of the accuracy."
    return plot("Accuracy against size", f"Scatter plot. {said}.", caption, 3.6, paint)


def _latency_memory(found: Iterable[Option]) -> Plot | None:
    """Both axes as shares of dense, which each export was timed side by side with, and not with the others."""
    wanted = ("peak_memory", "latency_p50")
    rows = {o.label: [Span(*(100 * v for v in o.costs[q])) for q in wanted] for o in found if {*wanted} <= {*o.costs}}
    points = {label: (x, y) for label, (x, y) in rows.items()}
    if len(points) < 2:
        return None
    said = "; ".join(
        f"{label}: memory {x.value:.0f}%, latency {y.value:.0f}% of dense" for label, (x, y) in points.items()
    )

    def paint(axes: Axes) -> None:
        axes.axhline(100, color=RULE, lw=1)
        axes.axvline(100, color=RULE, lw=1)
        _scatter(axes, points)
        axes.set(xlabel="peak memory, % of dense (left is better)", ylabel="latency p50, % of dense (down is better)")
        _number(axes, list(points.values()))

    caption = f"{_key(points)}. {KINDS} Both as shares of {next(iter(points))}."
    return plot("Latency against memory", f"Scatter plot. {said}.", caption, 3.6, paint)


def _taught(context: Mapping[str, Any]) -> str:
    """What is said of a loss that holds more than that of the labels."""
    taught = look(context, "recipe", "adapt", "distill") and look(context, "history")
    said = "The low-rank model's training loss has its teacher's terms in it; the others are the labels' alone."
    return said if taught else ""


def _curves(
    title: str, ylabel: str, keys: Mapping[str, str], histories: Mapping[str, Sequence[Any]], caption: str = ""
) -> Plot | None:
    """One line for each history and key; an empty name leaves the history's own."""
    lines = {
        f"{owner}, {name}".removesuffix(", "): (owner, key, points)
        for owner, history in histories.items()
        for key, name in keys.items()
        if (points := [(_when(r), r[key]) for r in history if _is_number(r.get(key)) and _is_number(_when(r))])
    }
    if not lines:
        return None

    def paint(axes: Axes) -> None:
        for name, (owner, key, points) in lines.items():
            tone = ACCENT if owner == "low-rank" else MUTED
            look: dict[str, Any] = {"lw": 1.2} if key == "loss" else {"ls": "--", "marker": "o", "ms": 4}
            axes.plot(*zip(*points, strict=True), color=tone, label=name, **look)
        axes.set(xlabel="epoch", ylabel=ylabel)
        axes.locator_params(axis="x", steps=[1, 2, 5, 10])
        if ylabel == "accuracy":
            axes.yaxis.set_major_formatter("{x:.1%}")
        axes.legend()

    ends = "; ".join(f"{name} ends at {wording.number(points[-1][1])}" for name, (_, _, points) in lines.items())
    return plot(title, f"Line plot. {ends}.", caption, 3, paint)


def _when(record: Mapping[str, Any]) -> Any:
    return record.get("epoch", record.get("step"))


def _spectrum(value: Any, full: float | None) -> tuple[list[float], list[float]] | None:
    """Ranks as percentages of the `full` one, by default of the last, and cumulative energy in percent."""
    energy = value.get("energy") if isinstance(value, Mapping) else value
    if not _are_numbers(energy):
        return None
    ranks = value.get("rank") if isinstance(value, Mapping) else range(1, len(energy) + 1)
    if not _are_numbers(ranks) or len(ranks) != len(energy) or not ranks[-1]:
        return None
    return [100 * rank / (full or ranks[-1]) for rank in ranks], [100 * share for share in energy]


def _are_numbers(values: Any) -> TypeGuard[Sequence[float]]:
    return isinstance(values, list | tuple | range) and len(values) > 0 and all(map(_is_number, values))


def _kind(name: str) -> str:
    """`encoder.layer.3.attention.self.query` -> `attention.self.query`: what comes after the block's number."""
    return re.split(r"(?:^|\.)\d+\.", name)[-1]


def _spectra(spectra: Any, layers: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Cumulative energy by rank, one line per layer, one color and dash per kind of layer, a dot at the kept rank."""
    items = spectra.items() if isinstance(spectra, Mapping) else ()
    full = {layer.get("name"): _full(layer) for layer in layers}
    curves = {name: curve for name, value in items if (curve := _spectrum(value, full.get(name)))}
    if not curves:
        return None
    kinds = list(dict.fromkeys(map(_kind, curves)))
    kept = {layer.get("name"): _kept(layer) for layer in layers}

    def paint(axes: Axes) -> None:
        import numpy as np

        for name, (ranks, energy) in curves.items():
            index = kinds.index(_kind(name)) % len(SERIES)
            axes.plot(ranks, energy, color=SERIES[index], ls=DASHES[index], lw=1, alpha=0.8)
            if (share := kept.get(name)) is not None:
                axes.plot(share, np.interp(share, ranks, energy), "o", color=SERIES[index], ms=4)
        for index, kind in enumerate(kinds[: len(SERIES)]):
            axes.plot([], [], color=SERIES[index], ls=DASHES[index], label=kind)
        axes.set(xlabel="rank, % of the full rank", ylabel="energy kept, %", xlim=(0, 100))
        axes.legend(loc="lower right", title=None if len(kinds) <= len(SERIES) else "kinds of layers share colors")

    caption = "One line per layer; a dot marks the rank that was kept."
    return plot("Energy spectra", f"Line plot of {len(curves)} layers. {caption}", caption, 3.4, paint)


def _kept(layer: Mapping[str, Any]) -> float | None:
    """The kept rank in percent of the full rank, or None for a dense layer."""
    full = _full(layer)
    return 100 * layer["rank"] / full if full and _is_number(layer.get("rank")) else None


def _full(layer: Mapping[str, Any]) -> float | None:
    """The rank of the layer as it was; None where its shape is not known."""
    sides = [layer.get(key) for key in ("out_features", "in_features")]
    return max(min(sides), 1) if _are_numbers(sides) else None


def _ranks(layers: Sequence[Mapping[str, Any]]) -> Plot | None:
    """One bar per layer up to its rank and a tick at its break-even rank; dense layers are hollow up to the tick."""
    if not layers:
        return None
    factored = [(y, layer["rank"]) for y, layer in enumerate(layers) if _is_number(layer.get("rank"))]
    dense = [(y, layer["break_even"]) for y, layer in enumerate(layers) if not _is_number(layer.get("rank"))]

    def paint(axes: Axes) -> None:
        for bars, style in ((factored, {"color": ACCENT, "label": "rank"}), (dense, {"fill": False, "ec": MUTED})):
            axes.barh([y for y, _ in bars], [width for _, width in bars], height=0.6, **style)
        for y, edge in dense:
            axes.annotate("dense", (edge, y), (4, 0), textcoords="offset points", va="center", fontsize=8, color=MUTED)
        marks = [layer["break_even"] for layer in layers]
        axes.plot(marks, range(len(layers)), "|", color=INK, ms=8, mew=1.5, ls="", label="break-even")
        axes.set_yticks(range(len(layers)), [_short(str(layer.get("name", "?"))) for layer in layers], fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.set(ylim=(len(layers) - 0.4, -0.6))
        axes.xaxis.tick_top()  # a long list of layers is scrolled
        axes.grid(visible=False, axis="y")
        axes.figure.legend(loc="outside upper right", ncols=2)

    caption = f"{len(factored)} layers are factorized, {len(dense)} stay dense (hollow)."
    alt = f"Bar chart. {caption} The table of layers has the figures."
    return plot("Rank per layer", alt, caption, 0.9 + 0.18 * len(layers), paint)


def _short(name: str) -> str:
    """The last 34 characters, from the block's number on where there is one."""
    numbered = re.search(r"\d+\..*", name)
    text = numbered.group() if numbered else name
    return text if len(text) <= 34 else f"…{text[-33:]}"
