"""What whole exports cost, as budgets ask it: the same figures as the checks', without an evaluation of any output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.recipe import ValidateSection
from validators.base import Evaluation, Finding
from validators.end_to_end import EndToEnd
from validators.latency import Latency
from validators.memory import Memory

VALIDATION = ValidateSection(threads=1, sequence_length=6, runs=10)


@pytest.fixture
def whole(runtimes: None, export: Callable[..., Path], evaluation: Evaluation, tmp_path: Path) -> EndToEnd:
    dense = export(tmp_path / "dense", np.ones((900, 8), np.float32), np.ones((8, 4), np.float32))
    return EndToEnd("tiny", evaluation.task, evaluation.batches, VALIDATION, dense)


def test_models_are_measured_on_one_shape(whole: EndToEnd) -> None:
    assert {name: array.shape for name, array in whole.inputs().items()}["input_ids"] == (1, 6)


@pytest.mark.parametrize("quantity", ["latency", "memory"])
def test_a_larger_export_costs_more(
    whole: EndToEnd, export: Callable[..., Path], tmp_path: Path, quantity: str
) -> None:
    wide = np.ones((2_000, 2_000), np.float32)  # 16 MB
    larger = export(tmp_path / "larger", np.ones((900, 2_000), np.float32), wide, wide, np.ones((2_000, 4), np.float32))
    found = whole.cost(quantity, larger)
    assert found.dense > 0
    assert found.ratio > 1.5
    assert whole.size(larger) > 32e6


def test_latency_is_the_median_and_memory_the_peak_over_the_floor(
    whole: EndToEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    details = {
        "dense_peak": 140.0,
        "dense_floor": 40.0,
        "candidate_peak": 100.0,
        "candidate_floor": 50.0,
        "dense_min": 7.0,
    }

    def found(self: Any, *_: Any) -> tuple[Finding, ...]:
        assert (self.batch_size, self.sequence_length) == (1, 6)
        return (Finding("any", "ms", "lower", 8.0, 6.0, details=details), Finding("other", "ms", "lower", 1.0, 9.0))

    monkeypatch.setattr(Latency, "run", found)
    monkeypatch.setattr(Memory, "run", found)
    assert whole.cost("latency", whole.dense) == (7.0, 0.75)
    assert whole.cost("memory", whole.dense) == (100.0, 0.5)
