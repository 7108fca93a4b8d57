"""Times of layers: monotone curves between the ranks timed, and a cache that spares the second run the work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from compressor import progress, timings
from compressor.timings import Cache, Curve, Site, curves, ladder

WIDE, CONVOLUTION = Site(64, 32, (1, 8, 32), True), Site(16, 27, (1, 3, 8, 8), True, (3, 3), (1, 1), (1, 1), (1,) * 4)


class Counting:
    """A timer whose layers take 10 microseconds and their factors 1 a rank; it notes what it was asked."""

    def __init__(self, label: str = "fake 1 | 1 threads") -> None:
        self.label, self.asked = label, list[tuple[Site, tuple[int, ...]]]()

    def __call__(self, site: Site, ranks: Sequence[int]) -> list[float]:
        self.asked.append((site, tuple(ranks)))
        return [10.0, *map(float, ranks)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "timings.json"


def test_a_second_run_times_nothing(path: Path) -> None:
    ranks = {WIDE: [4, 8], CONVOLUTION: [2]}
    first, second = Counting(), Counting()
    found = curves(ranks, first, "some cpu", path)
    assert curves(ranks, second, "some cpu", path) == found
    assert first.asked == [(WIDE, (4, 8)), (CONVOLUTION, (2,))]
    assert second.asked == []
    assert found[WIDE] == Curve((4, 8), (4.0, 8.0), 10.0)


@pytest.mark.parametrize("changed", ["label", "cpu", "inputs", "bias", "kernel"])
def test_what_times_depend_on_is_timed_anew(path: Path, changed: str) -> None:
    curves({CONVOLUTION: [2]}, Counting(), "some cpu", path)
    again = Counting("fake 2 | 1 threads" if changed == "label" else "fake 1 | 1 threads")
    other = {"inputs": Site(16, 27, (2, 3, 8, 8), True, (3, 3), (1, 1), (1, 1), (1,) * 4)}
    other["bias"] = Site(16, 27, (1, 3, 8, 8), False, (3, 3), (1, 1), (1, 1), (1,) * 4)
    other["kernel"] = Site(16, 27, (1, 3, 8, 8), True, (3, 3), (2, 2), (1, 1), (1,) * 4)
    curves({other.get(changed, CONVOLUTION): [2]}, again, "other cpu" if changed == "cpu" else "some cpu", path)
    assert len(again.asked) == 1


def test_a_missing_rank_times_the_whole_shape_since_only_turns_compare(path: Path) -> None:
    curves({WIDE: [4, 8]}, Counting(), "cpu", path)
    again = Counting()
    curves({WIDE: [4, 12]}, again, "cpu", path)
    curves({WIDE: [12]}, again, "cpu", path)
    assert again.asked == [(WIDE, (4, 12))]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"schema_version": 9, "microseconds": {}}', '{"schema_version": 1, "microseconds": {"a": {"4": -1}}}'],
)
def test_a_broken_cache_is_set_aside_and_said(path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path.parent.mkdir()
    path.write_text(text)
    progress.set_level("normal")
    try:
        timer = Counting()
        curves({WIDE: [4]}, timer, "cpu", path)
    finally:
        progress.set_level("off")
    assert len(timer.asked) == 1
    assert path.with_name("timings.json.broken").read_text() == text
    assert "set aside as timings.json.broken" in capsys.readouterr().err
    assert len(json.loads(path.read_text())["microseconds"]) == 1


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    progress.set_level("normal")
    try:
        found = curves({WIDE: [4]}, Counting(), "cpu", tmp_path / "file" / "timings.json")
    finally:
        progress.set_level("off")
    assert found[WIDE].dense == 10.0
    assert "cannot be kept" in capsys.readouterr().err


def test_two_caches_of_one_file_keep_each_others_entries(path: Path) -> None:
    Cache(path).add("one", {"dense": 1.0})
    Cache(path).add("two", {"dense": 2.0})
    assert Cache(path).read() == {"one": {"dense": 1.0}, "two": {"dense": 2.0}}
    assert [file.name for file in path.parent.iterdir() if not file.name.startswith(".")] == ["timings.json"]


def test_the_cache_lies_where_the_system_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert timings.default_path() == tmp_path / "rankfold" / "timings.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert timings.default_path() == tmp_path / ".cache" / "rankfold" / "timings.json"


def test_a_curve_never_falls_and_meets_its_means() -> None:
    curve = Curve((8, 16, 24, 32), (1.0, 4.0, 2.0, 6.0), 9.0)
    assert [curve.at(rank) for rank in (8, 16, 24, 32)] == pytest.approx([1, 3, 3, 6])  # 4 and 2 share their mean
    assert curve.at(28) == pytest.approx(4.5)
    assert curve.at(4) == 1
    assert curve.at(40) == 6
    assert curve.at(None) == 9


@pytest.mark.parametrize("seed", range(5))
def test_no_rising_curve_is_nearer_to_the_times(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = rng.exponential(size=6) + np.arange(6) / 4
    curve = Curve(tuple(range(1, 7)), tuple(times), 9.0)
    assert np.all(np.diff(curve.rising) >= -1e-12)
    ours = np.sum((np.asarray(curve.rising) - times) ** 2)
    for _ in range(500):
        other = np.sort(np.asarray(curve.rising) + 0.1 * rng.normal(size=6))
        assert ours <= np.sum((other - times) ** 2) + 1e-12


@pytest.mark.parametrize(("limit", "multiple_of"), [(2, 1), (3, 8), (9, 8), (192, 8), (308, 8), (308, 1), (2000, 16)])
def test_a_ladder_has_both_ends_and_a_dozen_multiples_at_most(limit: int, multiple_of: int) -> None:
    ranks = ladder(limit, multiple_of)
    assert 1 <= len(ranks) <= timings.POINTS
    assert ranks == sorted(set(ranks))
    assert all(1 <= rank < limit for rank in ranks)
    if limit > multiple_of:
        assert (ranks[0], ranks[-1]) == (multiple_of, (limit - 1) // multiple_of * multiple_of)


def test_every_site_has_a_name_of_its_own() -> None:
    assert str(WIDE) == "64x32 on 1x8x32 with bias"
    assert str(CONVOLUTION) == "16x27 on 1x3x8x8 with bias, 3x3 by 1x1 over 1x1 in 1x1x1x1"
