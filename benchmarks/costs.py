"""The table of `decomposition.py`: seconds of ours and of the reference, and what both models lose."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from results import Row

METRICS = {"input": "SVD-LLM", "both": "GFWSVD"}  # whose metric it is
STAGES = ("calibrate", "first", "next")
COLUMNS = (
    "model and rows",
    "metric of",
    "calibrate",
    "first budget",
    "a further budget",
    "decompose and plan, 3 budgets",
    "all, 3 budgets",
    "loss",
    "peak memory",
)


def decomposition(rows: Sequence[Row]) -> Iterator[str]:
    """Ours / reference (how many times ours goes into it), a line for each model and metric."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|" + "---|" * len(COLUMNS)
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["suite"], row["metric"]), {})[row["stage"]] = row
    for stages in found.values():
        if all(stage in stages for stage in (*STAGES, "quality", "memory")):
            yield f"| {' | '.join(_cells(stages))} |"


def _cells(stages: Mapping[str, Row]) -> Iterator[str]:
    first = stages["calibrate"]
    yield f"{first['model']}, {first['rows']:,} of {first['suite']}"
    yield METRICS[first["metric"]]
    seconds = {side: [statistics.median(stages[stage][side]) for stage in STAGES] for side in ("ours", "reference")}
    yield from (_seconds(*pair) for pair in zip(*seconds.values(), strict=True))
    made = {side: [one[1] + 2 * one[2], one[0] + one[1] + 2 * one[2]] for side, one in seconds.items()}
    yield from (_seconds(*pair) for pair in zip(*made.values(), strict=True))
    loss, memory = stages["quality"]["loss"], stages["memory"]
    yield f"{loss['ours']:.4f} / {loss['reference']:.4f}"
    yield f"{memory['ours']:,.0f} / {memory['reference']:,.0f} MiB"


def _seconds(ours: float, reference: float) -> str:
    return f"{ours:.1f} / {reference:.1f} s ({reference / ours:.1f}x)"
