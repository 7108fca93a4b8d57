"""Figures of the results: quality against what is kept and against what training holds, one PNG each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arms import ARMS, DENSE
from tables import Summary

from compressor.methods.cersa import Cersa
from compressor.methods.jactus import Jactus
from compressor.methods.psoft import Psoft
from compressor.methods.spectral import Spectral

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP"
HUES: dict[type, str] = {Jactus: "Reds", Spectral: "Blues", Cersa: "Greens", Psoft: "Oranges", type(None): "Purples"}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
}


def draw(found: Sequence[Summary], path: Path, *, memory: bool) -> Path:
    """One figure as PNG, the same bytes for the same rows.

    Args:
        found: a suite's summaries.
        path: the file.
        memory: against what training holds; else against the share of the targets' weights that is kept.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        _arms(axes, found, _memory if memory else _kept)
        name = found[0].quality
        if name == "perplexity":
            axes.set_yscale("log")
        axes.set_ylabel(f"{name}, mean ± standard deviation of the seeds")
        axes.set_xlabel("memory that training holds (MB)" if memory else "share of the targets' weights that is kept")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
        figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def _kept(one: Summary) -> Sequence[float]:
    return one.values("kept")


def _memory(one: Summary) -> Sequence[float]:
    return one.memory


def _arms(axes: Axes, found: Sequence[Summary], horizontal: Callable[[Summary], Sequence[float]]) -> None:
    """One line for each arm, its budgets in order."""
    known = [*ARMS, *sorted({one.arm for one in found} - {*ARMS})]
    drawn = [arm for arm in known if any(one.arm == arm and horizontal(one) for one in found)]
    colors = colors_of(drawn)
    for place, arm in enumerate(drawn):
        points = _fullest([one for one in found if one.arm == arm and horizontal(one)])
        axes.errorbar(
            [statistics.mean(horizontal(one)) for one in points],
            [one.score for one in points],
            [_deviation(one.values(one.quality)) for one in points],
            label=points[0].label,
            color=colors[arm],
            marker=MARKERS[place % len(MARKERS)],
            markersize=5,
            linewidth=1.2,
            capsize=2,
        )


def _fullest(found: Sequence[Summary]) -> list[Summary]:
    """Of each budget the rows of the machine that most of them are from."""
    best: dict[float, Summary] = {}
    for one in found:
        if one.budget not in best or len(one.rows) > len(best[one.budget].rows):
            best[one.budget] = one
    return list(best.values())


def colors_of(arms: Sequence[str]) -> dict[str, Any]:
    """A hue for each method, in as many shades as it has arms here; adapters over the dense model have one too."""
    import matplotlib as mpl

    found: dict[str, Any] = {DENSE.name: "black"}
    for hue, family in groupby(sorted((arm for arm in arms if arm != DENSE.name), key=_hue), key=_hue):
        members = list(family)
        for place, arm in enumerate(members):
            found[arm] = mpl.colormaps[hue](0.95 - 0.55 * place / len(members))
    return found


def _hue(arm: str) -> str:
    return HUES.get(type(ARMS[arm].method), "Greys") if arm in ARMS else "Greys"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
