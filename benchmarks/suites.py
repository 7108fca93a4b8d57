"""The data sets, each with its model and how long every arm trains on it, and the arms that are compared on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from compressor import registry
from compressor.methods.base import Method
from compressor.methods.jactus import Jactus
from compressor.methods.spectral import Spectral
from compressor.recipe import Calibration, DataSection, Source, Training
from compressor.tasks.base import Task

Rates = tuple[float, ...]


@dataclass(frozen=True)
class Arm:
    """One way; without a `method` the dense model is trained, whole or (`lora`) by an adapter of that rank."""

    name: str
    method: Method | None = None
    strategy: Literal["gain", "uniform"] = "gain"
    taught: bool = False  # starts from the dense model of its seed, and learns from it beside the labels
    lora: int = 0


@dataclass(frozen=True)
class Suite:
    """One data set and model; `rates` are the learning rates that an arm's is chosen among, on rows of train."""

    name: str
    model: str
    task_name: str
    train: Source
    evaluation: Source
    epochs: float  # 0: what truncation alone leaves
    rates: Mapping[str, Rates]
    budgets: tuple[float, ...] = (0.5, 0.3)
    seeds: tuple[int, ...] = (0, 1)
    batch_size: int = 32
    max_length: int = 64
    image_size: int | None = None
    calibration: Calibration = field(default_factory=Calibration)
    evaluated: int | None = None  # encoded rows of the evaluation, from its beginning; None: all
    before: bool = True  # also measured before training
    select_rows: int | None = None  # of train, for choosing rates; None: all
    select_holdout: float = 0.1

    @property
    def task(self) -> Task:
        """The task."""
        found: Task = registry.task(self.task_name)
        return found

    @property
    def checkpoint(self) -> str:
        """The pretrained model's folder."""
        return str(Path(os.environ["RANKFOLD_MODELS"]) / self.model)

    def processor(self, path: str) -> Any:
        """The tokenizer or image processor of a checkpoint."""
        options = {} if self.image_size is None else {"image_size": self.image_size}
        return self.task.processor(path, **options)

    def section(self, *, holdout: float) -> DataSection:
        """The data as a recipe would name it; what is held out of train measures the choice of rates."""
        train = self.train
        if holdout and self.select_rows:
            train = train.model_copy(update={"limit": self.select_rows})
        return DataSection(
            train=located(train),
            evaluation=located(self.evaluation),
            holdout=holdout,
            calibration=self.calibration,
        )

    def measured(self, encoded: Any) -> Any:
        """The encoded rows that are measured."""
        return encoded if self.evaluated is None else encoded.select(range(min(self.evaluated, len(encoded))))

    def training(self, rate: float) -> Training:
        """The recipe that all arms share but for the rate."""
        return Training(epochs=self.epochs, learning_rate=rate, batch_size=self.batch_size)


def located(source: Source) -> Source:
    """The source under $RANKFOLD_DATA."""
    return source.model_copy(update={"path": str(Path(os.environ["RANKFOLD_DATA"]) / source.path)})


SVD_LLM = Spectral(metric="input", train="none", updates=16)
ARMS = (
    Arm("dense"),
    Arm("dense-lora", lora=16),
    Arm("svdllm-lora", SVD_LLM, "uniform", taught=True),
    Arm("jactus", Jactus(), taught=True),
    Arm("svd-core", Spectral(metric="plain"), "uniform", taught=True),
    Arm("jactus-pretrained", Jactus()),
    Arm("svdllm-lora-pretrained", SVD_LLM, "uniform"),
    Arm("svd", Spectral(metric="plain", train="none"), "uniform"),
    Arm("svdllm", Spectral(metric="input", train="none"), "uniform"),
    Arm("gfwsvd", Spectral(metric="both", train="none"), "uniform"),
    Arm("gfwsvd-gain", Spectral(metric="both", train="none")),
)
DENSE = ARMS[0]

TEXT: Mapping[str, Rates] = {
    "dense": (1e-4, 2e-4, 4e-4),
    "dense-lora": (1e-3, 2e-3),
    "svdllm-lora": (1e-3, 2e-3),
    "jactus": (1e-3, 2e-3),
    "svd-core": (2e-3, 4e-3),
    "jactus-pretrained": (1e-3, 2e-3),
    "svdllm-lora-pretrained": (1e-3, 2e-3),
}
IMAGES: Mapping[str, Rates] = {
    "dense": (3e-5, 1e-4),
    "dense-lora": (3e-4, 1e-3),
    "svdllm-lora": (1e-4, 3e-4),
    "jactus": (1e-4, 3e-4),
}
WORDS: Mapping[str, Rates] = {"dense": (2e-5,), "dense-lora": (2e-4,), "svdllm-lora": (2e-4,), "jactus": (2e-4,)}
UNTRAINED: Mapping[str, Rates] = dict.fromkeys(
    ("dense", "svd", "svdllm", "gfwsvd", "gfwsvd-gain", "jactus-pretrained"), (0.0,)
)


def _text(name: str, epochs: float, limit: int | None = None) -> Suite:
    train, test = Source(path=name, limit=limit), Source(path=name, split="test")
    return Suite(name, "minilm-l6", "text-classification", train, test, epochs, TEXT)


def _questions(split: str, limit: int) -> Source:
    return Source(path="arc_easy", split=split, text="question", label="answer", limit=limit)


SUITES = {
    suite.name: suite
    for suite in (
        _text("trec", 3),
        _text("banking77", 5, limit=4000),
        Suite(
            "cifar10",
            "dinov2-small",
            "image-classification",
            Source(path="cifar10", limit=1000),
            Source(path="cifar10", split="test"),
            epochs=2,
            rates=IMAGES,
            budgets=(0.8, 0.5, 0.3),
            seeds=(0,),
            image_size=98,
            select_rows=500,
            select_holdout=0.2,
        ),
        Suite(
            "arc_easy",
            "smollm2-135m",
            "multiple-choice",
            _questions("train", 256),
            _questions("test", 200),
            epochs=1,
            rates=WORDS,
            budgets=(0.8, 0.5, 0.3),
            seeds=(0,),
            batch_size=8,
            max_length=128,
            before=False,
            calibration=Calibration(samples=256, batch_size=8),
        ),
        Suite(
            "wikitext2",
            "smollm2-135m",
            "text-generation",
            Source(path="wikitext2"),
            Source(path="wikitext2", split="test"),
            epochs=0,
            rates=UNTRAINED,
            budgets=(0.8, 0.5, 0.3),
            seeds=(0,),
            max_length=512,
            calibration=Calibration(samples=24, batch_size=2),
            evaluated=16,
        ),
    )
}
