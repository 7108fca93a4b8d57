"""Where values lie: intervals of shares, of means of rows that go together, of quantiles, and of differences.

Arrays and numbers in, ends out: nothing here knows of exports, findings or gates. Nothing here imports torch, and
scipy only where Student's or the binomial distribution is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

FEWEST_CHUNKS = 8  # of neighboring rows, that a standard error is known from
HELD = 2_000_000  # resampled pairs held at once, 48 MB


class Span(NamedTuple):
    """A value with the interval it lies in."""

    low: float
    value: float
    high: float


# ---- shares ----


def wilson(successes: float, trials: float, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927); honest near 1, where the normal one has no width.

    Counts of rows that go together are divided by their `design_effect`, and then are no whole numbers.
    """
    share, z = successes / trials, _z(confidence)
    center = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    return max(0.0, center - half), min(1.0, center + half)


def bonett_price(base: np.ndarray, ours: np.ndarray, confidence: float, effect: float = 1.0) -> tuple[float, float]:
    """Interval of mean(ours) - mean(base) over paired rows, both (N,) bool, of which `effect` are worth one.

    The adjusted Wald interval: one more row that only ours has right, and one that only base has (Bonett & Price 2012,
    Journal of Educational and Behavioral Statistics 37). Without a discordant pair among few rows it still has a width,
    where a bootstrap is certain of what it has not seen.
    """
    rows = len(base) / effect + 2
    gained, lost = ((ours & ~base).sum() / effect + 1) / rows, ((base & ~ours).sum() / effect + 1) / rows
    margin = _z(confidence) * math.sqrt((gained + lost - (gained - lost) ** 2) / rows)
    return float(max(-1.0, gained - lost - margin)), float(min(1.0, gained - lost + margin))


def _z(confidence: float) -> float:
    """By how many standard errors a normal interval reaches to each side."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


# ---- means of rows that go together ----


def standard_error(rows: np.ndarray, chunk: int) -> tuple[float, int]:
    """Of the mean of rows (N,) whose neighbors go together, with the number of chunks that it is known from.

    Chunks are the units that vary, as in a sample of clusters (Cochran 1977, section 9A.1). Fewer than FEWEST_CHUNKS of
    them are cut into shorter ones; that of a single row is infinite.
    """
    starts = np.arange(0, len(rows), max(1, min(chunk, len(rows) // FEWEST_CHUNKS)))
    sums, counts = np.add.reduceat(rows.astype(float), starts), np.diff(np.append(starts, len(rows)))  # each (chunks,)
    chunks = len(starts)
    if chunks < 2:
        return math.inf, chunks
    squares = np.square(sums - rows.mean() * counts).sum()
    return math.sqrt(chunks / (chunks - 1) * squares) / len(rows), chunks


def t_quantile(confidence: float, chunks: int) -> float:
    """By how many standard errors known from so many chunks an interval reaches to each side (Student 1908)."""
    from scipy.stats import t  # which whoever only reads a report does not wait for

    return float(t.ppf((1 + confidence) / 2, chunks - 1))


def design_effect(rows: np.ndarray, chunk: int, confidence: float) -> float:
    """How many rows (N,) whose neighbors go together are worth one independent row, at least 1 (Kish 1965).

    The variance of their mean by that of independent rows; few chunks know it badly, so that it is taken to be as much
    larger as Student's t is wider than the normal distribution. Rows that are all alike show none.
    """
    spread = float(rows.std())
    if not spread:
        return 1.0
    error, chunks = standard_error(rows, chunk)
    wider = t_quantile(confidence, chunks) / _z(confidence)
    return max(1.0, len(rows) * (wider * error / spread) ** 2)


def mean_interval(rows: np.ndarray, chunk: int, confidence: float) -> tuple[float, float]:
    """Student's t interval of the mean of rows (N,) in chunks of neighbors; open on both sides of too few chunks.

    `standard_error` says of what and why; too few are fewer than FEWEST_CHUNKS.
    """
    error, chunks = standard_error(rows, chunk)
    if chunks < FEWEST_CHUNKS:
        return -math.inf, math.inf
    margin, center = t_quantile(confidence, chunks) * error, float(rows.mean())
    return center - margin, center + margin


# ---- quantiles of runs, whose neighbors share the machine's mood ----


def block_length(runs: int) -> int:
    """How many consecutive runs are kept together: the cube root of all (Hall, Horowitz & Jing 1995)."""
    return max(1, round(runs ** (1 / 3)))


def quantile_interval(times: np.ndarray, share: float, confidence: float) -> tuple[float, float]:
    """Where the quantile of times (runs,), none negative, lies, whatever their distribution: two of the sorted times.

    By how many runs lie below the quantile (binomial; Hahn & Meeker 1991, section 5.2); runs that share the machine's
    mood count for fewer. Infinite above where so few runs do not reach beyond it.
    """
    from scipy.stats import binom

    runs, ordered = len(times), np.sort(times)
    effect = design_effect(times <= np.quantile(times, share), block_length(runs), confidence)
    worth = max(1, int(runs / effect))
    low, high = (int(end) for end in binom.ppf(((1 - confidence) / 2, (1 + confidence) / 2), worth, share))
    first, last = low * runs // worth, -(-(high + 1) * runs // worth)  # from 1, as ranks are
    return float(ordered[first - 1]) if first else 0.0, float(ordered[last - 1]) if last <= runs else math.inf


def bootstrap_ratios(pairs: np.ndarray, percentiles: Sequence[float], resamples: int, seed: int) -> np.ndarray:
    """Ratios (percentiles, resamples) of the percentiles of resampled pairs (runs, 2): the second by the first.

    A moving-block bootstrap (Künsch 1989) over whole pairs: a pair holds both runs, which shared the machine's mood,
    and blocks of `block_length` pairs keep moods that last longer.
    """
    runs, length = len(pairs), block_length(len(pairs))
    starts = np.random.default_rng(seed).integers(0, runs - length + 1, size=(resamples, -(-runs // length)))
    drawn = [_resampled(pairs, part, length, percentiles) for part in _parts(starts, runs)]
    return np.concatenate(drawn, axis=1)


def _parts(starts: np.ndarray, runs: int) -> list[np.ndarray]:
    """Resamples' starts (resamples, blocks) in parts of HELD pairs at most, or one resample."""
    return np.array_split(starts, min(len(starts), -(-len(starts) * runs // HELD)))


def _resampled(pairs: np.ndarray, starts: np.ndarray, length: int, percentiles: Sequence[float]) -> np.ndarray:
    """Ratios (percentiles, resamples) of resamples that blocks from these starts (resamples, blocks) make."""
    rows = (starts[:, :, None] + np.arange(length)).reshape(len(starts), -1)[:, : len(pairs)]  # (resamples, runs)
    first, second = (np.percentile(column[rows], percentiles, axis=1) for column in pairs.T)
    return second / first


def percentile_interval(draws: np.ndarray, confidence: float) -> np.ndarray:
    """The middle `confidence` of draws (..., resamples), by percentiles (Efron & Tibshirani 1993, 13.3): (..., 2)."""
    tail = (1 - confidence) / 2
    return np.moveaxis(np.quantile(draws, (tail, 1 - tail), axis=-1), 0, -1)


# ---- differences ----


def difference_margins(one: Span, other: Span) -> tuple[float, float]:
    """How far the difference one - other may lie below and above that of the values, each side's interval known.

    Square-and-add (MOVER: Zou & Donner 2008, Statistics in Medicine 27): each margin is the root of the summed squares
    of `one`'s on that side and `other`'s on the opposite one, as if the two were independent.
    """
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return below, above
