"""Perplexity: how much more surprised the candidate export is by the evaluation text than the dense export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compressor.tasks.base import Outcomes
from validators.base import Finding, Subject
from validators.intervals import mean_interval


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean surprise per predicted token, with a paired interval (Student's t) over chunks.

    Both exports read the same tokens, and surprises of neighbors go together, so that pairs of chunks of consecutive
    tokens are what varies; the interval is that of the ratio of both perplexities, laid around the dense one, and
    `alone` that of the candidate's chunks. Too few chunks leave it open: what is known of 7 tokens is nothing. For
    tasks whose outcomes are log-probabilities of targets (N, 1).
    """

    quantities: ClassVar[tuple[str, ...]] = ("perplexity",)
    confidence: float = 0.95
    chunk: int = 64

    def run(self, dense: Subject, candidate: Subject) -> tuple[Finding, ...]:
        """Finding `perplexity`, infinite where a log-probability is not finite; details name the torch models'.

        Raises:
            RuntimeFailure: an export's outputs do not have the shape of its reference.
        """
        base, ours = surprises(dense.outcomes), surprises(candidate.outcomes)  # each (N,) nats
        values = perplexity(base), perplexity(ours)
        interval = alone = None
        if np.isfinite(values).all():
            knobs = self.chunk, self.confidence
            low, high = ratio_interval(ours - base, *knobs)
            interval, alone = (values[0] * low, values[0] * high), ratio_interval(ours, *knobs)
        details = {
            "n": len(ours),
            "dense_torch_perplexity": perplexity(surprises(dense.reference)),
            "candidate_torch_perplexity": perplexity(surprises(candidate.reference)),
        }
        confidence = self.confidence if interval else None
        found = Finding(
            "perplexity", "perplexity", "lower", *values, interval, confidence, details=details, alone=alone
        )
        return (found,)


def surprises(outcomes: Outcomes) -> np.ndarray:
    """-log p of every target (N,), in nats."""
    return -outcomes.values[:, 0].astype(np.float64)


def perplexity(found: np.ndarray) -> float:
    """exp of the mean surprise; infinite where one is not a number."""
    with np.errstate(over="ignore"):
        value = float(np.exp(found.mean()))
    return value if np.isfinite(value) else float("inf")


def ratio_interval(differences: np.ndarray, chunk: int, confidence: float) -> tuple[float, float]:
    """Interval of exp(mean(differences)), (N,), in chunks of neighbors; 0 to infinity of too few chunks."""
    with np.errstate(over="ignore"):
        low, high = np.exp(mean_interval(differences, chunk, confidence))
    return float(low), float(high)
