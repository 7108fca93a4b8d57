"""Recipes of both tasks of language models through the whole line, from a small checkpoint to the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from compressor import pipeline
from compressor.errors import ModelError
from compressor.recipe import Recipe

COMMON = {
    "plan": {"budget": {"parameters": 0.6}, "multiple_of": 4},
    "adapt": {"epochs": 1, "batch_size": 4},
    "baseline": {"epochs": 1, "batch_size": 4},
    "export": [{"precision": "fp32"}, {"precision": "int8"}],
    "validate": {"runs": 10, "sequence_length": 8, "threads": 1, "repeats": 1},
}
SOURCES = {
    "text-generation": {"path": "running"},
    "multiple-choice": {"path": "questions", "text": "question", "label": "answer"},
}
QUALITIES = {"text-generation": "perplexity", "multiple-choice": "accuracy"}


@pytest.fixture
def folder(
    decoder: Callable[..., Any], words: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A checkpoint, running text and questions."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    decoder("llama").save_pretrained(tmp_path / "model")
    words().save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    some = ["one", "two", "three", "four", "five", "six", "red", "blue"]
    for split, count in (("train", 40), ("test", 8)):
        running, questions = tmp_path / "running", tmp_path / "questions"
        running.mkdir(exist_ok=True)
        questions.mkdir(exist_ok=True)
        (running / f"{split}.txt").write_text(" ".join(rng.choice(some, 12 * count)))
        drawn = [[" ".join(rng.choice(some, 2)) for _ in range(3)] for _ in range(count)]
        columns = {
            "question": [" ".join(found) for found in drawn],
            "choices": drawn,
            "answer": [n % 3 for n in range(count)],
        }
        datasets.Dataset.from_dict(columns).to_parquet(questions / f"{split}.parquet")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("task", SOURCES)
def test_a_recipe_of_a_language_model_ends_in_a_report(folder: Path, task: str) -> None:
    source = SOURCES[task] | {"path": str(folder / SOURCES[task]["path"])}
    recipe = Recipe.model_validate(
        COMMON
        | {"model": {"path": str(folder / "model"), "task": task, "max_length": 24}}
        | {"data": {"train": source, "evaluation": source | {"split": "test"}, "calibration": {"samples": 16}}}
        | {"gates": {QUALITIES[task]: {"type": "percent-max-degradation", "value": 1000}}}
    )
    report = pipeline.run(recipe, folder / "run")
    by_name = {export.name: export for export in report.exports}
    assert list(by_name) == ["onnx-fp32", "onnx-int8", "dense-onnx-int8"]
    assert report.verdict == "pass"
    fp32 = by_name["onnx-fp32"]
    quality, parity = fp32.finding(QUALITIES[task]), fp32.finding("parity_max_difference")
    assert quality is not None
    assert parity is not None
    assert quality.candidate == pytest.approx(quality.details[f"candidate_torch_{QUALITIES[task]}"], rel=1e-3)
    assert parity.candidate < 1e-3
    assert (folder / "run" / "report.html").is_file()


def test_blocks_longer_than_the_model_reads_are_refused_before_any_work(
    decoder: Callable[..., Any], folder: Path
) -> None:
    decoder("gpt2").save_pretrained(folder / "model")  # of 32 positions
    source = {"path": str(folder / "running")}
    recipe = Recipe.model_validate(
        {"model": {"path": str(folder / "model"), "task": "text-generation", "max_length": 33}}
        | {"data": {"train": source, "evaluation": source | {"split": "test"}}}
    )
    with pytest.raises(ModelError, match=r"input_ids \(2, 33\).*max_length"):
        pipeline.compress(recipe, folder / "run")
