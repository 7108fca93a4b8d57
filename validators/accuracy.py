"""Accuracy: what the candidate export loses, or gains, against the dense export on the whole evaluation set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.stats import binomtest

from compressor.tasks.base import Outcomes
from validators.base import Finding, Subject
from validators.intervals import bonett_price, design_effect, wilson


@dataclass(frozen=True)
class Accuracy:
    """Share of right predictions, with an interval of paired proportions (Bonett & Price 2012).

    Both exports answer the same rows: much of the spread cancels, and the interval is that of the difference, laid
    around the dense value; alone the candidate's accuracy lies in Wilson's. Rows that are tokens of running text go
    together with their neighbors: they count for as many as are worth independent ones, by their design effect, and
    McNemar's test, which takes rows to be independent, is left out.
    """

    quantities: ClassVar[tuple[str, ...]] = ("accuracy",)
    confidence: float = 0.95
    chunk: int = 64

    def run(self, dense: Subject, candidate: Subject) -> tuple[Finding, ...]:
        """Finding `accuracy`; details name the torch models' accuracies, macro F1 and McNemar's exact p-value.

        Raises:
            RuntimeFailure: an export's outputs do not have the shape of its reference.
        """
        base, ours = right(dense), right(candidate)  # each (N,) bool
        apart, own = (effect(dense, rows, self.chunk, self.confidence) for rows in (ours.astype(float) - base, ours))
        low, high = bonett_price(base, ours, self.confidence, apart)
        alone = wilson(ours.sum() / own, len(ours) / own, self.confidence)
        center = float(base.mean())
        values = center, float(ours.mean()), (max(0.0, center + low), min(1.0, center + high))
        details = _details(dense, candidate)
        return (Finding("accuracy", "share", "higher", *values, self.confidence, details=details, alone=alone),)


def effect(subject: Subject, rows: np.ndarray, chunk: int, confidence: float) -> float:
    """How many of a subject's rows (N,) are worth one: 1, but for tokens, which go together in chunks."""
    return design_effect(rows, chunk, confidence) if _of_tokens(subject) else 1.0


def _of_tokens(subject: Subject) -> bool:
    """Whether rows are tokens of a text, each with the log-probability of the one that follows."""
    return subject.outcomes.values.shape[1] == 1


def right(subject: Subject) -> np.ndarray:
    """Rows (N,) bool that the export classifies rightly."""
    return _right(subject.outcomes)


def _right(outcomes: Outcomes) -> np.ndarray:
    return outcomes.predictions == outcomes.labels  # (N,) bool


def mcnemar(base: np.ndarray, ours: np.ndarray) -> float:
    """Exact two-sided p-value that both are equally often right (McNemar 1947); 1 without a discordant pair."""
    ours_alone, discordant = int((ours & ~base).sum()), int((ours != base).sum())
    return float(binomtest(ours_alone, discordant).pvalue) if discordant else 1.0


def macro_f1(subject: Subject) -> float:
    """Mean F1 over the labels of the evaluation set."""
    from sklearn.metrics import f1_score

    _, guesses, labels = subject.outcomes
    return float(f1_score(labels, guesses, labels=np.unique(labels), average="macro", zero_division=0))


def _details(dense: Subject, candidate: Subject) -> dict[str, float]:
    paired = {} if _of_tokens(dense) else {"mcnemar_p": mcnemar(right(dense), right(candidate)), **_guessed(dense)}
    return {
        "n": len(dense.outcomes.labels),
        **paired,
        "dense_torch_accuracy": _torch_accuracy(dense),
        "candidate_torch_accuracy": _torch_accuracy(candidate),
        "dense_macro_f1": macro_f1(dense),
        "candidate_macro_f1": macro_f1(candidate),
    }


def _guessed(subject: Subject) -> dict[str, float]:
    """How often the commonest label of the rows is the right one."""
    _, counts = np.unique(subject.outcomes.labels, return_counts=True)
    return {"commonest_label": float(counts.max() / counts.sum())}


def _torch_accuracy(subject: Subject) -> float:
    return float(_right(subject.reference).mean())
