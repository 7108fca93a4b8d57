"""A finished run, judged by other gates, measured otherwise, with data that lies elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compressor import proving, recipe, registry
from compressor.artifact import MANIFEST
from compressor.cli import app
from compressor.errors import RecipeError
from validators.remarks import remarks


@pytest.fixture
def run(tiny_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was moved, data and all; its proof takes no time: only sizes and accuracy are measured."""
    copied = shutil.copytree(tiny_run[1], tmp_path / "run")
    shutil.copytree(tiny_run[0].parent / "data", tmp_path / "there")
    manifest = json.loads((copied / MANIFEST).read_text())
    for split in ("train", "evaluation"):
        manifest["recipe"]["data"][split]["path"] = "/gone/data"
    manifest["recipe"]["gates"] = {"size": {"type": "percent-max-degradation", "value": 1000, "unsure": "fail"}}
    (copied / MANIFEST).write_text(json.dumps(manifest))
    checks = {"size": "validators.size:Size", "accuracy": "validators.accuracy:Accuracy"}
    monkeypatch.setattr(registry, "TABLES", registry.TABLES | {"checks": checks})
    return copied


def test_a_run_is_measured_with_data_that_lies_elsewhere_and_stays_the_runs_own_proof(run: Path) -> None:
    report = proving.validate(run, settings=[f"data.evaluation.path={run.parent / 'there'}"])
    assert report.verdict == "pass"
    assert report.context["judged_otherwise"] == []
    assert proving.measured(run) is not None


def test_other_gates_judge_and_are_told_and_prove_nothing_for_the_run(run: Path) -> None:
    there = f"data.evaluation.path={run.parent / 'there'}"
    settings = [there, "gates.size={type: threshold, value: 0.001}", "validate.repeats=7"]
    report = proving.validate(run, settings=settings)
    assert report.verdict == "fail"
    assert report.context["judged_otherwise"] == ["gates.size", "validate.repeats"]
    (told,) = (said for said in remarks(report.exports, report.context) if "Judged otherwise" in said)
    assert told.endswith("gates.size, validate.repeats.")
    assert proving.measured(run) is None
    assert json.loads((run / MANIFEST).read_text())["recipe"]["gates"]["size"]["value"] == 1000


def test_what_a_run_was_made_with_stays(run: Path) -> None:
    made = json.loads((run / MANIFEST).read_text())["recipe"]
    asked = ["seed=3", "data.evaluation.text=other", "gates.size.value=x", "gates.sise.value=1"]
    with pytest.raises(RecipeError) as caught:
        recipe.judged_by(made, asked, run)
    message = str(caught.value)
    assert "--set seed=3: seed: cannot be changed in what is made already; gates.*, validate.*" in message
    assert "--set data.evaluation.text=other: data.evaluation.text: cannot be changed" in message
    assert "--set gates.size.value=x: gates.size.value: " in message
    assert "--set gates.sise.value=1: gates.sise" in message


def test_a_path_that_leads_nowhere_is_named(run: Path) -> None:
    made = json.loads((run / MANIFEST).read_text())["recipe"]
    with pytest.raises(RecipeError, match=r"--set data\.evaluation\.path=\./nowhere: data\.evaluation\.path: "):
        recipe.judged_by(made, ["data.evaluation.path=./nowhere"], run)


def test_the_command_line_hands_settings_on(run: Path) -> None:
    found = CliRunner().invoke(app, ["validate", str(run), "--set", "seed=3"])
    assert found.exit_code == 2
    assert "seed: cannot be changed in what is made already" in found.output
