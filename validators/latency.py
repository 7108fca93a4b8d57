"""Latency of dense and candidate, taking turns in one process so that whatever disturbs the machine disturbs both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from compressor.threads import usable_threads
from validators.base import Finding, Subject
from validators.child import ask, tiled
from validators.intervals import bootstrap_ratios, percentile_interval, quantile_interval
from validators.timed_calls import BOUND, REPLAYED

PERCENTILES = (50, 90, 99)
FEWEST_RUNS = tuple(500 // (100 - p) for p in PERCENTILES)  # of which 5 lie beyond: 10, 50, 500


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run at the 50th, 90th and 99th percentile, with a bootstrap interval of candidate / dense.

    A percentile needs as many runs as 5 lie beyond it, of the 99th 500: of fewer its interval is open, and a gate on it
    unsure.
    On a GPU inputs and outputs stay there, and the runs are replayed as CUDA graphs where both can be recorded; the
    details say whether they did and were, as 1 or 0.
    """

    quantities: ClassVar[tuple[str, ...]] = tuple(f"latency_p{p}" for p in PERCENTILES)
    batch_size: int = 1
    sequence_length: int = 64
    runs: int = 200
    warmup: int = 10
    confidence: float = 0.95
    resamples: int = 5_000
    seed: int = 0

    def run(self, dense: Subject, candidate: Subject) -> tuple[Finding, ...]:
        """Findings `latency_p50`, `latency_p90` and `latency_p99` (ms); the first carries the details.

        Raises:
            DependencyError, ResourceError, RuntimeFailure: as the measuring process failed.
        """
        inputs = tiled(dense.evaluation, self.batch_size, self.sequence_length)
        knobs = {"runs": self.runs, "warmup": self.warmup, "seed": self.seed}
        answer = ask("latency", [dense, candidate], inputs, **knobs)
        times = np.asarray(answer["nanoseconds"]) / 1e6  # (runs, 2) ms
        p50, *tails = self._findings(times)
        details = _details(times) | {"warmup": self.warmup, "threads": dense.session.threads or usable_threads()}
        if dense.session.device == "cuda":
            bound, replayed = answer["way"] in (BOUND, REPLAYED), answer["way"] == REPLAYED
            details |= {"kept_on_gpu": float(bound), "cuda_graphs": float(replayed)}
        return (replace(p50, details=details), *tails)

    def _findings(self, times: np.ndarray) -> list[Finding]:
        """One finding per percentile from times (runs, 2) in ms."""
        values = np.percentile(times, PERCENTILES, axis=0)  # (3, 2)
        ratios = ratio_intervals(times, self.confidence, self.resamples, self.seed)  # (3, 2)
        ends = values[:, :1] * ratios  # (3, 2) ms
        alone = [quantile_interval(times[:, 1], p / 100, self.confidence) for p in PERCENTILES]
        details = [{"runs": len(times), "runs_needed": fewest} for fewest in FEWEST_RUNS]
        rows = zip(self.quantities, values.tolist(), ends.tolist(), alone, details, strict=True)
        return [
            Finding(name, "ms", "lower", base, ours, (low, high), self.confidence, alone=own, details=needed)
            for name, (base, ours), (low, high), own, needed in rows
        ]


def ratio_intervals(times: np.ndarray, confidence: float, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap intervals (3, 2) of candidate / dense at PERCENTILES of times (runs, 2); 0 to infinity of too few runs.

    No resample is slower than the slowest run, so that of a percentile that fewer than 5 runs lie beyond it would be
    certain of what it has not seen.
    """
    drawn = bootstrap_ratios(times, PERCENTILES, resamples, seed)  # (3, resamples)
    reached = np.array([len(times) >= fewest for fewest in FEWEST_RUNS])
    return np.where(reached[:, None], percentile_interval(drawn, confidence), (0.0, np.inf))


def _details(times: np.ndarray) -> dict[str, float]:
    details: dict[str, float] = {"runs": len(times)}
    for name, column in zip(("dense", "candidate"), times.T, strict=True):
        details |= {f"{name}_mean": float(column.mean()), f"{name}_min": float(column.min())}
        details |= {f"{name}_std": float(column.std(ddof=1))}
    return details
