"""Peak memory of each export in a fresh process of its own, which holds the runtime and nothing else of note."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from exporters.base import Arrays
from validators.base import Finding, Subject
from validators.child import ask, tiled


@dataclass(frozen=True)
class Memory:
    """The most memory that loading and running takes: resident memory, or GPU memory where the exports run on cuda.

    Dense and candidate take turns, `repeats` times each, every time in a fresh process. Values are medians; the
    interval is no confidence interval but the spread: dense value x the extremes of candidate / dense; none of a single
    turn.
    """

    quantities: ClassVar[tuple[str, ...]] = ("peak_memory",)
    batch_size: int = 1
    sequence_length: int = 64
    repeats: int = 3
    steady_runs: int = 5

    def run(self, dense: Subject, candidate: Subject) -> tuple[Finding, ...]:
        """Finding `peak_memory` (MiB); details hold the medians of every stage, see `validators.probe.memory`.

        Raises:
            DependencyError, ResourceError, RuntimeFailure: as the measuring process failed.
        """
        inputs = tiled(dense.evaluation, self.batch_size, self.sequence_length)
        rounds = [(self._stages(dense, inputs), self._stages(candidate, inputs)) for _ in range(self.repeats)]
        base, ours = ([pair[0] for pair in rounds], [pair[1] for pair in rounds])
        details = _medians("dense", base) | _medians("candidate", ours) | {"repeats": self.repeats}
        peaks = details["dense_peak"], details["candidate_peak"]
        theirs, own = ([stages["peak"] for stages in rounds] for rounds in (base, ours))
        known = (
            (_spread(theirs, own), (min(own), max(own))) if self.repeats > 1 else (None, None)
        )  # one varies in nothing
        return (Finding("peak_memory", "MiB", "lower", *peaks, known[0], details=details, alone=known[1]),)

    def _stages(self, subject: Subject, inputs: Arrays) -> dict[str, float]:
        return ask("memory", [subject], inputs, steady_runs=self.steady_runs)


def _medians(prefix: str, rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {f"{prefix}_{stage}": median(stages[stage] for stages in rounds) for stage in rounds[0]}


def _spread(base: Sequence[float], ours: Sequence[float]) -> tuple[float, float]:
    """Where the candidate may lie given the dense median, by the extremes of both."""
    center = median(base)
    return center * min(ours) / max(base), center * max(ours) / min(base)
