from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compressor.recipe import Gate
from exporters.base import Session
from validators import latency, wording
from validators.base import Subject
from validators.latency import Latency, ratio_intervals
from validators.timed_calls import BOUND, COPIED, PLAIN, REPLAYED


def noisy(runs: int, ratio: float, seed: int) -> np.ndarray:
    """Times (runs, 2) with a slowly changing mood shared by both and a little noise of each."""
    rng = np.random.default_rng(seed)
    mood = np.zeros(runs)
    for i in range(1, runs):
        mood[i] = 0.7 * mood[i - 1] + rng.normal(scale=0.1)
    own = np.exp(rng.normal(scale=0.05, size=(runs, 2)))
    return np.exp(mood)[:, None] * own * [10.0, 10.0 * ratio]


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


@pytest.mark.parametrize(("runs", "known"), [(9, 0), (10, 1), (49, 1), (50, 2), (499, 2), (500, 3)])
def test_of_fewer_runs_than_five_lie_beyond_it_a_percentile_is_open_and_its_gate_unsure(runs: int, known: int):
    found = Latency(resamples=50)._findings(noisy(runs, 0.5, seed=0))
    assert [f.details["runs_needed"] for f in found] == [10, 50, 500]
    verdicts = [f.judged(Gate(type="percent-max-degradation", value=50)).verdict for f in found]
    assert verdicts == ["pass"] * known + ["unsure"] * (3 - known)
    assert all(f.interval == (0, np.inf) for f in found[known:])


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
