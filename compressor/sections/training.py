"""How the dense baseline and the cores are trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from compressor.sections.base import Section, Share


class Training(Section):
    """One training run."""

    epochs: float = Field(default=3, gt=0, allow_inf_nan=False, description="passes over the training data")
    learning_rate: float = Field(default=1e-3, gt=0, description="the highest one, after warmup")
    batch_size: int = Field(default=32, ge=1, description="examples per step")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled, as in AdamW")
    warmup: Share = Field(
        default=0.1, description="share of the steps with rising learning rate; cosine decay after it"
    )


class Distillation(Section):
    """What the compressed model is taught by the adapted dense baseline, beside the labels."""

    predictions: float = Field(
        default=0.5, ge=0, le=1, description="share of the loss that matches its predictions; the labels have the rest"
    )
    hidden: float = Field(
        default=1.0,
        ge=0,
        description="weight of matching its hidden states, as a share of their variance; unused where it gives none",
    )
    temperature: float = Field(default=2.0, gt=0, description="softens the predictions that are matched")


class AdaptSection(Training):
    """Training of the cores, towards the labels and towards the adapted dense baseline."""

    correct: bool = Field(
        default=True,
        description="before training, refit each layer in forward order to the inputs it really gets once the layers "
        "before it are compressed",
    )
    distill: Distillation | None = Field(
        default=Distillation(),
        description="taught by the dense baseline, where that is adapted; null: by the labels alone",
    )


class BaselineSection(Training):
    """The dense model on the same task, which everything is held against."""

    train: Literal["full", "none"] = Field(
        default="full", description="train all weights, or none; `none` where `path` is set"
    )
    path: str | None = Field(default=None, description="an already adapted dense model, used instead of training one")
    learning_rate: float = Field(default=1e-4, gt=0, description="the highest one, after warmup")

    @model_validator(mode="before")
    @classmethod
    def _trained_already(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("path") and "train" not in value:
            return value | {"train": "none"}
        return value

    @property
    def adapted(self) -> bool:
        """Whether it has learned the task, so that it can teach it."""
        return self.train == "full" or self.path is not None
