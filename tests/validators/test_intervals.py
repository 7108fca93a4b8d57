"""Intervals against scipy, against resampling one draw at a time, and against how often they cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest, quantile_test, ttest_1samp

from validators import intervals
from validators.intervals import (
    Span,
    block_length,
    bonett_price,
    bootstrap_ratios,
    design_effect,
    difference_margins,
    mean_interval,
    percentile_interval,
    quantile_interval,
    standard_error,
    t_quantile,
    wilson,
)

# --- shares


@pytest.mark.parametrize(("k", "n"), [(997, 1000), (0, 50), (50, 50), (25, 50), (1, 3)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_wilsons_interval_is_that_of_scipy(k: int, n: int, confidence: float) -> None:
    expected = binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert wilson(k, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def paired(both: int, base_alone: int, ours_alone: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    base = np.array([1] * both + [1] * base_alone + [0] * ours_alone + [0] * neither, bool)
    ours = np.array([1] * both + [0] * base_alone + [1] * ours_alone + [0] * neither, bool)
    return base, ours


def of_resampled_rows(base: np.ndarray, ours: np.ndarray, confidence: float, resamples: int) -> np.ndarray:
    """Draw row numbers with replacement, one resample at a time."""
    rng = np.random.default_rng(11)
    drawn = (rng.integers(0, len(base), len(base)) for _ in range(resamples))
    gains = [ours[rows].mean() - base[rows].mean() for rows in drawn]
    return np.quantile(gains, ((1 - confidence) / 2, (1 + confidence) / 2))


@pytest.mark.parametrize("counts", [(300, 30, 10, 60), (900, 25, 25, 50), (20, 60, 60, 60)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_among_many_rows_the_difference_lies_where_resampled_rows_say(
    counts: tuple[int, int, int, int], confidence: float
) -> None:
    base, ours = paired(*counts)
    ends = bonett_price(base, ours, confidence)
    assert np.allclose(ends, of_resampled_rows(base, ours, confidence, 10_000), atol=0.005)


def test_pairing_makes_the_interval_narrower_than_independent_rows_would() -> None:
    base, ours = paired(800, 10, 10, 180)
    low, high = bonett_price(base, ours, 0.95)
    independent = 2 * 1.96 * math.sqrt(2 * 0.81 * 0.19 / 1000)
    assert high - low < independent / 3


@pytest.mark.parametrize("rows", [30, 50, 400])
@pytest.mark.parametrize(("gained", "lost"), [(0.05, 0.08), (0.0, 0.02), (0.005, 0.03)])
def test_the_interval_covers_the_true_difference_at_least_as_often_as_it_says(
    rows: int, gained: float, lost: float
) -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(1000):
        drawn = rng.choice(4, size=rows, p=[0.2, gained, lost, 0.8 - gained - lost])  # neither, ours, base, both
        low, high = bonett_price(drawn >= 2, drawn % 2 == 1, 0.9)
        hits += low <= gained - lost <= high
    assert hits / 1000 >= 0.87
    if rows == 400:
        assert hits / 1000 <= 0.96


def test_few_rows_without_a_discordant_pair_prove_little() -> None:
    low, high = bonett_price(*paired(28, 0, 0, 2), 0.95)
    assert low == -high
    assert 0.05 < high < 0.15  # by the rule of three, up to a tenth may be lost
    assert bonett_price(*paired(2800, 0, 0, 200), 0.95)[1] < 0.001


# --- means of rows that go together


def correlated(n: int, seed: int, spread: float = 0.3) -> np.ndarray:
    """Differences (n,) whose neighbors go together."""
    rng = np.random.default_rng(seed)
    return np.convolve(rng.normal(size=n + 15), np.full(16, 0.25), "valid") * spread


@pytest.mark.parametrize(("rows", "confidence"), [(8, 0.95), (30, 0.8)])
def test_of_independent_rows_the_mean_lies_where_scipys_t_interval_says(rows: int, confidence: float) -> None:
    found = np.random.default_rng(3).normal(2, 5, rows)
    expected = ttest_1samp(found, 0).confidence_interval(confidence)
    assert mean_interval(found, 1, confidence) == pytest.approx((expected.low, expected.high))


def test_chunks_of_one_size_are_what_scipys_t_interval_takes_for_rows() -> None:
    found = correlated(640, 0)
    expected = ttest_1samp(found.reshape(10, 64).mean(axis=1), 0).confidence_interval(0.95)
    assert mean_interval(found, 64, 0.95) == pytest.approx((expected.low, expected.high))


def test_the_mean_lies_where_chunks_drawn_one_by_one_say() -> None:
    found = correlated(4_000, 0)
    rng = np.random.default_rng(1)
    parts = [found[start : start + 64] for start in range(0, 4_000, 64)]
    drawn = [np.concatenate([parts[n] for n in rng.integers(0, len(parts), len(parts))]).mean() for _ in range(2_000)]
    assert mean_interval(found, 64, 0.95) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.01)


def test_neighbors_that_go_together_widen_the_interval() -> None:
    found = correlated(4_000, 0)
    (narrow_low, narrow_high), (low, high) = (mean_interval(found, chunk, 0.95) for chunk in (1, 64))
    assert high - low > 2 * (narrow_high - narrow_low)


@pytest.mark.parametrize("rows", [8, 20, 640])
def test_of_few_chunks_the_interval_covers_the_truth_as_often_as_it_says(rows: int) -> None:
    rng, hits = np.random.default_rng(2), 0
    for _ in range(500):
        texts = np.repeat(rng.normal(size=-(-rows // 64)), 64)[:rows] if rows > 64 else 0.0
        low, high = mean_interval(rng.normal(size=rows) + texts, 64, 0.9)
        hits += low <= 0 <= high
    assert 0.86 <= hits / 500 <= 0.94


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_of_a_handful_of_rows_nothing_is_known(rows: int) -> None:
    assert mean_interval(np.ones(rows), 64, 0.95) == (-math.inf, math.inf)
    assert standard_error(np.ones(rows), 64) == ((math.inf if rows == 1 else 0), rows)


def test_chunks_that_are_too_few_are_cut() -> None:
    assert standard_error(np.arange(64.0), 64)[1] == intervals.FEWEST_CHUNKS
    assert standard_error(np.arange(6_400.0), 64)[1] == 100


def test_the_design_effect_is_how_many_rows_go_together() -> None:
    rng = np.random.default_rng(0)
    alone, together = rng.random(64 * 400) < 0.3, np.repeat(rng.random(400 * 16) < 0.3, 4)
    assert design_effect(alone, 64, 0.95) == pytest.approx(1, abs=0.15)
    assert design_effect(together, 64, 0.95) == pytest.approx(4, rel=0.2)
    assert design_effect(np.ones(100, bool), 64, 0.95) == 1


def test_of_few_chunks_students_t_is_wider_than_the_normal_distribution() -> None:
    assert [t_quantile(0.95, chunks) for chunks in (2, 9)] == pytest.approx([12.706, 2.306], abs=1e-3)
    assert t_quantile(0.95, 10**6) == pytest.approx(1.95997, abs=1e-4)


# --- quantiles of runs


def moody(runs: int, seed: int) -> np.ndarray:
    """Times (runs, 2) with a slowly changing mood shared by both and a little noise of each."""
    rng = np.random.default_rng(seed)
    mood = np.zeros(runs)
    for i in range(1, runs):
        mood[i] = 0.7 * mood[i - 1] + rng.normal(scale=0.1)
    return 10 * np.exp(mood)[:, None] * np.exp(rng.normal(scale=0.05, size=(runs, 2)))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_of_independent_runs_a_quantile_lies_at_the_ranks_that_scipy_names(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "design_effect", lambda *rows_chunk_confidence: 1.0)
    for runs in range(10, 300):
        expected = quantile_test(np.arange(1.0, runs + 1), q=0, p=share).confidence_interval(0.95)
        ends = np.nan_to_num(expected.low, nan=0.0), np.nan_to_num(expected.high, nan=math.inf)
        assert quantile_interval(np.arange(1.0, runs + 1), share, 0.95) == ends, runs


@pytest.mark.parametrize("runs", [10, 60, 200, 1000])
def test_a_percentile_lies_where_the_sorted_runs_say_as_often_as_promised(runs: int) -> None:
    """Independent times with an exponential tail; a bootstrap would miss the 99th percentile in most of few runs."""
    rng, shares = np.random.default_rng(7), (0.5, 0.9, 0.99)
    hits = np.zeros(3)
    for _ in range(300):
        times = rng.exponential(size=runs)
        ends = [quantile_interval(times, share, 0.9) for share in shares]
        hits += [low <= -np.log(1 - share) <= high for share, (low, high) in zip(shares, ends, strict=True)]
    assert (hits / 300 >= 0.87).all()


def test_a_percentile_is_open_above_where_no_run_reaches() -> None:
    times = np.random.default_rng(0).permutation(np.arange(1.0, 201))
    assert quantile_interval(times, 0.99, 0.95)[1] == np.inf


def test_runs_that_share_a_mood_count_for_fewer() -> None:
    together = moody(400, seed=3)[:, 0]
    (low, high), (close, near) = (
        quantile_interval(times, 0.5, 0.95) for times in (together, np.random.default_rng(0).permutation(together))
    )
    assert high - low > 1.3 * (near - close)


def test_equal_times_are_no_special_case() -> None:
    assert quantile_interval(np.full(500, 3.0), 0.99, 0.95) == (3.0, 3.0)
    assert (bootstrap_ratios(np.full((50, 2), 3.0), (50, 90), 20, 0) == 1).all()


def of_blocks_laid_end_to_end(times: np.ndarray, percentiles: tuple[int, ...], resamples: int) -> np.ndarray:
    """Moving blocks of round(runs ** (1/3)) rounds, one resample at a time; (percentiles, 2) ends at 90 %."""
    rng, runs = np.random.default_rng(99), len(times)
    length = round(runs ** (1 / 3))
    ratios = []
    for _ in range(resamples):
        rows: list[int] = []
        while len(rows) < runs:
            start = int(rng.integers(0, runs - length + 1))
            rows += range(start, start + length)
        drawn = np.sort(times[rows[:runs]], axis=0)
        ratios.append([np.percentile(drawn[:, 1], p) / np.percentile(drawn[:, 0], p) for p in percentiles])
    return np.quantile(ratios, (0.05, 0.95), axis=0).T


def test_the_bootstrap_is_that_of_blocks_laid_end_to_end() -> None:
    times, percentiles = moody(500, seed=0) * [1, 0.8], (50, 90, 99)
    ends = percentile_interval(bootstrap_ratios(times, percentiles, 2_000, 0), 0.9)
    assert np.allclose(ends, of_blocks_laid_end_to_end(times, percentiles, 1_000), rtol=0.02)


def test_parts_change_nothing_and_no_more_pairs_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = moody(50, seed=0)
    whole = bootstrap_ratios(times, (50, 90), 300, 0)
    resampled, held = intervals._resampled, list[int]()
    monkeypatch.setattr(intervals, "HELD", 1_000)
    monkeypatch.setattr(
        intervals, "_resampled", lambda pairs, part, *more: held.append(len(part)) or resampled(pairs, part, *more)
    )
    assert np.array_equal(bootstrap_ratios(times, (50, 90), 300, 0), whole)
    assert sum(held) == 300
    assert max(held) <= 1_000 / 50


def test_blocks_are_as_long_as_the_cube_root_of_the_runs() -> None:
    assert [block_length(runs) for runs in (1, 10, 200, 1000)] == [1, 2, 6, 10]


# --- differences


def test_the_margins_of_a_difference_cover_it_as_often_as_those_they_are_made_of() -> None:
    rng = np.random.default_rng(0)
    ones, others = rng.normal(11.0, 0.4, 4000), rng.normal(10.0, 0.3, 4000)
    inside = 0
    for one, other in zip(ones.tolist(), others.tolist(), strict=True):
        wide, narrow = 1.96 * 0.4, 1.96 * 0.3
        margins = difference_margins(Span(one - wide, one, one + wide), Span(other - narrow, other, other + narrow))
        inside += one - other - margins[0] <= 1 <= one - other + margins[1]
    assert 0.94 < inside / 4000 < 0.96


def test_a_margin_comes_from_the_opposite_side_of_what_is_taken_off() -> None:
    assert difference_margins(Span(7, 10, 11), Span(1, 4, 8)) == (5, math.hypot(1, 3))
