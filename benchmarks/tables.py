"""Markdown tables of the results: python benchmarks/tables.py benchmarks/results."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import ARMS, DENSE
from results import Row, read
from suites import SUITES

Pairing = tuple[int, str | None]  # seed and GPU


@dataclass(frozen=True)
class Summary:
    """The final rows of one arm at one budget on one kind of machine, one for each seed."""

    arm: str
    budget: float
    rows: Sequence[Row]

    @property
    def label(self) -> str:
        """What the arm is called; its name where no table knows it."""
        if self.arm == DENSE.name and not self.rows[0].get("epochs"):
            return "dense"
        return label_of(self.arm)

    @property
    def quality(self) -> str:
        """What was measured."""
        return "accuracy" if "accuracy" in self.rows[0] else "perplexity"

    @property
    def score(self) -> float:
        """Mean quality over the seeds."""
        return statistics.mean(self.values(self.quality))

    @property
    def kept(self) -> str:
        """Share of the targets' weights."""
        return f"{statistics.mean(self.values('kept')):.0%}"

    @property
    def compressed(self) -> bool:
        """Whether it is an arm of a method."""
        return self.arm in ARMS and ARMS[self.arm].method is not None

    @property
    def memory(self) -> list[float]:
        """What training holds (MB), the dense model that teaches included.

        Rows that do not say how many examples they counted a step on took the last batch, which is not a full one.
        """
        counted = [row["training_bytes"] for row in self.rows if "rows" in (row.get("training_bytes") or ())]
        return [(one["peak"] + one.get("teacher", 0)) / 1e6 for one in counted]

    def values(self, *path: str) -> list[float]:
        """The numbers at a path into the rows, those that have one."""
        found = []
        for row in self.rows:
            value: Any = row
            for key in path:
                value = (value or {}).get(key)
            if value is not None:
                found.append(value)
        return found


def label_of(arm: str) -> str:
    """What an arm is called; its name where no table knows it."""
    return ARMS[arm].label if arm in ARMS else arm


def summaries(rows: Sequence[Row], suite: str) -> list[Summary]:
    """What a suite's final rows come to: most kept first, then in the order of the arms' table."""
    order = list(ARMS)
    found: dict[tuple[str, float, str], list[Row]] = {}
    for row in rows:
        if row["phase"] == "final" and row["suite"] == suite:
            found.setdefault((row["arm"], row["budget"], _machine(row)), []).append(row)

    def place(key: tuple[str, float, str]) -> tuple[float, int, str, str]:
        return -key[1], order.index(key[0]) if key[0] in order else len(order), key[0], key[2]

    return [Summary(*key[:2], sorted(found[key], key=lambda row: row["seed"])) for key in sorted(found, key=place)]


def _machine(row: Row) -> str:
    return "a GPU" if row.get("gpu") else "a CPU"


def suites_of(rows: Sequence[Row]) -> list[str]:
    """The suites that have final rows, in the order of their table."""
    there = {row["suite"] for row in rows if row["phase"] == "final"}
    known = [name for suite in SUITES for name in (suite, f"{suite}-full") if name in there]
    return known + sorted(there - {*known})


def compared(found: Sequence[Summary]) -> Iterator[str]:
    """Quality and cost of every arm; the best compressed one of each budget, of the same seeds, in bold.

    A star is on what was trained at more than one rate: the grid was widened between seeds.
    """
    name, best = found[0].quality, _best(found)
    trains = any(one.values("final_loss") for one in found)
    held = ("training memory",) if has_memory(found) else ()
    costs = ("as truncated", "trained", "last loss", *held, "minutes") if trains else ()
    yield from head(("arm", "kept", f"{name} (seeds)", *costs))
    times = Counter((one.arm, one.budget) for one in found)
    for one in found:
        score = f"{spread(one.values(name))} ({len(one.rows)})"
        label = f"{one.label}, on {_machine(one.rows[0])}" if times[one.arm, one.budget] > 1 else one.label
        label += "*" if len(set(one.values("learning_rate"))) > 1 else ""
        cells = [label, one.kept, f"**{score}**" if one in best else score]
        yield line(cells + (_costs(one, memory=bool(held)) if trains else []))


def has_memory(found: Sequence[Summary]) -> bool:
    """Whether rows say what training holds, full fine-tuning's among them, which others are held against."""
    return any(one.memory for one in found if one.arm == DENSE.name)


def _costs(one: Summary, *, memory: bool) -> list[str]:
    """What truncation left, and what training took."""
    return [
        spread(one.values("before_training")) if one.compressed else "-",
        _mean(one.values("trainable") if one.values("final_loss") else [], "{:,.0f}"),
        _mean(one.values("final_loss"), "{:.3f}"),
        *([_mean(one.memory, "{:,.0f} MB")] if memory else []),
        _mean([value / 60 for value in one.values("seconds")], "{:.1f}"),
    ]


def by_set(found: Sequence[Summary]) -> Iterator[str]:
    """Where a suite measures several sets: the quality on each, and their mean."""
    names = list(found[0].rows[0]["sets"])
    yield from head(("arm", "kept", *names, "mean"))
    for one in found:
        cells = [one.label, one.kept]
        yield line([*cells, *(spread(one.values("sets", name)) for name in names), spread(one.values(one.quality))])


def has_sets(found: Sequence[Summary]) -> bool:
    """Whether all of a suite's rows tell several sets apart."""
    return all("sets" in row for one in found for row in one.rows)


def _best(found: Sequence[Summary]) -> list[Summary]:
    """The best compressed arm of each budget, among those that have the same seeds on the same machine as most."""
    pick, best = max if found[0].quality == "accuracy" else min, list[Summary]()
    for budget in dict.fromkeys(one.budget for one in found if one.compressed):
        alike: dict[frozenset[Pairing], list[Summary]] = {}
        for one in (one for one in found if one.compressed and one.budget == budget):
            alike.setdefault(frozenset(map(pairing, one.rows)), []).append(one)
        _, group = max(alike.items(), key=lambda item: (len(item[0]), len(item[1])))
        best += [pick(group, key=lambda one: one.score)] if len(group) > 1 else []
    return best


def pairing(row: Row) -> Pairing:
    """Seed and GPU: what rows have in common that can be held against each other."""
    return row["seed"], row.get("gpu")


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; the value alone where there is one, - where there is none."""
    if not values:
        return "-"
    mean = statistics.mean(values)
    if len(values) == 1:
        return figure(mean)
    return f"{figure(mean)} ± {figure(statistics.stdev(values))}"


def figure(value: float) -> str:
    """Four decimals of a share, three digits of a perplexity."""
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.3g}"


def _mean(values: Sequence[float], form: str) -> str:
    return form.format(statistics.mean(values)) if values else "-"


def head(names: Sequence[str]) -> Iterator[str]:
    """The first two lines of a table."""
    yield line(names)
    yield "|" + "---|" * len(names)


def line(cells: Iterable[str]) -> str:
    """A further one."""
    return f"| {' | '.join(cells)} |"


def ablations(rows: Sequence[Row]) -> Iterator[str]:
    """What each knob is worth: truncated and after training, and what the kept bases hold of the task's directions.

    Points to the default are those of the same seed.
    """
    columns = ("knob", "value", "as truncated", "after training (seeds)", "to the default")
    yield from head((*columns, "gradient directions held (chance)", "input's"))
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["axis"], row["value"]), []).append(row)
    usual = {row["seed"]: row["accuracy"] for row in found.get(("default", ""), ())}
    for (axis, value), alike in sorted(found.items(), key=lambda item: (item[0][0] != "default", item[0][0])):
        one = Summary(axis, alike[0]["budget"], alike)
        cells = [axis, value or "-", spread(one.values("before_training"))]
        points = [100 * (row["accuracy"] - usual[row["seed"]]) for row in alike if row["seed"] in usual]
        cells += [f"{spread(one.values(one.quality))} ({len(alike)})"]
        cells += [f"{statistics.mean(points):+.1f}" if points and axis != "default" else "-"]
        yield line([*cells, *(_held(one, side) for side in ("gradient", "input"))])


def _held(one: Summary, side: str) -> str:
    held, chance = (statistics.mean(one.values("overlap", side, key)) for key in ("held", "chance"))
    return f"{held:.2f} ({chance:.2f})"


def main() -> None:
    """Print what there is."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results")
    rows = read(folder / "comparison.jsonl")
    found = {suite: summaries(rows, suite) for suite in suites_of(rows)}
    tables = {suite: compared(one) for suite, one in found.items()}
    tables |= {f"{suite}, by set": by_set(one) for suite, one in found.items() if has_sets(one)}
    for name, table in tables.items():
        print("\n".join([f"### {name}", "", *table, ""]))


if __name__ == "__main__":
    main()
