"""Compare ways to a compressed classifier on real data, one recipe for all arms; one JSON row per training run.

    RANKFOLD_MODELS=... RANKFOLD_DATA=... python benchmarks/comparison.py trec banking77 --keep build/comparison

Learning rates are chosen per arm and data set on a held-out tenth of train (seed 0, 30 % budget), never on test; the
final runs train on all of train, without choosing a checkpoint, and are measured on the whole test set. Rows that are
in the file already are not run again, so an interrupted comparison goes on. `--keep DIR` saves the folded models.
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
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from compressor import adapt, calibration, data, factorize, models, planning, progress, storage
from compressor.machine import machine, versions
from compressor.methods.base import Method
from compressor.methods.jactus import Jactus
from compressor.methods.spectral import Spectral
from compressor.recipe import Calibration, DataSection, Source, Training

MODEL = "minilm-l6"
BUDGETS = (0.5, 0.3)
SEEDS = (0, 1)
SELECT_BUDGET = 0.3
MULTIPLE_OF = 8


@dataclass(frozen=True)
class Arm:
    """One way; `method` None is full fine-tuning of the dense model."""

    name: str
    method: Method | None
    strategy: Literal["gain", "uniform"]
    learning_rates: tuple[float, ...]


@dataclass(frozen=True)
class Suite:
    """One data set and how long every arm trains on it."""

    name: str
    rows: int | None
    epochs: float
    max_length: int = 64


ARMS = (
    Arm("dense", None, "gain", (2e-4, 4e-4)),
    Arm("svdllm-lora", Spectral(metric="input", train="none", updates=16), "uniform", (1e-3, 2e-3)),
    Arm("jactus", Jactus(), "gain", (1e-3, 2e-3)),
    Arm("svd-core", Spectral(metric="plain"), "uniform", (2e-3, 4e-3)),
)
SUITES = {suite.name: suite for suite in (Suite("trec", None, 3), Suite("banking77", 4000, 5))}


@dataclass
class Bench:
    """One data set with one seed: the probed dense model, its statistics and decompositions, made once."""

    suite: Suite
    seed: int
    holdout: float
    subspaces: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = str(Path(os.environ["RANKFOLD_MODELS"]) / MODEL)
        folder = str(Path(os.environ["RANKFOLD_DATA"]) / self.suite.name)
        self.tokenizer = models.load_tokenizer(path)
        train = Source(path=folder, limit=self.suite.rows)
        section = DataSection(
            train=train, evaluation=Source(path=folder, split="test"), holdout=self.holdout, calibration=Calibration()
        )
        self.data = data.prepare(section, self.tokenizer, self.suite.max_length, self.seed)
        torch.manual_seed(self.seed)
        self.probed = models.load_dense(path, "text-classification", self.data.labels)
        adapt.probe_head_(self.probed, list(data.batches(self.data.train, self.tokenizer, 32)))
        sample = data.batches(self.data.calibration, self.tokenizer, 32)
        self.statistics = calibration.calibrate(self.probed, sample, Jactus().needs())

    def start(self, arm: Arm, budget: float) -> tuple[Any, planning.Plan | None]:
        """The untrained model of an arm, and its plan."""
        model = copy.deepcopy(self.probed)
        if arm.method is None:
            return model, None
        if arm.name not in self.subspaces:
            self.subspaces[arm.name] = factorize.decompose(model, arm.method, self.statistics)
        found = self.subspaces[arm.name]
        plan = planning.allocate(
            factorize.spectra(model, found), budget=budget, strategy=arm.strategy, multiple_of=MULTIPLE_OF
        )
        torch.manual_seed(self.seed)
        return factorize.factorize_(model, arm.method, self.statistics, plan, subspaces=found), plan

    def accuracy(self, model: Any, split: Any) -> float:
        """On a tokenized split."""
        batches = list(data.batches(split, self.tokenizer, 64))
        labels = np.concatenate([batch["labels"].numpy() for batch in batches])
        return float((data.predict(model, batches).argmax(-1) == labels).mean())

    def run(self, arm: Arm, budget: float, learning_rate: float, keep: Path | None = None) -> dict[str, Any]:
        """Train one arm and measure it: on the held-out tenth where there is one, else on test."""
        model, plan = self.start(arm, budget)
        split: Any = self.data.validation if self.holdout else self.data.evaluation
        before, trained, begun = self.accuracy(model, split), adapt.trainable(model), time.monotonic()
        training = Training(epochs=self.suite.epochs, learning_rate=learning_rate)
        with tempfile.TemporaryDirectory() as folder:
            history = adapt.adapt_(
                model, self.tokenizer, self.data.train, None, training, folder=Path(folder) / "c", seed=self.seed
            )
        seconds = time.monotonic() - begun
        factorize.fold_(model)
        if keep is not None:
            self.save(model, plan, keep)
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
        progress.note(
            " ".join(
                f"{key}={row[key]}" for key in ("phase", "suite", "arm", "budget", "seed", "learning_rate", "accuracy")
            )
        )


def select(rows: Rows, suite: Suite, arms: Sequence[Arm]) -> None:
    """One run per arm and learning rate on nine tenths of train."""
    bench: Bench | None = None
    for arm in arms:
        for learning_rate in arm.learning_rates:
            key = {"phase": "select", "suite": suite.name, "arm": arm.name, "learning_rate": learning_rate}
            if not rows.find(**key):
                bench = bench or Bench(suite, seed=0, holdout=0.1)
                budget = SELECT_BUDGET if arm.method else 1.0
                rows.add(
                    key | {"budget": budget, "seed": 0} | bench.run(arm, budget, learning_rate) | _record(arm, suite)
                )


def best_rate(rows: Rows, suite: Suite, arm: Arm) -> float:
    """The learning rate with the best held-out accuracy; of equals the lower one."""
    found = rows.find(phase="select", suite=suite.name, arm=arm.name)
    return max(found, key=lambda row: (row["accuracy"], -row["learning_rate"]))["learning_rate"]


def final(rows: Rows, suite: Suite, arms: Sequence[Arm], keep: Path | None) -> None:
    """Every arm, budget and seed at its chosen learning rate, measured on test."""
    for seed in SEEDS:
        bench: Bench | None = None
        for arm in arms:
            for budget in BUDGETS if arm.method else (1.0,):
                key = {"phase": "final", "suite": suite.name, "arm": arm.name, "budget": budget, "seed": seed}
                if rows.find(**key):
                    continue
                bench = bench or Bench(suite, seed=seed, holdout=0.0)
                rate = best_rate(rows, suite, arm)
                folder = keep / f"{suite.name}-{arm.name}-{budget}-{seed}" if keep else None
                rows.add(key | {"learning_rate": rate} | bench.run(arm, budget, rate, folder) | _record(arm, suite))


def _record(arm: Arm, suite: Suite) -> dict[str, Any]:
    return {
        "method": repr(arm.method),
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
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    progress.set_level("normal")
    models.quiet_libraries()
    rows = Rows(arguments.out)
    arms = [arm for arm in ARMS if arm.name in arguments.arms]
    for name in arguments.suites:
        select(rows, SUITES[name], arms)
        final(rows, SUITES[name], arms, arguments.keep)


if __name__ == "__main__":
    main()
