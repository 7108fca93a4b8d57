"""Compare ways to a compressed classifier on real data, one recipe for all arms; one JSON row per training run.

    RANKFOLD_MODELS=... RANKFOLD_DATA=... python benchmarks/comparison.py trec banking77 --models build/comparison

Every compressed arm, the rivals' too, starts from the dense model that was fine-tuned on the same rows with the same
seed, and learns from the labels and from that model; arms that end in `-pretrained` start from the checkpoint and learn
from the labels alone. Learning rates are chosen per arm and data set on a held-out tenth of train (seed 0, 30 %
budget), never on test; the final runs train on all of train, without choosing a checkpoint, and are measured on the
whole test set. Rows that are in the file already are not run again, so an interrupted comparison goes on; `--models`
holds the trained models.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from compressor import adapt, calibration, data, factorize, models, planning, progress, storage
from compressor.machine import machine, versions
from compressor.methods.base import Method
from compressor.methods.jactus import Jactus
from compressor.methods.spectral import Spectral
from compressor.recipe import Calibration, DataSection, Distillation, Source, Training
from compressor.tasks.text_classification import TextClassification

MODEL = "minilm-l6"
BUDGETS = (0.5, 0.3)
SEEDS = (0, 1)
SELECT_BUDGET = 0.3
MULTIPLE_OF = 8
TASK = TextClassification()


@dataclass(frozen=True)
class Arm:
    """One way; `method` None is full fine-tuning of the dense model."""

    name: str
    method: Method | None
    strategy: Literal["gain", "uniform"]
    learning_rates: tuple[float, ...]
    taught: bool = True


@dataclass(frozen=True)
class Suite:
    """One data set and how long every arm trains on it."""

    name: str
    rows: int | None
    epochs: float
    max_length: int = 64


SVD_LLM = Spectral(metric="input", train="none", updates=16)
ARMS = (
    Arm("dense", None, "gain", (1e-4, 2e-4, 4e-4), taught=False),
    Arm("svdllm-lora", SVD_LLM, "uniform", (1e-3, 2e-3)),
    Arm("jactus", Jactus(), "gain", (1e-3, 2e-3)),
    Arm("svd-core", Spectral(metric="plain"), "uniform", (2e-3, 4e-3)),
    Arm("jactus-pretrained", Jactus(), "gain", (1e-3, 2e-3), taught=False),
    Arm("svdllm-lora-pretrained", SVD_LLM, "uniform", (1e-3, 2e-3), taught=False),
)
DENSE = ARMS[0]
DISTILLATION = Distillation()
SUITES = {suite.name: suite for suite in (Suite("trec", None, 3), Suite("banking77", 4000, 5))}


@dataclass
class Bench:
    """One data set with one seed: the dense models, their statistics and decompositions, made once."""

    suite: Suite
    seed: int
    holdout: float
    models: Path
    dense_rate: float = 0.0
    statistics: dict[bool, calibration.Statistics] = field(default_factory=dict)
    subspaces: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = str(Path(os.environ["RANKFOLD_MODELS"]) / MODEL)
        folder = str(Path(os.environ["RANKFOLD_DATA"]) / self.suite.name)
        self.tokenizer = TASK.processor(path)
        train = Source(path=folder, limit=self.suite.rows)
        section = DataSection(
            train=train, evaluation=Source(path=folder, split="test"), holdout=self.holdout, calibration=Calibration()
        )
        self.data = data.prepare(section, TASK, self.tokenizer, self.suite.max_length, self.seed)
        torch.manual_seed(self.seed)
        self.probed = models.load_dense(path, TASK, self.data.labels)
        adapt.probe_head_(self.probed, list(data.batches(self.data.train, TASK, self.tokenizer, 32)))

    @cached_property
    def adapted(self) -> Any:
        """The dense model trained on the same rows with the same seed; trained here where it is not there yet."""
        folder = self.folder(DENSE, 1.0, self.dense_rate)
        if not (folder / "model.safetensors").is_file():
            model = copy.deepcopy(self.probed)
            self.train(model, self.dense_rate, None)
            self.save(model, None, folder)
        return storage.load(folder, TASK.name)

    def moments(self, *, adapted: bool) -> calibration.Statistics:
        """Those that every method needs, of the adapted or of the probed model."""
        if adapted not in self.statistics:
            torch.manual_seed(self.seed)
            sample = data.batches(self.data.calibration, TASK, self.tokenizer, 32)
            self.statistics[adapted] = calibration.calibrate(
                copy.deepcopy(self.adapted if adapted else self.probed),
                sample,
                Jactus().needs(),
                loss=calibration.own_label_loss if adapted else calibration.model_loss,
            )
        return self.statistics[adapted]

    def start(self, arm: Arm, budget: float) -> tuple[Any, planning.Plan | None]:
        """The untrained model of an arm, and its plan."""
        model, method = copy.deepcopy(self.adapted if arm.taught else self.probed), arm.method
        if method is None:
            return model, None
        if arm.name not in self.subspaces:
            self.subspaces[arm.name] = factorize.decompose(model, method, self.moments(adapted=arm.taught))
        found = self.subspaces[arm.name]
        plan = planning.allocate(
            factorize.spectra(model, found), budget=budget, strategy=arm.strategy, multiple_of=MULTIPLE_OF
        )
        torch.manual_seed(self.seed)
        return factorize.factorize_(model, method, {}, plan, subspaces=found), plan

    def accuracy(self, model: Any, split: Any) -> float:
        """On a tokenized split."""
        found = data.outcomes(model, TASK, data.batches(split, TASK, self.tokenizer, 64))
        return float((found.predictions == found.labels).mean())

    def run(self, arm: Arm, budget: float, learning_rate: float) -> dict[str, Any]:
        """Train one arm and measure it: on the held-out tenth where there is one, else on test."""
        model, plan = self.start(arm, budget)
        split: Any = self.data.validation if self.holdout else self.data.evaluation
        before, trained, begun = self.accuracy(model, split), adapt.trainable(model), time.monotonic()
        history = self.train(model, learning_rate, self.adapted if arm.taught else None)
        seconds = time.monotonic() - begun
        factorize.fold_(model)
        self.save(model, plan, self.folder(arm, budget, learning_rate))
        return {
            "accuracy": self.accuracy(model, split),
            "before_training": before,
            "trainable": trained,
            "kept": plan.parameters / plan.dense_parameters if plan else 1.0,
            "final_loss": history[-1]["loss"],
            "seconds": round(seconds, 1),
            "rows": {"train": len(self.data.train), "measured": len(split)},
            "digests": {name: fact["digest"] for name, fact in self.data.facts.items() if name != "labels"},
        }

    def train(self, model: Any, learning_rate: float, teacher: Any | None) -> adapt.History:
        """The recipe that all arms share."""
        training = Training(epochs=self.suite.epochs, learning_rate=learning_rate)
        with tempfile.TemporaryDirectory() as scratch:
            return adapt.adapt_(
                model,
                TASK,
                self.tokenizer,
                self.data.train,
                None,
                training,
                folder=Path(scratch) / "checkpoints",
                seed=self.seed,
                teacher=teacher,
                distillation=DISTILLATION,
            )

    def folder(self, arm: Arm, budget: float, learning_rate: float) -> Path:
        """Where a trained model lies; `deployment.py` looks for the final ones."""
        if self.holdout:
            return self.models / "select" / f"{self.suite.name}-{arm.name}-{learning_rate:g}"
        return self.models / f"{self.suite.name}-{arm.name}-{budget}-{self.seed}"

    def save(self, model: Any, plan: planning.Plan | None, folder: Path) -> None:
        """The folded model with its plan, config and tokenizer."""
        storage.save_model(model, self.tokenizer, folder)
        if plan is not None:
            plan.save(folder / "plan.json")


class Rows:
    """The JSON lines file of results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def find(self, **key: Any) -> list[dict[str, Any]]:
        """Rows with these values."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in key.items())]

    def add(self, row: dict[str, Any]) -> None:
        """Append one row."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        told = ("export", "phase", "suite", "arm", "budget", "seed", "learning_rate", "accuracy")
        progress.note(" ".join(f"{key}={row[key]}" for key in told if key in row))


def select(rows: Rows, suite: Suite, arms: Sequence[Arm], folder: Path) -> None:
    """One run per arm and learning rate on nine tenths of train; the dense arm first, which teaches the others."""
    bench: Bench | None = None
    for arm in arms:
        for learning_rate in arm.learning_rates:
            key = {"phase": "select", "suite": suite.name, "arm": arm.name, "learning_rate": learning_rate}
            if not rows.find(**key):
                bench = bench or Bench(suite, seed=0, holdout=0.1, models=folder)
                bench.dense_rate = best_rate(rows, suite, DENSE) if arm.taught else 0.0
                budget = SELECT_BUDGET if arm.method else 1.0
                found = bench.run(arm, budget, learning_rate)
                rows.add(key | {"budget": budget, "seed": 0} | found | _record(arm, suite))


def best_rate(rows: Rows, suite: Suite, arm: Arm) -> float:
    """The learning rate with the best held-out accuracy; of equals the lower one."""
    found = rows.find(phase="select", suite=suite.name, arm=arm.name)
    return max(found, key=lambda row: (row["accuracy"], -row["learning_rate"]))["learning_rate"]


def final(rows: Rows, suite: Suite, arms: Sequence[Arm], seed: int, folder: Path) -> None:
    """Every arm and budget at its chosen learning rate, measured on test."""
    bench: Bench | None = None
    for arm in arms:
        for budget in BUDGETS if arm.method else (1.0,):
            key = {"phase": "final", "suite": suite.name, "arm": arm.name, "budget": budget, "seed": seed}
            if rows.find(**key):
                continue
            bench = bench or Bench(suite, seed, 0.0, folder, dense_rate=best_rate(rows, suite, DENSE))
            rate = best_rate(rows, suite, arm)
            found = bench.run(arm, budget, rate)
            rows.add(key | {"learning_rate": rate} | found | _record(arm, suite))


def _record(arm: Arm, suite: Suite) -> dict[str, Any]:
    return {
        "method": repr(arm.method),
        "taught": repr(DISTILLATION) if arm.taught else None,
        "strategy": arm.strategy,
        "epochs": suite.epochs,
        "multiple_of": MULTIPLE_OF,
        "model": MODEL,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "versions": versions(),
    }


def main() -> None:
    """Select, then final, for each data set named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=sorted(SUITES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/comparison.jsonl"))
    parser.add_argument("--arms", nargs="+", choices=[arm.name for arm in ARMS], default=[arm.name for arm in ARMS])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--models", type=Path, default=Path("build/comparison"))
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    progress.set_level("normal")
    models.quiet_libraries()
    rows = Rows(arguments.out)
    arms = [arm for arm in ARMS if arm.name in arguments.arms]
    for name in arguments.suites:
        select(rows, SUITES[name], arms, arguments.models)
        for seed in arguments.seeds:
            final(rows, SUITES[name], arms, seed, arguments.models)


if __name__ == "__main__":
    main()
