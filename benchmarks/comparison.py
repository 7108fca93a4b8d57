"""Compare ways to a compressed model on real data, one recipe for all arms of a suite; one JSON row per training run.

    RANKFOLD_MODELS=... RANKFOLD_DATA=... python benchmarks/comparison.py trec banking77 --models build/comparison

Every compressed arm, the rivals' too, starts from the dense model that was fine-tuned on the same rows with the same
seed, and learns from the labels and from that model; arms that end in `-pretrained` start from the checkpoint and learn
from the labels alone. Learning rates are chosen per arm and data set on rows held out of train (seed 0, 30 % budget),
never on test; the final runs train on all of train, without choosing a checkpoint, and are measured on the test set.
Suites with no epochs measure truncation alone. Rows that are in the file already are not run again, so an interrupted
comparison goes on; `--models` holds the trained models. benchmarks/suites.py has the suites and arms.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from suites import ARMS, DENSE, SUITES, Arm, Suite
from training_memory import training_bytes

from compressor import adapt, calibration, data, factorize, models, planning, probing, progress, storage
from compressor.distillation import distillation_loss
from compressor.machine import machine, versions
from compressor.methods.jactus import Jactus
from compressor.recipe import Distillation
from compressor.tasks.base import Outcomes

SELECT_BUDGET = 0.3
MULTIPLE_OF = 8
DISTILLATION = Distillation()


@dataclass
class Bench:
    """One suite with one seed: the dense models, their statistics and decompositions, made once."""

    suite: Suite
    seed: int
    holdout: float
    models: Path
    dense_rate: float = 0.0
    statistics: dict[bool, calibration.Statistics] = field(default_factory=dict)
    subspaces: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.task, path = self.suite.task, self.suite.checkpoint
        self.processor: Any = self.suite.processor(path)
        section = self.suite.section(holdout=self.holdout)
        self.data = data.prepare(section, self.task, self.processor, self.suite.max_length, self.seed)
        torch.manual_seed(self.seed)
        self.probed = models.load_dense(path, self.task, self.data.labels)
        probing.probe_head_(self.probed, self.batches(self.data.train, 32))

    def batches(self, rows: Any, size: int) -> Any:
        """Batches to learn from, kept where they are small."""
        found = data.batches(rows, self.task, self.processor, size)
        return found if "image" in rows.column_names else list(found)

    @cached_property
    def adapted(self) -> Any:
        """The dense model trained on the same rows with the same seed; trained here where it is not there yet."""
        folder = self.folder(DENSE, 1.0, self.dense_rate)
        if not (folder / "model.safetensors").is_file():
            model = copy.deepcopy(self.probed)
            self.train(model, self.dense_rate, None)
            self.save(model, None, folder)
        return storage.load(folder, self.task.name)

    def moments(self, *, adapted: bool) -> calibration.Statistics:
        """Those that every method needs, of the adapted or of the probed model."""
        if adapted not in self.statistics:
            torch.manual_seed(self.seed)
            terms = self.task.terms
            self.statistics[adapted] = calibration.calibrate(
                copy.deepcopy(self.adapted if adapted else self.probed),
                progress.track(self.batches(self.data.calibration, self.suite.calibration.batch_size), "calibrating"),
                Jactus().needs(),
                loss=partial(calibration.own_label_loss, terms=terms) if adapted else calibration.model_loss,
                terms=terms,
            )
        return self.statistics[adapted]

    def start(self, arm: Arm, budget: float) -> tuple[Any, planning.Plan | None]:
        """The untrained model of an arm, and its plan."""
        model, method = copy.deepcopy(self.adapted if arm.taught else self.probed), arm.method
        if method is None:
            return model, None
        if arm.name not in self.subspaces:
            self.subspaces = {  # those of one arm at a time: a language model's fill gigabytes
                arm.name: factorize.decompose(model, method, self.moments(adapted=arm.taught))
            }
        found = self.subspaces[arm.name]
        plan = planning.allocate(
            factorize.spectra(model, found), budget=budget, strategy=arm.strategy, multiple_of=MULTIPLE_OF
        )
        torch.manual_seed(self.seed)
        return factorize.factorize_(model, method, {}, plan, subspaces=found), plan

    def quality(self, model: Any, split: Any) -> dict[str, float]:
        """Accuracy or perplexity on an encoded split."""
        posed = progress.track(data.posed(split, self.task, self.processor), "measuring")
        return {self.task.qualities[0]: _worth(self.task.qualities[0], data.outcomes(model, self.task, posed))}

    def run(self, arm: Arm, budget: float, learning_rate: float) -> dict[str, Any]:
        """Train one arm and measure it: on the held-out rows where there are some, else on test."""
        model, plan = self.start(arm, budget)
        split: Any = self.data.validation if self.holdout else self.suite.measured(self.data.evaluation)
        finish = _with_lora_(model, arm.lora) if arm.lora else partial(factorize.fold_, model)
        trained = adapt.trainable(model)
        before = self.quality(model, split) if self.suite.before else {}
        found: dict[str, Any] = {"trainable": trained, "kept": plan.parameters / plan.dense_parameters if plan else 1.0}
        if self.suite.epochs:
            teacher = self.adapted if arm.taught else None
            found["training_bytes"] = self.memory(model, teacher)
            begun = time.monotonic()
            history = self.train(model, learning_rate, teacher)
            found |= {"final_loss": history[-1]["loss"], "seconds": round(time.monotonic() - begun, 1)}
        model = finish()
        self.save(model, plan, self.folder(arm, budget, learning_rate))
        gc.collect()  # a Trainer and its optimizer hold each other
        after = self.quality(model, split) if self.suite.epochs else before
        return {
            **after,
            "before_training": next(iter(before.values()), None),
            **found,
            "rows": {"train": len(self.data.train), "measured": len(split)},
            "digests": {name: fact["digest"] for name, fact in self.data.facts.items() if name != "labels"},
        }

    def memory(self, model: Any, teacher: Any | None) -> dict[str, int]:
        """What one step of training holds, on the longest batch."""
        batch = data.batches(self.data.train, self.task, self.processor, self.suite.batch_size)[-1]
        model.train()
        if teacher is None:
            return training_bytes(model, lambda: model(**batch).loss)
        teacher.eval()
        return training_bytes(
            model, lambda: distillation_loss(model, teacher, batch, DISTILLATION, self.task.terms)[0]
        ) | {"teacher": sum(one.numel() * one.element_size() for one in teacher.parameters())}

    def train(self, model: Any, learning_rate: float, teacher: Any | None) -> adapt.History:
        """The recipe that all arms share; nothing where the suite trains nothing."""
        if not self.suite.epochs:
            return []
        with tempfile.TemporaryDirectory() as scratch:
            return adapt.adapt_(
                model,
                self.task,
                self.processor,
                self.data.train,
                None,
                self.suite.training(learning_rate),
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
        storage.save_model(model, self.processor, folder)
        if plan is not None:
            plan.save(folder / "plan.json")


def _worth(quality: str, found: Outcomes) -> float:
    if quality == "perplexity":
        return float(np.exp(-found.values.mean()))
    return float((found.predictions == found.labels).mean())


def _with_lora_(model: Any, rank: int) -> Callable[[], Any]:
    """Lay adapters (peft's, alpha = 2 r) over the targets; they and the head are trained. () merges them."""
    from peft import LoraConfig, get_peft_model

    heads = set(models.head_parameters(model).values())
    targets = [target.name for target in models.find_targets(model)]
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    for head in heads:
        head.requires_grad_(True)
    return adapted.merge_and_unload


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
        told = (
            "export",
            "phase",
            "suite",
            "arm",
            "budget",
            "seed",
            "learning_rate",
            "accuracy",
            "perplexity",
            "seconds",
        )
        progress.note(" ".join(f"{key}={row[key]}" for key in told if key in row))


def select(rows: Rows, suite: Suite, arms: Sequence[Arm], folder: Path) -> None:
    """One run per arm and learning rate on nine tenths of train; the dense arm first, which teaches the others."""
    bench: Bench | None = None
    for arm in arms:
        rates = suite.rates[arm.name]
        for learning_rate in rates if len(rates) > 1 else ():
            key = {"phase": "select", "suite": suite.name, "arm": arm.name, "learning_rate": learning_rate}
            if not rows.find(**key):
                bench = bench or Bench(suite, seed=0, holdout=suite.select_holdout, models=folder)
                bench.dense_rate = best_rate(rows, suite, DENSE) if arm.taught else 0.0
                budget = SELECT_BUDGET if arm.method else 1.0
                found = bench.run(arm, budget, learning_rate)
                rows.add(key | {"budget": budget, "seed": 0} | found | _record(arm, suite))


def best_rate(rows: Rows, suite: Suite, arm: Arm) -> float:
    """The learning rate with the best held-out accuracy; of equals the lower one; the only one where there is one."""
    if len(suite.rates[arm.name]) == 1:
        return suite.rates[arm.name][0]
    found = rows.find(phase="select", suite=suite.name, arm=arm.name)
    return max(found, key=lambda row: (row["accuracy"], -row["learning_rate"]))["learning_rate"]


def final(rows: Rows, suite: Suite, arms: Sequence[Arm], seed: int, folder: Path) -> None:
    """Every arm and budget at its chosen learning rate, measured on test."""
    bench: Bench | None = None
    for arm in arms:
        for budget in suite.budgets if arm.method else (1.0,):
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
        "lora": arm.lora,
        "taught": repr(DISTILLATION) if arm.taught else None,
        "strategy": arm.strategy,
        "epochs": suite.epochs,
        "batch_size": suite.batch_size,
        "max_length": suite.max_length,
        "image_size": suite.image_size,
        "calibration": suite.calibration.model_dump(mode="json"),
        "multiple_of": MULTIPLE_OF,
        "model": suite.model,
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
    parser.add_argument("--seeds", nargs="+", type=int, help="default: the suite's")
    parser.add_argument("--models", type=Path, default=Path("build/comparison"))
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    progress.set_level("normal")
    models.quiet_libraries()
    rows = Rows(arguments.out)
    for name in arguments.suites:
        suite = SUITES[name]
        arms = [arm for arm in ARMS if arm.name in suite.rates and arm.name in arguments.arms]
        select(rows, suite, arms, arguments.models)
        for seed in arguments.seeds or suite.seeds:
            final(rows, suite, arms, seed, arguments.models)


if __name__ == "__main__":
    main()
