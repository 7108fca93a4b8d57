"""What a run that was cut off, damaged, or begun with other things does when it is to go on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from compressor import exporting, opening, pipeline
from compressor.artifact import Artifact, verify
from compressor.errors import (
    ArtifactError,
    DataError,
    DependencyError,
    ExportError,
    InputError,
    IntegrityError,
    ModelError,
)
from compressor.recipe import Recipe, read
from exporters.onnx.runtime import CUDA

CLASSIFIER = "classifier"  # no target: it is the head


@pytest.fixture
def copied(tiny_run: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(tiny_run[1], tmp_path / "run"))


@pytest.fixture
def recipe(tiny_task: Callable[[Path], Path], tmp_path: Path) -> Path:
    return tiny_task(tmp_path)


def test_where_an_export_is_the_dense_ones_are_too(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure in between would else be one for good: what is there is not made again."""
    for folder in ("exports", "baseline/onnx-fp32"):
        shutil.rmtree(copied / folder)
    artifact, write = Artifact.open(copied), exporting.write
    recipe = Recipe.model_validate(artifact.manifest["recipe"])

    def fail(exporter: Any, model: Any, example: Any, path: Path, *more: Any) -> Any:
        if path.parent.name == "baseline":
            raise ExportError("no memory for the larger one")
        return write(exporter, model, example, path, *more)

    monkeypatch.setattr(exporting, "write", fail)
    with pytest.raises(ExportError, match="no memory"):
        exporting.export_all(artifact, recipe)
    assert not list(copied.glob("exports/*"))
    monkeypatch.undo()
    exporting.export_all(Artifact.open(copied), recipe)
    assert (copied / "baseline" / "onnx-fp32" / "model.onnx").is_file()
    assert [folder.name for folder in (copied / "exports").iterdir()] == ["onnx-fp32"]
    verify(copied)


@pytest.mark.parametrize("damaged", ["model.safetensors", "baseline/model.safetensors"])
def test_damaged_weights_are_neither_exported_nor_sealed(copied: Path, damaged: str) -> None:
    weights = bytearray((copied / damaged).read_bytes())
    weights[-1] ^= 1
    (copied / damaged).write_bytes(bytes(weights))
    with pytest.raises(ArtifactError, match=r"model\.safetensors has been changed since it was made") as caught:
        exporting.export(copied, precision="int8-weights")
    assert caught.value.exit_code == 2
    assert not (copied / "exports" / "onnx-int8-weights").exists()
    with pytest.raises(IntegrityError, match=damaged.replace(".", r"\.")):
        verify(copied)


def test_what_a_killed_export_left_is_removed_by_the_next_one(copied: Path) -> None:
    for left in ("exports/.onnx-int8", "exports/..onnx-int8.partial", "baseline/.onnx-fp32"):
        (copied / left).mkdir()
        (copied / left / "model.onnx").write_text("half")
    verify(copied)
    exporting.export(copied, precision="int8-weights")
    assert not [*copied.glob("exports/.*"), *copied.glob("baseline/.*")]
    verify(copied)


def test_notes_in_a_run_folder_are_not_overwritten_with_it(recipe: Path, tiny_run: tuple[Path, Path]) -> None:
    out = recipe.parent / "run"
    opening.open_run(read(recipe), out, resume=False, overwrite=False)
    (out / "my-notes.md").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds 'my-notes\.md' of no run, which --overwrite would remove with it"):
        opening.open_run(read(recipe), out, resume=False, overwrite=True)
    assert (out / "my-notes.md").read_text() == "mine"


def test_a_run_does_not_go_on_with_other_weights_or_another_plan(recipe: Path, tiny_run: tuple[Path, Path]) -> None:
    plan, out = recipe.parent / "plan.json", recipe.parent / "run"
    shutil.copy(tiny_run[1] / "plan.json", plan)
    asked = read(recipe, [f"plan.path={plan}"])
    opening.open_run(asked, out, resume=False, overwrite=False)
    opening.open_run(asked, out, resume=True, overwrite=False)
    whole = plan.read_text()
    plan.write_text(whole.replace('"rank": ', '"rank":  ', 1))
    with pytest.raises(
        ArtifactError, match=r"was begun with another plan\.path: what is finished there was made of that"
    ):
        opening.open_run(asked, out, resume=True, overwrite=False)
    plan.write_text(whole)
    weights = recipe.parent / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match=r"was begun with another model\.path"):
        opening.open_run(asked, out, resume=True, overwrite=False)
    opening.open_run(asked, out, resume=False, overwrite=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: plan["layers"][0].update(name=CLASSIFIER, out_features=3, in_features=32, rank=1), "leave out"),
        (lambda plan: plan["layers"].clear(), "lists no layers"),
    ],
)
def test_a_plan_that_cannot_be_replayed_is_told_before_any_work(
    recipe: Path, tiny_run: tuple[Path, Path], change: Callable[[Any], None], said: str
) -> None:
    plan = json.loads((tiny_run[1] / "plan.json").read_text())
    change(plan)
    (recipe.parent / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match=said):
        pipeline.plan(read(recipe, [f"plan.path={recipe.parent / 'plan.json'}"]), recipe.parent / "run")
    assert not (recipe.parent / "run" / "baseline").exists()


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA")
def test_a_device_that_is_not_there_is_told_before_any_work(recipe: Path) -> None:
    for export in ("onnx", "torch-export"):
        asked = read(recipe, ["validate.device=cuda", f"export=[{{runtime: {export}}}]"])
        with pytest.raises(DependencyError, match="device cuda was asked for"):
            pipeline.run(asked, recipe.parent / "run")
    assert not (recipe.parent / "run").exists()


def test_a_finished_run_that_goes_on_keeps_its_proof(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run[1], tmp_path / "run"))
    before = (run / "report.json").read_bytes()
    pipeline.run(read(tiny_run[0]), run, resume=True)
    assert (run / "report.json").read_bytes() == before
    shutil.rmtree(run / "exports")
    pipeline.run(read(tiny_run[0]), run, resume=True)  # made again, with the versions that made it in its record
    (run / "report.json").write_text("{}")
    report = pipeline.run(read(tiny_run[0]), run, resume=True)
    assert json.loads((run / "report.json").read_text())["verdict"] == report.verdict


@pytest.mark.parametrize(
    ("order", "said"), [(["label2", "label0", "label1"], ""), (["x", "y", "z"], "has the labels x, y, z")]
)
def test_a_model_that_is_fine_tuned_already_is_the_baseline_by_the_names_of_its_classes(
    recipe: Path, order: list[str], said: str
) -> None:
    config = json.loads((recipe.parent / "model" / "config.json").read_text())
    config |= {"id2label": dict(enumerate(order)), "label2id": {name: number for number, name in enumerate(order)}}
    (recipe.parent / "model" / "config.json").write_text(json.dumps(config))
    asked = read(recipe, [f"baseline.path={recipe.parent / 'model'}"])
    if said:
        with pytest.raises(ModelError, match=said):
            pipeline.compress(asked, recipe.parent / "run")
        return
    pipeline.compress(asked, recipe.parent / "run")
    rows = load_file(recipe.parent / "model" / "model.safetensors")["classifier.weight"]
    saved = load_file(recipe.parent / "run" / "baseline" / "model.safetensors")["classifier.weight"]
    assert torch.equal(saved, rows[[1, 2, 0]])
    told = json.loads((recipe.parent / "run" / "baseline" / "config.json").read_text())
    assert list(told["id2label"].values()) == ["label0", "label1", "label2"]


def test_a_terminated_run_is_an_interrupted_one(recipe: Path) -> None:
    command = [sys.executable, "-m", "compressor", "run", str(recipe), "--out", str(recipe.parent / "run")]
    with subprocess.Popen([*command, "--set", "baseline.epochs=40"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 1:" in line:  # in the midst of the training
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 5
    assert "interrupted after" in rest
    assert "--resume" in rest


def test_flags_of_a_run_folder_need_one(recipe: Path) -> None:
    with pytest.raises(InputError, match="name it with --out"):
        pipeline.plan(read(recipe), resume=True)


def test_another_tools_run_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"job": 7}')
    with pytest.raises(ArtifactError):
        exporting.export(tmp_path)


def test_training_rows_by_another_name_prove_nothing(recipe: Path) -> None:
    data = recipe.parent / "data"
    shutil.copy(data / "train.jsonl", data / "dev.jsonl")
    asked = read(recipe, [f"data.evaluation.path={data / 'dev.jsonl'}", "data.evaluation.split=train"])
    with pytest.raises(DataError, match=r"data\.evaluation \(.*dev\.jsonl\) has the very rows of data\.train"):
        pipeline.plan(asked)
