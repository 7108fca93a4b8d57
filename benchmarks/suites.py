"""The data sets, each with its model and how long every arm trains on it; `arms.py` has what is compared on them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arms import ADAPTED, AFTERWARDS, ARMS, DENSE, TAUGHT, TRUNCATED, Arm

from compressor import registry
from compressor.errors import InputError
from compressor.recipe import Calibration, Source, Training
from compressor.tasks.base import Task

Rates = Mapping[str, tuple[float, ...]]
FULL = "-full"  # ends the name of a suite at its full size


@dataclass(frozen=True)
class Suite:
    """One task and model. Learning rates are chosen, on rows of train, among those for what an arm learns."""

    name: str
    model: str
    task_name: str
    train: Source | tuple[Source, ...]  # several: learned together
    evaluation: Source
    epochs: float  # 0: what truncation alone leaves
    rates: Rates  # by an arm's name, or by what it learns
    others: Mapping[str, Source] = field(default_factory=dict)  # further sets that are measured, by name
    budgets: tuple[float, ...] = (0.5, 0.3)
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 32
    max_length: int = 64
    image_size: int | None = None
    calibration: Calibration = field(default_factory=Calibration)
    evaluated: int | None = None  # encoded rows of each evaluation set, from its beginning; None: all
    before: bool = True  # also measured before training
    select_rows: int | None = None  # of train, for choosing rates; None: all
    select_holdout: float = 0.1
    full: Mapping[str, Any] = field(default_factory=dict)  # fields that differ at full size

    @property
    def task(self) -> Task:
        """The task."""
        found: Task = registry.task(self.task_name)
        return found

    @property
    def checkpoint(self) -> str:
        """The pretrained model's folder."""
        return str(folder_of("RANKFOLD_MODELS", "models") / self.model)

    @property
    def sets(self) -> dict[str, Source]:
        """What is measured, by name."""
        return {Path(self.evaluation.path).name: self.evaluation, **self.others}

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Those that are compared unless others are named."""
        if self.epochs:
            return (DENSE, *ADAPTED, *TAUGHT, *AFTERWARDS)
        names = ("cersa", "jactus-r1", "jactus-r2", "jactus-r3", "jactus", "jactus-union")
        return (DENSE, *TRUNCATED, *(ARMS[name].pretrained for name in names))

    def processor(self, path: str) -> Any:
        """The tokenizer or image processor of a checkpoint."""
        options = {} if self.image_size is None else {"image_size": self.image_size}
        return self.task.processor(path, **options)

    def sources(self, *, holdout: float) -> list[Source]:
        """What is learned; cut to `select_rows` in all where a part is held out."""
        sources = self.train if isinstance(self.train, tuple) else (self.train,)
        if holdout and self.select_rows:
            most = self.select_rows // len(sources)
            sources = tuple(one.model_copy(update={"limit": min(most, one.limit or most)}) for one in sources)
        return [located(one) for one in sources]

    def measured(self, encoded: Any) -> Any:
        """The encoded rows that are measured."""
        return encoded if self.evaluated is None else encoded.select(range(min(self.evaluated, len(encoded))))

    def rates_of(self, arm: Arm) -> tuple[float, ...]:
        """The learning rates that an arm's is chosen among.

        Raises:
            InputError: the suite has none for it.
        """
        if not self.epochs or arm.learns == "nothing":
            return (0.0,)
        found = self.rates.get(arm.name) or self.rates.get(arm.learns)
        if not found:
            raise InputError(f"The suite {self.name} has no learning rates for what {arm.name} learns: {arm.learns}.")
        return found

    def training(self, rate: float) -> Training:
        """The recipe that all arms share but for the rate."""
        return Training(epochs=self.epochs, learning_rate=rate, batch_size=self.batch_size)

    def at_full_size(self) -> Suite:
        """The same with all data, for a GPU; a suite that is whole already keeps its name."""
        return replace(self, name=self.name + FULL, **self.full) if self.full else self


def located(source: Source) -> Source:
    """The source under $RANKFOLD_DATA."""
    return source.model_copy(update={"path": str(folder_of("RANKFOLD_DATA", "data sets") / source.path)})


def folder_of(variable: str, what: str) -> Path:
    """The folder that a variable of the environment names.

    Raises:
        InputError: it is not set.
    """
    if variable not in os.environ:
        raise InputError(f"${variable} is not set: it names the folder that the {what} lie in.")
    return Path(os.environ[variable])


def named(name: str) -> Suite:
    """The suite that a row or a trained model names."""
    return chosen([name.removesuffix(FULL)], full=name.endswith(FULL))[0]


def chosen(names: Sequence[str], *, full: bool) -> list[Suite]:
    """The suites of names and groups, at full size where asked."""
    found = dict.fromkeys(one for name in names for one in GROUPS.get(name, (name,)))
    return [SUITES[name].at_full_size() if full else SUITES[name] for name in found]


TEXT: Rates = {
    "weights": (1e-4, 2e-4, 4e-4),
    "adapter": (1e-3, 2e-3),
    "factors": (1e-3, 2e-3),
    "core": (1e-3, 2e-3, 4e-3),
    "svd-core": (2e-3, 4e-3),
    "jactus-corrected": (3e-4, 1e-3, 2e-3),
    "rotation": (1e-3, 4e-3),
}
IMAGES: Rates = {
    "weights": (3e-5, 1e-4),
    "adapter": (3e-4, 1e-3),
    "factors": (1e-4, 3e-4, 1e-3),
    "core": (3e-4, 1e-3),
    "rotation": (3e-4, 1e-3),
}
FIVE_THOUSAND: Rates = {
    "weights": (1e-5, 3e-5, 1e-4),
    "adapter": (3e-4, 1e-3),
    "factors": (3e-4, 1e-3),
    "core": (3e-4, 1e-3),
    "rotation": (3e-4, 1e-3),
    "svdllm-lora": (3e-4, 1e-3, 3e-3),
    "jactus": (1e-4, 3e-4, 1e-3),
    "jactus-corrected": (3e-4,),  # the rate that was chosen for jactus
}
WORDS: Rates = {"weights": (2e-5,), "adapter": (2e-4,), "factors": (2e-4,), "core": (2e-4,), "rotation": (2e-4,)}
COMMONSENSE: Rates = {
    "weights": (1e-5, 2e-5),
    "adapter": (1e-4, 2e-4),
    "factors": (1e-4, 2e-4),
    "core": (2e-4, 4e-4),
    "rotation": (2e-4, 1e-3),
}


def _text(name: str, epochs: float, limit: int | None = None) -> Suite:
    train, test = Source(path=name, limit=limit), Source(path=name, split="test")
    full = {"train": Source(path=name)} if limit else {}
    return Suite(name, "minilm-l6", "text-classification", train, test, epochs, TEXT, budgets=TEXT_BUDGETS, full=full)


def _questions(name: str, split: str, limit: int | None = None) -> Source:
    return Source(path=name, split=split, text="question", label="answer", limit=limit)


TEXT_BUDGETS = (0.8, 0.5, 0.3, 0.15)
LEARNED = ("arc_easy", "arc_challenge", "openbookqa")

SUITES = {
    suite.name: suite
    for suite in (
        _text("trec", 3),
        _text("banking77", 5, limit=4000),
        _text("sst2", 3, limit=3000),
        _text("snips", 2, limit=3000),
        Suite(
            "cifar10",
            "dinov2-small",
            "image-classification",
            Source(path="cifar10", limit=1000),
            Source(path="cifar10", split="test"),
            epochs=2,
            rates=IMAGES,
            budgets=(0.8, 0.5, 0.3),
            image_size=98,
            select_rows=500,
            select_holdout=0.2,
            full={"train": Source(path="cifar10"), "epochs": 5, "select_rows": 2000},
        ),
        Suite(
            "cifar10-5000",
            "dinov2-small",
            "image-classification",
            Source(path="cifar10"),
            Source(path="cifar10", split="test"),
            epochs=2,
            rates=FIVE_THOUSAND,
            budgets=(0.5, 0.3),
            image_size=98,
            select_rows=2500,
            select_holdout=0.2,
        ),
        Suite(
            "arc_easy",
            "smollm2-135m",
            "multiple-choice",
            _questions("arc_easy", "train", 256),
            _questions("arc_easy", "test", 200),
            epochs=1,
            rates=WORDS,
            budgets=(0.8, 0.5, 0.3),
            batch_size=8,
            max_length=128,
            before=False,
            calibration=Calibration(samples=256, batch_size=8),
        ),
        Suite(
            "commonsense",
            "smollm2-135m",
            "multiple-choice",
            tuple(_questions(name, "train", 100) for name in LEARNED),
            _questions("arc_easy", "test", 80),
            epochs=1,
            rates=COMMONSENSE,
            others={name: _questions(name, "test", 80) for name in (*LEARNED[1:], "piqa")},
            budgets=(0.8, 0.5, 0.3),
            batch_size=8,
            max_length=384,
            before=False,
            calibration=Calibration(samples=256, batch_size=8),
            select_holdout=0.2,
            full={
                "train": tuple(_questions(name, "train") for name in LEARNED),
                "evaluation": _questions("arc_easy", "test"),
                "others": {name: _questions(name, "test") for name in (*LEARNED[1:], "piqa")},
                "epochs": 3,
                "batch_size": 16,
                "before": True,
                "select_rows": 1500,
            },
        ),
        Suite(
            "wikitext2",
            "smollm2-135m",
            "text-generation",
            Source(path="wikitext2"),
            Source(path="wikitext2", split="test"),
            epochs=0,
            rates={},
            budgets=(0.8, 0.5, 0.3),
            max_length=512,
            calibration=Calibration(samples=24, batch_size=2),
            evaluated=16,
            full={"evaluated": None, "calibration": Calibration(samples=256, batch_size=2)},
        ),
    )
}
GROUPS = {
    "text": ("trec", "banking77", "sst2", "snips"),
    "vision": ("cifar10",),
    "lm": ("commonsense", "wikitext2"),
}
