"""The benchmarks' modules, which import each other by name, and a suite of seconds without real data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def tiny_suite(
    tiny_task: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """A suite on a random BERT of two blocks and rows that it can learn; fields can be given."""
    import suites

    from compressor.recipe import Calibration, Source

    tiny_task(tmp_path)
    monkeypatch.setenv("RANKFOLD_MODELS", str(tmp_path))
    monkeypatch.setenv("RANKFOLD_DATA", str(tmp_path))

    def build(**fields: Any) -> suites.Suite:
        defaults: dict[str, Any] = {
            "train": Source(path="data"),
            "evaluation": Source(path="data", split="test"),
            "epochs": 0.2,
            "rates": {key: rates[:1] for key, rates in suites.TEXT.items()},
            "budgets": (0.5,),
            "seeds": (0,),
            "max_length": 8,
            "batch_size": 8,
            "calibration": Calibration(samples=16, batch_size=8),
        }
        return suites.Suite("tiny", "model", "text-classification", **(defaults | fields))

    return build
