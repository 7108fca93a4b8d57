"""Classification at a glance: how far each arm ends above or below full fine-tuning of the same seed, in points.

Rows from a GPU are held against full fine-tuning there, those from a CPU against that on a CPU.

Language models' suites are too short for a mean of all: their own tables have them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from arms import ARMS, DENSE
from results import Row
from suites import GROUPS
from tables import Pairing, Summary, head, label_of, line, pairing, suites_of, summaries

SUITES = (*GROUPS["text"], "cifar10-5000")  # the images with all that there are of them
FEWEST = 2  # suites that an arm has rows of, or the table of its suite says it all


@dataclass(frozen=True)
class Standing:
    """One arm at one budget: its points over full fine-tuning, by suite."""

    arm: str
    budget: float
    points: Mapping[str, Mapping[Pairing, float]]  # each of a row and full fine-tuning that are of one pairing

    @property
    def mean(self) -> float:
        """Over the suites, each the mean of its seeds."""
        return statistics.mean(map(self.of, self.points))

    def of(self, suite: str) -> float:
        """The mean of a suite's seeds."""
        return statistics.mean(self.points[suite].values())

    def beside(self, other: Standing) -> Standing:
        """The same of the suites and seeds that another has too."""
        seeds = {suite: {seed for seed, _ in points} for suite, points in other.points.items()}
        kept = {
            suite: {pair: value for pair, value in points.items() if pair[0] in seeds.get(suite, ())}
            for suite, points in self.points.items()
        }
        return Standing(self.arm, self.budget, {suite: points for suite, points in kept.items() if points})


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Every arm that is trained and has rows of at least FEWEST suites beside full fine-tuning's, most kept first."""
    found: dict[tuple[str, float], dict[str, dict[Pairing, float]]] = {}
    for suite in (one for one in suites_of(rows) if one in SUITES):
        there = summaries(rows, suite)
        dense = {pairing(row): row["accuracy"] for one in there if one.arm == DENSE.name for row in trained(one)}
        for one in (one for one in there if one.arm != DENSE.name):
            held = [row for row in trained(one) if pairing(row) in dense]
            points = {pairing(row): 100 * (row["accuracy"] - dense[pairing(row)]) for row in held}
            if points:
                found.setdefault((one.arm, one.budget), {}).setdefault(suite, {}).update(points)
    order = list(ARMS)
    made = [Standing(*key, points) for key, points in found.items() if len(points) >= FEWEST]
    return sorted(made, key=lambda one: (-one.budget, order.index(one.arm) if one.arm in order else len(order)))


def trained(one: Summary) -> list[Row]:
    """The rows that training ended in an accuracy."""
    return [row for row in one.rows if "accuracy" in row and row.get("epochs")]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A row for each arm and budget, a column for each suite, and the mean of those that have rows of all."""
    found = standings(rows)
    suites = [suite for suite in SUITES if any(suite in one.points for one in found)]
    yield from head(("arm", "kept", *suites, "mean"))
    for one in found:
        yield _line(one, suites)


def _line(one: Standing, suites: Sequence[str]) -> str:
    cells = [f"{one.of(suite):+.2f}" if suite in one.points else "-" for suite in suites]
    whole = f"**{one.mean:+.2f}**" if len(one.points) == len(suites) else "-"
    return line([label_of(one.arm), f"{one.budget:.0%}", *cells, whole])


def duel(rows: Sequence[Row], first: str, second: str) -> Iterator[str]:
    """Two arms on the suites and seeds that both have, which tell what differs from what was drawn otherwise."""
    found = {(one.arm, one.budget): one for one in standings(rows)}
    pairs = [
        (one, found[second, one.budget]) for one in found.values() if one.arm == first and (second, one.budget) in found
    ]
    suites = [suite for suite in SUITES if any(suite in one.beside(other).points for one, other in pairs)]
    if suites:
        yield from head(("arm", "kept", *suites, "mean", "seeds of each set"))
    for one, other in pairs:
        seeds = ", ".join(str(len(one.beside(other).points.get(suite, ()))) for suite in suites)
        for both in (one.beside(other), other.beside(one)):
            yield f"{_line(both, suites)} {seeds} |"


def draw(rows: Sequence[Row], path: Path) -> Path | None:
    """The means over the suites that all drawn arms have rows of, against the share that is kept; PNG.

    Compressed arms are lines over their budgets, adapters over the dense model points at all of the weights. None where
    no two compressed arms have budgets and suites in common.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from plots import STYLE, colors_of

    drawn, suites = comparable(standings(rows))
    if len({one.arm for one in drawn if one.budget < 1}) < FEWEST:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(one.arm for one in drawn))
    colors = colors_of(names)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.8), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color="black", linewidth=1, label="full fine-tuning")
        for name in names:
            points = [one for one in drawn if one.arm == name]
            values = [statistics.mean(map(one.of, suites)) for one in points]
            axes.plot([one.budget for one in points], values, "o-", label=label_of(name), color=colors[name])
        axes.set_ylabel("accuracy: points over full fine-tuning")
        axes.set_xlabel(f"share of the targets' weights that is kept; mean of {', '.join(suites)}")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
        figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def comparable(found: Sequence[Standing]) -> tuple[list[Standing], list[str]]:
    """The standings that have rows of as many suites as the fullest one, and those suites."""
    most = max((len(one.points) for one in found), default=0)
    full = [one for one in found if len(one.points) == most]
    suites = list(full[0].points) if full else []
    return [one for one in full if list(one.points) == suites], suites
