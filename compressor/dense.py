"""The dense models of a run: the pretrained one that its recipe names, and the adapted baseline in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from compressor import heads, models, storage, targets, tensors
from compressor.errors import ModelError, some
from compressor.factory import RECORD, Factory
from compressor.files import read_json
from compressor.recipe import Recipe
from compressor.tasks.base import Task

Labels = Sequence[str] | None


@dataclass(frozen=True)
class DenseModels:
    """Where dense models come from: a checkpoint, or a factory and the weights that belong to it."""

    recipe: Recipe
    task: Task
    baseline: Path  # the folder of the baseline, once it is there
    factory: Factory | None = None

    def require_same_code(self) -> None:
        """Raises ArtifactError where the baseline was made by another factory, or by a source changed since."""
        record = self.baseline / RECORD
        if self.factory and record.is_file():
            self.factory.require_same(record)

    @cached_property
    def processor(self) -> Any:
        """The tokenizer or image processor: the one that is named beside the model, or the checkpoint's own."""
        section = self.recipe.model
        revision = None if section.processor else section.revision
        asked = {"revision": revision, "image_size": section.image_size}
        options = {name: value for name, value in asked.items() if value is not None}
        path = section.processor or section.path
        return self.task.processor(path, trust_remote_code=section.trust_remote_code, **options)

    def pretrained(self, labels: Labels) -> Any:
        """A new copy of the model that the recipe names, with a head for `labels`."""
        section = self.recipe.model
        torch.manual_seed(self.recipe.seed)
        if self.factory:
            return self.factory.build(self.task, labels)
        return models.load_dense(
            section.path,
            self.task,
            labels,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            image_size=section.image_size,
            pad_token_id=self._pad_token_id,
        )

    @property
    def _pad_token_id(self) -> int | None:
        """What texts are padded with."""
        found: int | None = getattr(self.processor, "pad_token_id", None)
        return found

    def adapted(self) -> Any:
        """A new copy of the baseline."""
        torch.manual_seed(self.recipe.seed)
        section = self.recipe.model
        trusted = section.trust_remote_code
        return storage.load(self.baseline, section.task, factory=self.factory, trust_remote_code=trusted)

    def require_alike(self, model: Any) -> None:
        """Raises ModelError where the baseline that the recipe names has other layers in its blocks than `model`."""
        section, path = self.recipe.model, self.recipe.baseline.path
        if path is None or self.factory:
            return
        theirs = _layers(models.outline(path, self.task, trust_remote_code=section.trust_remote_code))
        other = sorted(_layers(model) ^ theirs)
        if other:
            told = [f"{name} ({rows} x {columns})" for name, rows, columns in other]
            raise ModelError(
                f"The baseline {path} is of another architecture than model.path, {section.path}: {len(other)} layers "
                f"are in one of them only, such as {some(told, 2)}. Name the model that it was trained from, or the "
                "baseline itself, as model.path."
            )

    def given(self, path: str, labels: Labels) -> Any:
        """A baseline that has been adapted elsewhere.

        Raises:
            ModelError: it has other labels.
        """
        if self.factory:
            return self._given_weights(self.factory, Path(path), labels)
        section = self.recipe.model
        trusted = section.trust_remote_code
        model = models.load_dense(path, self.task, image_size=section.image_size, trust_remote_code=trusted)
        if labels is not None:
            model.config.update(models.CLASSIFIES | models.pads(model.config, self._pad_token_id))
            known = heads.names(model.config)
            if heads.order_of(known, labels) is None:
                _require(path, known, labels)
            heads.reorder_(model, path, known, labels, ())
            model.config.id2label = dict(enumerate(labels))
            model.config.label2id = {label: number for number, label in enumerate(labels)}
        return model

    def _given_weights(self, factory: Factory, folder: Path, labels: Labels) -> Any:
        """What the factory makes, with the weights of a folder; their labels are compared where it says them."""
        if (folder / RECORD).is_file() and labels is not None:
            _require(str(folder), read_json(folder / RECORD)["labels"] or [], labels)
        return tensors.load_tensors_(factory.build(self.task, labels), folder / "model.safetensors")

    def save(self, model: Any, processor: Any, labels: Labels, folder: Path) -> None:
        """Weights, what makes their structure again, and the processor's files."""
        record = self.factory.record(model, labels) if self.factory else None
        storage.save_model(model, processor, folder, record)

    def digest(self, labels: Labels) -> str | None:
        """Of the pretrained weights; None for a hub id."""
        if self.factory:
            return storage.weights_digest(self.pretrained(labels))
        return storage.checkpoint_digest(self.recipe.model.path)


def _layers(model: Any) -> set[tuple[str, int, int]]:
    """Names and shapes of the layers in blocks: heads are the labels', tables of positions the image size's."""
    rows = targets.consider(model)
    return {(row.name, row.out_features, row.in_features) for row in rows if targets.in_block(model, row.name)}


def _require(path: str, labels: Sequence[str], wanted: Sequence[str]) -> None:
    if list(labels) != list(wanted):
        raise ModelError(
            f"The baseline {path} has the labels {some(labels)}, but the training data {some(wanted)}: it must have "
            "been adapted on the same ones. Name its classes as the data does, in id2label of its config.json."
        )
