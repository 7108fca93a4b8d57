"""Does another tool say what our own runner says? Answers are compared and told as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# by precision: how far a logit may be off, as a share of the largest one, and the least share of equal predictions.
# Scales of int8 activations are measured while running, so that a last bit of float32 may move one to the next step.
LIMITS: Mapping[str, tuple[float, float]] = {"fp32": (1e-3, 1.0), "int8": (0.1, 0.9)}
HEADERS = ("environment", "export", "versions", "rows", "largest difference", "agreement", "verdict")


@dataclass(frozen=True)
class Row:
    """One export in one environment; `fault` says what is wrong, and is empty where nothing is."""

    environment: str
    export: str
    fault: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    rows: int = 0
    difference: float = math.nan  # of a logit
    agreement: float = math.nan  # share of rows with the same prediction

    @property
    def ok(self) -> bool:
        """Whether the tool says the same."""
        return not self.fault


def compare(environment: str, export: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Row:
    """Hold a tool's answer against our runner's.

    Args:
        environment: the tool.
        export: a folder name that ends in its precision, such as `onnx-fp32`.
        ours: `logits` (rows, labels) as lists, and `tokens` (rows, n) where texts were continued.
        theirs: the same, with `versions`.
    """
    versions, expected, found = theirs.get("versions", {}), ours["logits"], theirs["logits"]
    if [len(row) for row in found] != [len(row) for row in expected]:
        shapes = f"{_shape(found)}, not {_shape(expected)}"
        return Row(environment, export, f"its logits have the shape {shapes}", versions, len(found))
    differences = [
        abs(a - b) for row, other in zip(found, expected, strict=True) for a, b in zip(row, other, strict=True)
    ]
    worst = max(differences) if all(map(math.isfinite, differences)) else math.inf
    largest = max(abs(value) for row in expected for value in row)
    agreement = _agreement(ours, theirs)
    share, least = LIMITS[export.rpartition("-")[2]]
    faults = [f"logits differ by {worst:.1e}, over {share * largest:.1e}"] * (not worst <= share * largest)
    faults += [f"only {agreement:.1%} of the predictions agree, under {least:.0%}"] * (agreement < least)
    return Row(environment, export, "; ".join(faults), versions, len(found), worst, agreement)


def table(rows: Sequence[Row]) -> str:
    """The rows in markdown."""
    lines = [HEADERS, ["---"] * len(HEADERS), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def exit_code(rows: Sequence[Row]) -> int:
    """0 where every row says the same; 1 where one does not, or could not be asked, or there is none."""
    return 0 if rows and all(row.ok for row in rows) else 1


def _agreement(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Share of rows whose highest logit is the same, and whose continuation is, where texts were continued."""
    pairs = zip(ours["logits"], theirs["logits"], strict=True)
    same = [_highest(row) == _highest(other) for row, other in pairs]
    if "tokens" in ours:
        continued = theirs.get("tokens", [None] * len(same))
        same = [one and a == b for one, a, b in zip(same, ours["tokens"], continued, strict=True)]
    return sum(same) / len(same)


def _highest(row: Sequence[float]) -> int:
    return max(range(len(row)), key=row.__getitem__)


def _shape(rows: Sequence[Sequence[float]]) -> tuple[int, ...]:
    return (len(rows), *sorted({len(row) for row in rows}))


def _cells(row: Row) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in row.versions.items())
    figures = ["", "", ""]
    if row.rows and not math.isnan(row.agreement):
        figures = [str(row.rows), f"{row.difference:.1e}", f"{row.agreement:.1%}"]
    return [row.environment, row.export, versions, *figures, "same" if row.ok else row.fault]
