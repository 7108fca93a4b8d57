"""The rows that quality is measured on: the evaluation data, or validation rows where something is chosen by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor import data
from compressor.artifact import Artifact
from compressor.errors import DataError
from compressor.recipe import Recipe, Source
from compressor.tasks.base import Task

Facts = Mapping[str, Any]


def measured(artifact: Artifact, recipe: Recipe, task: Task, processor: Any) -> tuple[Any, Facts]:
    """The encoded rows of the recipe's `validate.split`, and what the report says of them: path, rows, digest.

    Raises:
        DataError: the data is not the one that the artifact was made with, or there are no validation rows.
    """
    if recipe.validation.split == "validation" and recipe.data.validation is None:
        return _held_out(artifact, recipe, task, processor)
    split = recipe.validation.split
    source = recipe.data.evaluation if split == "evaluation" else recipe.data.validation
    rows = data.read(source or recipe.data.evaluation, task, recipe.seed)
    facts = artifact.manifest["data"][split]
    if data.digest(rows) != facts["digest"]:
        raise _other(source or recipe.data.evaluation, split)
    labels = artifact.manifest["labels"]
    return task.encode(rows, processor, labels, recipe.model.max_length, f"data.{split}"), facts


def _held_out(artifact: Artifact, recipe: Recipe, task: Task, processor: Any) -> tuple[Any, Facts]:
    """The rows that the run held out of train, drawn again with its seed."""
    found = data.prepare(recipe.data, task, processor, recipe.model.max_length, recipe.seed)
    if found.validation is None:
        raise DataError(
            "validate.split is validation, but data.holdout is 0 and data.validation names no rows: name some, or hold "
            "some of train out, in a new run."
        )
    if found.facts["train"]["digest"] != artifact.manifest["data"]["train"]["digest"]:
        raise _other(recipe.data.train, "training")
    rows = found.validation
    path = f"{recipe.data.train.path} (rows held out of train)"
    return rows, {"path": path, "rows": len(rows), "digest": data.digest(rows)}


def _other(source: Source, split: str) -> DataError:
    return DataError(
        f"{source.path} is not the {split} data that the artifact was made with: its digest differs. "
        "Bring the data back, or make a new run."
    )
