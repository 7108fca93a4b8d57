"""What the benchmark of rounding measures: exports with and without samples, each against the model's own fp32."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_tables
import pytest
import rounding
from bench import Bench
from results import read
from suites import SUITES


@pytest.fixture
def saved(tiny_suite: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dense model as the comparison saves it."""
    from arms import ARMS, DENSE

    suite = tiny_suite()
    monkeypatch.setitem(SUITES, "tiny", suite)
    Bench(suite, 0, 0.0, tmp_path / "saved", 1e-4, kept=(DENSE.name,)).run(ARMS["dense"], 1.0, 1e-4)
    return tmp_path / "saved" / "tiny-dense-1.0-0"


def test_each_precision_is_made_both_ways_once_and_the_table_tells_them_side_by_side(
    saved: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rounding.jsonl"
    asked = argparse.Namespace(models=[saved], out=out, precisions=["int4", "int8-static"], limit=12, threads=1)
    rounding.measure(asked)
    rows = read(out)
    assert [(row["precision"], row["by_data"]) for row in rows] == [
        ("int4", False),
        ("int4", True),
        ("int8-static", True),
    ]
    assert all(0 < row["rmse"] < 1 for row in rows)
    assert all((12 * row["agreement"]) % 1 == pytest.approx(0) for row in rows)
    rounding.measure(asked)
    assert len(read(out)) == 3
    *_, int4, static = export_tables.rounding(rows)
    assert int4.count(" - ") == 0
    assert static.count(" - ") == 3


def test_a_suite_is_the_longest_that_a_name_begins_with() -> None:
    assert rounding.suite_of(Path("x/cifar10-5000-dense-1.0-0")).name == "cifar10-5000"
    assert rounding.suite_of(Path("x/cifar10-jactus-0.5-1")).name == "cifar10"
