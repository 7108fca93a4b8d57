"""Parity: does the export say what the torch model says that it was made from?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import log_softmax

from validators.accuracy import effect
from validators.base import Finding, Subject
from validators.intervals import wilson


@dataclass(frozen=True)
class Parity:
    """Agreement of predictions and largest difference of logits, export against its own torch model.

    Measured on the whole evaluation set, for the candidate and for the dense baseline alike. The interval of the
    agreement is Wilson's: where it lies for texts like these, whose tokens count as in `Accuracy`. A row that is not
    finite on either side never agrees, and makes the largest difference infinite.
    """

    quantities: ClassVar[tuple[str, ...]] = ("parity", "parity_max_difference")
    confidence: float = 0.95
    chunk: int = 64

    def run(self, dense: Subject, candidate: Subject) -> tuple[Finding, ...]:
        """Findings `parity` (share of predictions) and `parity_max_difference` (logits).

        Raises:
            RuntimeFailure: an export's outputs do not have the shape of its reference.
        """
        base, ours = agreeing(dense), agreeing(candidate)  # each (N,) bool
        worth = effect(candidate, ours, self.chunk, self.confidence)
        interval = wilson(ours.sum() / worth, len(ours) / worth, self.confidence)
        shares = float(base.mean()), float(ours.mean()), interval
        counts = {"n": len(ours), "disagreements": int((~ours).sum())}
        maxima = max_difference(dense), max_difference(candidate)
        return (
            Finding("parity", "agreement", "higher", *shares, self.confidence, details=counts),
            Finding("parity_max_difference", "logit", "lower", *maxima, details=differences(candidate)),
        )


def agreeing(subject: Subject) -> np.ndarray:
    """Rows (N,) bool where export and torch model predict the same and all logits of both are finite."""
    ours, theirs = subject.outcomes.predictions, subject.reference.predictions
    return (ours == theirs) & (ours >= 0)


def max_difference(subject: Subject) -> float:
    """Largest |logit difference|; infinite where a logit of either side is not finite."""
    with np.errstate(invalid="ignore"):  # inf - inf
        largest = float(np.abs(subject.outcomes.values - subject.reference.values).max(initial=0))
    return largest if np.isfinite(largest) else float("inf")


def differences(subject: Subject) -> dict[str, float]:
    """Mean and median |logit difference| and mean KL(torch || export) in nats over finite rows; rows that are not."""
    ours, theirs = (found.values.astype(np.float64) for found in (subject.outcomes, subject.reference))
    finite = np.isfinite(ours).all(axis=1) & np.isfinite(theirs).all(axis=1)  # (N,)
    counts = {"nonfinite_rows": float((~finite).sum())}
    if not finite.any():
        return counts
    ours, theirs = ours[finite], theirs[finite]
    gaps = np.abs(ours - theirs)
    found = {"mean_difference": float(gaps.mean()), "median_difference": float(np.median(gaps))}
    if ours.shape[1] > 1:  # one log-probability of a target is no distribution
        p, q = log_softmax(theirs, axis=1), log_softmax(ours, axis=1)
        found["kl"] = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    return found | counts
