"""The table of `decomposition.py`: seconds of ours and of the reference, and what both models lose."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from results import Row
from tables import head, line

METRICS = {"input": "SVD-LLM", "both": "GFWSVD"}  # whose metric it is
STAGES = ("calibrate", "first", "next")
COLUMNS = (
    "model and rows",
    "metric of",
    "calibrate",
    "first budget",
    "a further budget",
    "decompose and plan, 3 budgets",
    "loss",
    "peak memory",
)


def decomposition(rows: Sequence[Row]) -> Iterator[str]:
    """Ours / reference (how many times ours goes into it), a line for each model and metric."""
    yield from head(COLUMNS)
    found: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["suite"], row["metric"], row["rows"]), {})[row["stage"]] = row
    for stages in found.values():
        if all(stage in stages for stage in STAGES):
            yield line(_cells(stages))


def _cells(stages: Mapping[str, Row]) -> Iterator[str]:
    row = stages["calibrate"]
    yield f"{row['model']}, {row['rows']:,} of {row['suite']}"
    yield METRICS[row["metric"]]
    seconds = {side: [statistics.median(stages[stage][side]) for stage in STAGES] for side in ("ours", "reference")}
    yield from (_seconds(*pair) for pair in zip(*seconds.values(), strict=True))
    yield _seconds(*(first + 2 * further for _, first, further in seconds.values()))
    losses, memory = (stages.get(stage) for stage in ("quality", "memory"))
    yield f"{losses['loss']['ours']:.4f} / {losses['loss']['reference']:.4f}" if losses else "-"
    yield f"{memory['ours']:,.0f} / {memory['reference']:,.0f} MiB" if memory else "-"


def _seconds(ours: float, reference: float) -> str:
    return f"{ours:.1f} / {reference:.1f} s ({reference / ours:.1f}x)"
