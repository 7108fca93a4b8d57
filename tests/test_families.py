"""The whole line on many architectures, of which no line of code knows one; real weights in many packings."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pytest
import torch
from torch import nn

import compressor
from compressor import pipeline, registry
from compressor.layers import FactorizedLinear
from compressor.models import load_dense, quiet_libraries
from compressor.recipe import Recipe
from compressor.targets import find_targets
from compressor.tasks.base import Task
from exporters.onnx import OnnxExporter
from validators.report import Report

BUDGET = 0.6
ONE = {"epochs": 1, "batch_size": 8}
COMMON: dict[str, Any] = {
    "plan": {"budget": {"parameters": BUDGET}, "multiple_of": 2},
    "adapt": ONE,
    "baseline": ONE,
    "validate": {"runs": 10, "sequence_length": 8, "threads": 1, "repeats": 1},
    "gates": {"parity": {"type": "threshold", "value": 1.0, "unsure": "pass"}},  # no interval is certain of all texts
}
SPLITS = {"holdout": 0, "calibration": {"samples": 16, "batch_size": 8}}


def _imported() -> Any:
    spec = importlib.util.spec_from_file_location("families", Path(__file__).with_name("families.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["families"] = module
    spec.loader.exec_module(module)
    return module


families = _imported()
SMALL = families.FAMILIES | families.KIN
ROWS = [*families.FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in families.KIN)]
LINEAR = ("Linear", "Conv1D", "NonDynamicallyQuantizableLinear")  # the last: of nn.MultiheadAttention
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_libraries()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder for what is too large to be left lying."""
    yield tmp_path
    shutil.rmtree(tmp_path)


# ---- small random models: the line, and what it leaves ----


@pytest.mark.parametrize("name", ROWS)
def test_a_family_goes_down_the_line_without_a_line_of_code_of_its_own(name: str, tmp_path: Path) -> None:
    family = SMALL[name]
    families.checkpoint(family, tmp_path / "dense")
    train, test = (str(families.write_rows(family.task, tmp_path, split)) for split in ("train", "test"))
    model = {"path": str(tmp_path / "dense"), "task": family.task, "max_length": 16}
    sources = {"train": {"path": train}, "evaluation": {"path": test}}
    recipe = Recipe.model_validate(COMMON | {"model": model, "data": sources | SPLITS})
    report = pipeline.run(recipe, tmp_path / "run")

    task = registry.task(family.task)
    dense, folded = load_dense(model["path"], task), compressor.load(tmp_path / "run")
    require_whole(report, dense)
    require_within(BUDGET, dense, folded)
    require_same(folded, task, tmp_path / "run")


def require_whole(report: Report, dense: nn.Module) -> None:
    """The export says what the model says, on every row; the report accounts for every linear layer."""
    (export,) = report.exports
    agreement, difference = export.finding("parity"), export.finding("parity_max_difference")
    assert agreement is not None
    assert difference is not None
    assert agreement.candidate == 1.0
    assert agreement.ok
    assert report.verdict == "pass"
    assert max(difference.dense, difference.candidate) <= 1e-4
    found = dense.named_modules(remove_duplicate=False)
    linear = {name for name, layer in found if type(layer).__name__ in LINEAR}
    rows = {row["name"]: row for row in report.context["linear_layers"]}
    assert linear <= rows.keys()
    assert all(isinstance(dense.get_submodule(name), CONVOLUTIONS) for name in rows.keys() - linear)
    assert all(row["reason"] for row in rows.values())
    planned = {layer["name"] for layer in report.context["layers"]}
    assert planned == {name for name, row in rows.items() if row["target"]}


def require_within(budget: float, dense: nn.Module, folded: nn.Module) -> None:
    """The targets' matrices, counted in the modules themselves, keep at most the budget; some are factorized."""
    targets = [target.name for target in find_targets(dense)]
    share = matrices(folded, targets) / matrices(dense, targets)
    assert 0.5 * budget < share <= budget
    assert any(isinstance(folded.get_submodule(name), FactorizedLinear) for name in targets)


def matrices(model: nn.Module, names: list[str]) -> int:
    """How many numbers the weights of submodules have, biases aside."""
    return sum(found.numel() for name in names for found in model.get_submodule(name).parameters() if found.ndim > 1)


def require_same(folded: Any, task: Task, run: Path) -> None:
    """The exported graph gives the logits of the saved model, wherever there is no padding."""
    example = task.example(task.processor(str(run)))
    with torch.no_grad():
        expected = folded(**example).logits.numpy()
    found = OnnxExporter().load(run / "exports" / "onnx-fp32")({key: value.numpy() for key, value in example.items()})
    real = example["attention_mask"].bool().numpy() if expected.ndim == 3 else slice(None)
    assert np.abs(found["logits"] - expected)[real].max() <= 1e-4


# ---- real weights: the line, in short ----

MODELS = {"minilm-l6": families.CLASSIFIES, "dinov2-small": families.SEES, "smollm2-135m": families.GENERATES}
LABELS = ["no", "maybe", "yes"]


def folder_of(name: str, variable: str) -> Path:
    """A model's or data set's folder; skips where it is not there."""
    found = Path(os.environ.get(variable, "."), name)
    if not os.environ.get(variable) or not found.is_dir():
        pytest.skip(f"needs {name} in the folder that ${variable} names")
    return found


def sources_of(data: Path, columns: dict[str, str], rows: int) -> dict[str, Any]:
    """So many rows of both splits."""
    return {
        role: {"path": str(data), "split": split, "limit": rows} | columns
        for role, split in (("train", "train"), ("evaluation", "test"))
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dinov2_goes_down_the_line_on_photographs(scratch: Path) -> None:
    path = str(folder_of("dinov2-small", "RANKFOLD_MODELS"))
    model = {"path": path, "task": families.SEES, "image_size": 56}
    sources = sources_of(folder_of("cifar10", "RANKFOLD_DATA"), {}, 64)
    recipe = Recipe.model_validate(COMMON | {"model": model, "data": sources | SPLITS})
    report = pipeline.run(recipe, scratch / "run")
    dense = load_dense(path, registry.task(families.SEES))
    require_whole(report, dense)
    require_within(BUDGET, dense, compressor.load(scratch / "run"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2_goes_down_the_line_on_questions(scratch: Path) -> None:
    last = ["model.layers.2[4-9].*"]  # a fifth of its blocks
    path = str(folder_of("smollm2-135m", "RANKFOLD_MODELS"))
    model = {"path": path, "task": "multiple-choice", "targets": last, "max_length": 96}
    sources = sources_of(folder_of("arc_easy", "RANKFOLD_DATA"), {"text": "question", "label": "answer"}, 16)
    settings = {"baseline": {"train": "none"}, "adapt": ONE | {"batch_size": 4}, "model": model}
    recipe = Recipe.model_validate(COMMON | settings | {"data": sources | SPLITS})
    report = pipeline.run(recipe, scratch / "run")
    task = registry.task("multiple-choice")
    dense, folded = load_dense(path, task), compressor.load(scratch / "run")
    require_whole(report, dense)
    targets = [target.name for target in find_targets(dense, last)]
    assert len(targets) == 6 * 7
    assert matrices(folded, targets) <= BUDGET * matrices(dense, targets)
    assert not any(isinstance(layer, FactorizedLinear) for layer in folded.model.layers[:24].modules())
    require_same(folded, task, scratch / "run")


# ---- real weights: other packings, other classes ----


class Original(NamedTuple):
    """A model of a real checkpoint as it was found, and what it says of the task's example."""

    name: str
    task: Task
    model: Any
    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor


@pytest.fixture(scope="module", params=MODELS)
def original(request: pytest.FixtureRequest) -> Original:
    name = request.param
    path = Path(request.getfixturevalue("minilm")) if name == "minilm-l6" else folder_of(name, "RANKFOLD_MODELS")
    task = registry.task(MODELS[name])
    inputs, model = task.example(task.processor(str(path))), loaded(path, task)
    return Original(name, task, model, inputs, said(model, inputs))


def loaded(path: Path, task: Task) -> Any:
    """The model, with the same head at every call where it needs one."""
    torch.manual_seed(0)
    return load_dense(str(path), task, None if task.name == families.GENERATES else LABELS).eval()


@torch.no_grad()
def said(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).logits


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("packing", families.PACKINGS)
def test_real_weights_in_another_packing_say_the_same(original: Original, packing: str, scratch: Path) -> None:
    save, limit = families.PACKINGS[packing]
    save(original.model, scratch)
    model = loaded(scratch, original.task)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert apart(said(model, original.inputs), original.logits) <= limit
    assert find_targets(model) == find_targets(original.model)


@pytest.mark.slow
@pytest.mark.parametrize(("original", "sibling"), families.SIBLINGS, indirect=["original"])
def test_real_weights_as_another_class_compute_the_same(original: Original, sibling: str, scratch: Path) -> None:
    whole = original.task.name == families.GENERATES
    convert = families.SIBLINGS[original.name, sibling]
    convert(original.model if whole else original.model.base_model).save_pretrained(scratch)
    model = loaded(scratch, original.task)
    inputs = {key: value for key, value in original.inputs.items() if key != "token_type_ids"}
    real = inputs.get("attention_mask", torch.ones(3, 1)).bool()
    ours, theirs = (features(one, inputs, whole) for one in (model, original.model))
    real = real.expand(ours.shape[:2])
    assert type(model) is not type(original.model)
    assert apart(ours[real], theirs[real]) <= 1e-5
    assert shapes(model) == shapes(original.model)


@torch.no_grad()
def features(model: Any, inputs: dict[str, torch.Tensor], whole: bool) -> torch.Tensor:
    """Logits (B, T, V) of a language model, or the last hidden states (B, T, d)."""
    return model(**inputs).logits if whole else model.base_model(**inputs).last_hidden_state


def shapes(model: nn.Module) -> Counter[tuple[int, int]]:
    return Counter((target.out_features, target.in_features) for target in find_targets(model))
