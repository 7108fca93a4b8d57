"""Subjects, findings and gates: what a check measures, what it returns, and how a verdict is reached.

Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np

from compressor import registry
from compressor.errors import RuntimeFailure
from compressor.recipe import Gate
from compressor.tasks.base import Outcomes, Task, together
from exporters.base import Arrays, Session

Verdict = Literal["pass", "fail", "unsure", "ungated"]
NO_OUTCOMES = Outcomes(np.empty((0, 1)), np.empty(0, int), np.empty(0, int))  # of what is run for its costs alone


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The whole evaluation set: padded batches with their labels, and the task that reads the outputs.

    `shaped`: time and memory are measured on the first batch as it is, not on one of the shape that a recipe asks for.
    """

    task: Task
    batches: Sequence[Arrays]
    shaped: bool = False

    def outcomes(self, run: Callable[[Arrays], Mapping[str, np.ndarray]]) -> Outcomes:
        """What a runner's logits say about every batch."""
        return together(self.task.outcomes(run(batch)["logits"], batch) for batch in self.batches)


@dataclass(frozen=True, eq=False)
class Subject:
    """One exported model under test.

    `reference` holds the outcomes of the torch model that this export must reproduce.
    """

    name: str  # "dense-onnx-fp32", "onnx-int8"
    runtime: str  # row of the exporter table
    path: Path  # the export's folder
    evaluation: Evaluation
    session: Session
    reference: Outcomes

    @cached_property
    def outcomes(self) -> Outcomes:
        """What it says on the whole evaluation set, computed once.

        Raises:
            RuntimeFailure: its values are not shaped like its reference's.
        """
        found = self.evaluation.outcomes(registry.load("exporters", self.runtime)().load(self.path, self.session))
        ours, theirs = found.values.shape, self.reference.values.shape
        if ours != theirs:
            raise RuntimeFailure(
                f"{self.name} gives values of shape {ours} on the evaluation set, but the model it was made from gives "
                f"{theirs}: {self.path} belongs to another model or data set."
            )
        return found


@dataclass(frozen=True)
class Finding:
    """One measured quantity of a candidate beside the dense baseline.

    `limit` and the intervals are in the candidate's unit. `interval` is where the candidate's value lies given the
    dense one (dense value + interval of the difference, or dense value x interval of the ratio); `alone` is where it
    lies by itself, on other rows or in other runs, which a limit asks for that no dense value is in.
    """

    quantity: str
    unit: str
    better: Literal["higher", "lower"]
    dense: float
    candidate: float
    interval: tuple[float, float] | None = None
    confidence: float | None = None  # of the intervals, e.g. 0.95
    limit: float | None = None
    verdict: Verdict = "ungated"
    accept_unsure: bool = False  # the recipe lets an interval that straddles the limit pass
    details: Mapping[str, float] = field(default_factory=dict)
    alone: tuple[float, float] | None = None
    absolute: bool = False  # the limit is one that no dense value is in

    @property
    def verdict_interval(self) -> tuple[float, float] | None:
        """The interval that the verdict is reached by."""
        return self.alone if self.absolute and self.alone is not None else self.interval

    @property
    def ratio(self) -> float:
        """candidate / dense."""
        return self.candidate / self.dense if self.dense else float("nan")

    @property
    def ok(self) -> bool:
        """Whether this finding lets the build go on."""
        return self.verdict in ("pass", "ungated") or (self.verdict == "unsure" and self.accept_unsure)

    @property
    def within(self) -> bool:
        """Whether the value itself is within the limit, whatever its interval; where there is none it is."""
        if self.limit is None:
            return True
        return self.candidate >= self.limit if self.better == "higher" else self.candidate <= self.limit

    def judged(self, gate: Gate) -> Finding:
        """The same finding with the gate's limit and verdict."""
        limit, absolute = limit_of(gate, self.dense, self.better), gate.type == "threshold"
        low, high = replace(self, absolute=absolute).verdict_interval or (self.candidate, self.candidate)
        worst, best = (low, high) if self.better == "higher" else (-high, -low)
        bound = limit if self.better == "higher" else -limit
        known = math.isfinite(self.candidate) and math.isfinite(limit)
        verdict: Verdict = "fail" if not known else "pass" if worst >= bound else "unsure" if best >= bound else "fail"
        accepted = gate.unsure == "pass"
        return replace(self, limit=limit, absolute=absolute, verdict=verdict, accept_unsure=accepted)


def limit_of(gate: Gate, dense: float, better: Literal["higher", "lower"]) -> float:
    """The worst allowed candidate value, in the candidate's unit.

    `threshold` is absolute; `max-degradation` and `min-improvement` are differences to dense in the quantity's unit;
    their `percent-` forms are percentages of the dense value.
    """
    sign = 1 if better == "higher" else -1
    amount = abs(dense) * gate.value / 100 if gate.type.startswith("percent-") else gate.value
    if gate.type == "threshold":
        return gate.value
    return dense + sign * amount if gate.type.endswith("min-improvement") else dense - sign * amount


class Check(Protocol):
    """One proof: a frozen dataclass whose fields are its knobs; `quantities` names what it measures."""

    quantities: ClassVar[tuple[str, ...]]

    def run(self, dense: Subject, candidate: Subject) -> tuple[Finding, ...]:
        """Measure the candidate beside the dense subject; findings come back ungated."""
        ...
