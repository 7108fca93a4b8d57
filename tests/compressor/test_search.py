"""`plan.budget: auto` end to end on a tiny model: trials, resumption, what stands in the folder, and every way to fail."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor import pipeline, recipe, search
from compressor.artifact import SEARCH, TRIALS, Artifact, Run, verify
from compressor.errors import ArtifactError, BudgetError, GateError, RecipeError

AUTO = "plan={budget: auto, multiple_of: 4}"


@pytest.fixture(scope="module")
def task(tiny_task: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of seconds, not to be changed."""
    return tiny_task(tmp_path_factory.mktemp("search"))


def asked(task: Path, *settings: str) -> recipe.Recipe:
    return recipe.read(task, [AUTO, *settings])


@pytest.fixture(scope="module")
def found(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search whose gates all hold."""
    out = tmp_path_factory.mktemp("runs") / "auto"
    assert pipeline.run(asked(task), out).verdict == "pass"
    return out


def test_x(found: Path) -> None:
    print((found / SEARCH).read_text()[:3000])
    print(sorted(p.name for p in found.rglob("*"))[:100])
