from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compressor.recipe import Gate
from exporters.base import Session
from validators import latency, wording
from validators.base import Subject
from validators.latency import Latency, quantile_interval, ratio_intervals
from validators.ways import BOUND, COPIED, PLAIN, REPLAYED


def noisy(runs: int, ratio: float, seed: int) -> np.ndarray:
    """Times (runs, 2) with a slowly changing mood shared by both and a little noise of each."""
    rng = np.random.default_rng(seed)
    mood = np.zeros(runs)
    for i in range(1, runs):
        mood[i] = 0.7 * mood[i - 1] + rng.normal(scale=0.1)
    own = np.exp(rng.normal(scale=0.05, size=(runs, 2)))
    return np.exp(mood)[:, None] * own * [10.0, 10.0 * ratio]


def brute_force(times: np.ndarray, resamples: int) -> np.ndarray:
    """Moving blocks of round(runs ** (1/3)) rounds laid end to end, one resample at a time; (3, 2) ends at 90 %."""
    rng, runs = np.random.default_rng(99), len(times)
    length = round(runs ** (1 / 3))
    ratios = []
    for _ in range(resamples):
        rows: list[int] = []
        while len(rows) < runs:
            start = int(rng.integers(0, runs - length + 1))
            rows += range(start, start + length)
        drawn = np.sort(times[rows[:runs]], axis=0)
        ratios.append([np.percentile(drawn[:, 1], p) / np.percentile(drawn[:, 0], p) for p in (50, 90, 99)])
    return np.quantile(ratios, (0.05, 0.95), axis=0).T


def test_the_intervals_are_those_of_blocks_laid_end_to_end():
    times = noisy(500, 0.8, seed=0)
    assert np.allclose(ratio_intervals(times, 0.9, 2_000, 0), brute_force(times, 1_000), rtol=0.02)


def test_chunks_change_nothing_and_no_more_rounds_are_held_at_once(monkeypatch: pytest.MonkeyPatch):
    times = noisy(50, 0.8, seed=0)
    whole = ratio_intervals(times, 0.9, 300, 0)
    drawn, held = latency._drawn, list[int]()
    monkeypatch.setattr(latency, "CHUNK", 1_000)
    monkeypatch.setattr(
        latency, "_drawn", lambda times, part, *more: held.append(len(part)) or drawn(times, part, *more)
    )
    assert np.array_equal(ratio_intervals(times, 0.9, 300, 0), whole)
    assert sum(held) == 300
    assert max(held) <= 1_000 / 50


def test_the_interval_of_the_median_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(120):
        low, high = ratio_intervals(noisy(100, 0.8, seed), 0.9, 300, seed)[0]
        hits += low <= 0.8 <= high
    assert 0.82 <= hits / 120 <= 1


def test_a_mood_shared_by_both_hardly_widens_the_interval():
    times = noisy(200, 0.8, seed=1)
    low, high = ratio_intervals(times, 0.95, 2_000, 0)[0]
    rng = np.random.default_rng(0)
    apart = np.column_stack([times[:, 0], rng.permutation(times[:, 1])])  # pairs torn apart
    torn_low, torn_high = ratio_intervals(apart, 0.95, 2_000, 0)[0]
    assert high - low < torn_high - torn_low


def test_equal_times_are_no_special_case():
    assert ratio_intervals(np.full((500, 2), 3.0), 0.95, 50, 0).tolist() == [[1.0, 1.0]] * 3
    assert quantile_interval(np.full(500, 3.0), 0.99, 0.95) == (3.0, 3.0)


@pytest.mark.parametrize(("runs", "known"), [(9, 0), (10, 1), (49, 1), (50, 2), (499, 2), (500, 3)])
def test_of_fewer_runs_than_five_lie_beyond_it_a_percentile_is_open_and_its_gate_unsure(runs: int, known: int):
    found = Latency(resamples=50)._findings(noisy(runs, 0.5, seed=0))
    assert [f.details["runs_needed"] for f in found] == [10, 50, 500]
    verdicts = [f.judged(Gate(type="percent-max-degradation", value=50)).verdict for f in found]
    assert verdicts == ["pass"] * known + ["unsure"] * (3 - known)
    assert all(f.interval == (0, np.inf) for f in found[known:])


@pytest.mark.parametrize("runs", [10, 60, 200, 1000])
def test_a_percentile_lies_where_the_sorted_runs_say_as_often_as_promised(runs: int):
    """Independent times with an exponential tail; a bootstrap would miss the 99th percentile in most of few runs."""
    rng, shares = np.random.default_rng(7), (0.5, 0.9, 0.99)
    hits = np.zeros(3)
    for _ in range(300):
        times = rng.exponential(size=runs)
        ends = [quantile_interval(times, share, 0.9) for share in shares]
        hits += [low <= -np.log(1 - share) <= high for share, (low, high) in zip(shares, ends, strict=True)]
    assert (hits / 300 >= 0.87).all()


def test_a_percentile_is_open_above_where_no_run_reaches():
    times = np.arange(1.0, 201)
    assert quantile_interval(np.random.default_rng(0).permutation(times), 0.99, 0.95)[1] == np.inf
    low, high = quantile_interval(np.random.default_rng(0).permutation(times), 0.5, 0.95)
    assert (low, high) == pytest.approx((86, 115), abs=8)  # ranks of a binomial of 200 halves


def test_runs_that_share_a_mood_count_for_fewer():
    moody = noisy(400, 1.0, seed=3)[:, 0]
    (low, high), (close, near) = (
        quantile_interval(times, 0.5, 0.95) for times in (moody, np.random.default_rng(0).permutation(moody))
    )
    assert high - low > 1.3 * (near - close)


def test_percentiles_are_those_of_the_childs_times(pair: tuple[Subject, Subject], monkeypatch: pytest.MonkeyPatch):
    times = noisy(200, 0.5, seed=2)
    answer = {"nanoseconds": np.rint(times * 1e6).tolist(), "way": PLAIN}
    monkeypatch.setattr(latency, "ask", lambda *args, **knobs: answer)
    found = Latency(confidence=0.9).run(*pair)
    assert [f.quantity for f in found] == ["latency_p50", "latency_p90", "latency_p99"]
    assert "cuda_graphs" not in found[0].details
    assert found[0].dense == pytest.approx(np.median(times[:, 0]), rel=1e-5)
    assert found[1].candidate == pytest.approx(np.percentile(times[:, 1], 90), rel=1e-5)
    assert found[0].interval is not None
    assert found[0].interval[0] < found[0].dense * 0.5 < found[0].interval[1]
    assert found[0].judged(Gate(type="percent-min-improvement", value=30)).verdict == "pass"
    assert found[0].judged(Gate(type="percent-min-improvement", value=70)).verdict == "fail"
    assert found[0].judged(Gate(type="percent-min-improvement", value=50)).verdict == "unsure"
    assert found[0].details["runs"] == 200
    assert found[0].details["candidate_min"] == pytest.approx(times[:, 1].min(), rel=1e-5)


def test_an_export_beside_itself_is_neither_better_nor_worse(pair: tuple[Subject, Subject]):
    p50, *_ = Latency(runs=40, warmup=3, sequence_length=32).run(pair[0], pair[0])
    assert p50.interval is not None
    assert p50.interval[0] < p50.interval[1]
    assert p50.details["threads"] == 1
    assert 0 < p50.details["dense_min"] <= p50.dense


@pytest.mark.parametrize(("way", "kept", "graphs"), [(COPIED, 0, 0), (BOUND, 1, 0), (REPLAYED, 1, 1)])
def test_on_a_gpu_the_details_say_in_numbers_which_way_was_timed(
    pair: tuple[Subject, Subject], monkeypatch: pytest.MonkeyPatch, way: str, kept: int, graphs: int
):
    on_gpu = [replace(subject, session=Session("cuda")) for subject in pair]
    answer = {"nanoseconds": np.rint(noisy(20, 0.5, seed=2) * 1e6).tolist(), "way": way}
    monkeypatch.setattr(latency, "ask", lambda *args, **knobs: answer)
    details = Latency().run(*on_gpu)[0].details
    assert (details["kept_on_gpu"], details["cuda_graphs"]) == (kept, graphs)
    assert all(wording.detail(value) for value in details.values())  # as the report writes them
