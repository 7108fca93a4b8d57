"""What a run reads: the task, processor and rows that its recipe names, and the dense models that come of them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor import data, registry, tensors
from compressor.data import Batches, Data
from compressor.dense import DenseModels
from compressor.factory import Factory
from compressor.recipe import Recipe
from compressor.run_folder import Run
from compressor.targets import Considered, Target, consider, find_targets
from compressor.tasks.base import Task

HEAD = "head.safetensors"


class Sources:
    """Of one recipe and its run folder; data and processor are read once."""

    def __init__(self, recipe: Recipe, run: Run, factory: Factory | None = None) -> None:
        """`factory`: the code that the recipe names, where the caller has said where it lies.

        Raises:
            ArtifactError: the baseline of the run was made by other code.
        """
        self.recipe, self.run = recipe, run
        baseline, code = run.folder / "baseline", factory or Factory.of(recipe.model)
        self.models = DenseModels(recipe, self.task, baseline, code)
        if not run.replaces:
            self.models.require_same_code()

    @cached_property
    def task(self) -> Task:
        """What the model is adapted to do."""
        found: Task = registry.task(self.recipe.model.task)
        return found

    @cached_property
    def processor(self) -> Any:
        """The tokenizer or image processor."""
        return self.models.processor

    @cached_property
    def data(self) -> Data:
        """All splits, encoded; the same rows as when the run was begun.

        Raises:
            DataError: rows cannot be read, or are others than those.
        """
        section = self.recipe.model
        found = data.prepare(self.recipe.data, self.task, self.processor, section.max_length, self.recipe.seed)
        self.run.require_same_data(found.facts)
        return found

    def sample(self) -> Batches[dict[str, Tensor]]:
        """The calibration rows in batches."""
        size = self.recipe.data.calibration.batch_size
        return data.batches(self.data.calibration, self.task, self.processor, size)

    def example(self) -> dict[str, Tensor]:
        """Inputs that an export is traced with."""
        return self.task.example(self.processor, self.recipe.model.max_length)

    def drawn(self, count: int, batch_size: int) -> Batches[dict[str, Tensor]]:
        """Training rows drawn by the recipe's seed, at most `count` of them, in batches."""
        rows = self.data.train.shuffle(seed=self.recipe.seed).select(range(min(count, len(self.data.train))))
        return data.batches(rows, self.task, self.processor, batch_size)

    def dense(self) -> Any:
        """A new copy of the pretrained model, with the probed head where that stage is finished."""
        model = self.models.pretrained(self.data.labels)
        if self.run.finished("probe"):
            tensors.load_tensors_(model, self.run.folder / HEAD, strict=False)
        return model

    def start(self) -> Any:
        """A new copy of what is compressed: the adapted baseline, or the pretrained model with its probed head."""
        return self.models.adapted() if self.recipe.starts_adapted else self.dense()

    def given(self, path: str) -> Any:
        """The baseline that the recipe names, adapted elsewhere; raises ModelError where it has other labels."""
        return self.models.given(path, self.data.labels)

    def save(self, model: Any, folder: Path) -> None:
        """Weights, what makes their structure again, and the processor's files."""
        self.models.save(model, self.processor, self.data.labels, folder)

    def digest(self) -> str | None:
        """Of the pretrained weights; None for a hub id."""
        return self.models.digest(self.data.labels)

    def targets(self, model: Any) -> tuple[Target, ...]:
        """The recipe's targets in a dense model."""
        return find_targets(model, self.recipe.model.targets, self.recipe.model.exclude)

    def considered(self, model: Any) -> tuple[Considered, ...]:
        """Every linear layer of a dense model, and why it is (not) a target."""
        return consider(model, self.recipe.model.targets, self.recipe.model.exclude)
