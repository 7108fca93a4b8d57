"""Latency of dense and candidate, taking turns in one process so that whatever disturbs the machine disturbs both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from compressor.threads import usable_threads
from validators.base import Finding, Subject, percentile_interval
from validators.child import ask, tiled
from validators.ways import BOUND, REPLAYED

PERCENTILES = (50, 90, 99)
CHUNK = 2_000_000  # resampled rounds held at once, 32 MB


@dataclass(frozen=True)
class Latency:
    """Milliseconds per run at the 50th, 90th and 99th percentile, with a bootstrap interval of candidate / dense.

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
        ratios, alone = intervals(times, self.confidence, self.resamples, self.seed)  # each (3, 2)
        ends = values[:, :1] * ratios  # (3, 2) ms
        rows = zip(self.quantities, values.tolist(), ends.tolist(), alone.tolist(), strict=True)
        return [
            Finding(name, "ms", "lower", base, ours, (low, high), self.confidence, alone=(own[0], own[1]))
            for name, (base, ours), (low, high), own in rows
        ]


def ratio_intervals(times: np.ndarray, confidence: float, resamples: int, seed: int) -> np.ndarray:
    """The first of `intervals`."""
    return intervals(times, confidence, resamples, seed)[0]


def intervals(times: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals (3, 2) of candidate / dense, and of the candidate, at PERCENTILES of times (runs, 2).

    A moving-block bootstrap (Künsch 1989) over whole rounds: a round holds both runs, which shared the machine's mood,
    and blocks of runs^(1/3) rounds (Hall, Horowitz & Jing 1995) keep moods that last longer.
    """
    runs = len(times)
    length = max(1, round(runs ** (1 / 3)))
    blocks = -(-runs // length)
    starts = np.random.default_rng(seed).integers(0, runs - length + 1, size=(resamples, blocks))
    rounds = (starts[:, :, None] + np.arange(length)).reshape(resamples, -1)[:, :runs]  # (resamples, runs)
    parts = np.array_split(rounds, -(-rounds.size // CHUNK))
    drawn = np.concatenate([np.percentile(times[part], PERCENTILES, axis=1) for part in parts], axis=1)
    dense, candidate = drawn[:, :, 0], drawn[:, :, 1]  # each (3, resamples)
    return percentile_interval(candidate / dense, confidence), percentile_interval(candidate, confidence)


def _details(times: np.ndarray) -> dict[str, float]:
    details: dict[str, float] = {"runs": len(times)}
    for name, column in zip(("dense", "candidate"), times.T, strict=True):
        details |= {f"{name}_mean": float(column.mean()), f"{name}_min": float(column.min())}
        details |= {f"{name}_std": float(column.std(ddof=1))}
    return details
