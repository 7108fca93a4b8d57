"""One suite with one seed: the dense models, their statistics and decompositions, made once; and the run of an arm."""

from __future__ import annotations

import copy
import gc
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import adapters
import numpy as np
import rows
import torch
from arms import DENSE, MATCHED, MATCHED_BUDGET, Arm
from suites import Suite
from training_memory import further_bytes, training_bytes

from compressor import (
    adapt,
    calibration,
    correction,
    data,
    devices,
    factorize,
    lessons,
    models,
    planning,
    probing,
    progress,
    storage,
    targets,
)
from compressor.allocation import Spectrum
from compressor.distillation import Lesson, distillation_loss, lesson_of, one_copy
from compressor.methods.jactus import Jactus
from compressor.recipe import Distillation
from compressor.tasks.base import Outcomes

MULTIPLE_OF = 8
DISTILLATION = Distillation()


@dataclass
class Bench:
    """One suite with one seed; `holdout` of train is measured on in place of the test sets where it is not 0."""

    suite: Suite
    seed: int
    holdout: float
    models: Path
    dense_rate: float = 0.0
    probe: bool = True
    kept: tuple[str, ...] = (DENSE.name,)  # arms whose trained models are saved
    statistics: dict[bool, calibration.Statistics] = field(default_factory=dict)
    subspaces: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.task, path = self.suite.task, self.suite.checkpoint
        self.processor: Any = self.suite.processor(path)
        self.data = rows.prepare(self.suite, self.processor, holdout=self.holdout, seed=self.seed)
        torch.manual_seed(self.seed)
        self.probed = models.load_dense(path, self.task, self.data.labels)
        if self.probe:
            with devices.lent(self.probed):
                probing.probe_head_(self.probed, self.batches(self.data.train, 32))

    def batches(self, encoded: Any, size: int) -> Any:
        """Batches to learn from, kept where they are small."""
        found = data.batches(encoded, self.task, self.processor, size)
        return found if "image" in encoded.column_names else list(found)

    @property
    def distillation(self) -> Distillation:
        """What taught arms learn from their teacher."""
        return DISTILLATION

    @cached_property
    def adapted(self) -> Any:
        """The dense model trained on the same rows with the same seed; trained here where it is not there yet."""
        folder = self.folder(DENSE, 1.0, self.dense_rate)
        if not (folder / "model.safetensors").is_file():
            model = copy.deepcopy(self.probed)
            self.train(model, self.dense_rate, None)
            self.save(model, None, folder)
        return storage.load(folder, self.task.name)

    @cached_property
    def wanted(self) -> int:
        """The trained numbers that adapters with a matched count get."""
        found = adapt.trainable(self.start(MATCHED, MATCHED_BUDGET)[0])
        self.subspaces = {}
        return found

    def moments(self, *, adapted: bool) -> calibration.Statistics:
        """Those that every method needs, of the adapted or of the probed model."""
        if adapted not in self.statistics:
            torch.manual_seed(self.seed)
            terms = self.task.terms
            model = copy.deepcopy(self.adapted if adapted else self.probed)
            batches = self.batches(self.data.calibration, self.suite.calibration.batch_size)
            with devices.lent(model):
                self.statistics[adapted] = calibration.calibrate(
                    model,
                    progress.track(batches, "calibrating"),
                    Jactus().needs(),
                    loss=partial(calibration.own_label_loss, terms=terms) if adapted else calibration.model_loss,
                    terms=terms,
                )
        return self.statistics[adapted]

    def origin(self, arm: Arm) -> Any:
        """The dense model that an arm starts from."""
        return self.adapted if arm.taught else self.probed

    def decomposed(self, arm: Arm) -> Any:
        """The subspaces of a compressed arm; those of one arm at a time, for a language model's fill gigabytes."""
        if arm.name not in self.subspaces:
            assert arm.method is not None
            moments = self.moments(adapted=arm.taught) if arm.method.needs() else {}
            self.subspaces = {}
            self.subspaces[arm.name] = factorize.decompose(self.origin(arm), arm.method, moments)
        return self.subspaces[arm.name]

    def spectra(self, arm: Arm) -> list[Spectrum]:
        """What a plan compares of a compressed arm."""
        return factorize.spectra(self.origin(arm), self.decomposed(arm))

    def plan(self, arm: Arm, budget: float) -> planning.Plan:
        """The ranks of a compressed arm."""
        return planning.allocate(self.spectra(arm), budget=budget, strategy=arm.strategy, multiple_of=MULTIPLE_OF)

    def start(self, arm: Arm, budget: float) -> tuple[Any, planning.Plan | None]:
        """The untrained model of an arm, and its plan."""
        if arm.method is None:
            return copy.deepcopy(self.origin(arm)), None
        plan, found = self.plan(arm, budget), self.decomposed(arm)
        model = copy.deepcopy(self.origin(arm))
        torch.manual_seed(self.seed)
        model = factorize.factorize_(model, arm.method, {}, plan, subspaces=found)
        return (self.corrected(model, arm, plan) if arm.corrected else model), plan

    def corrected(self, model: Any, arm: Arm, plan: planning.Plan) -> Any:
        """The same, its layers decomposed anew in order."""
        assert arm.method is not None
        batches = self.batches(self.data.calibration, self.suite.calibration.batch_size)
        dense, moments = self.origin(arm), self.moments(adapted=arm.taught)
        with devices.lent(dense), devices.lent(model):
            return correction.correct_(model, dense, arm.method, moments, plan, batches)

    def quality(self, model: Any) -> dict[str, Any]:
        """Accuracy or perplexity on what is measured; of several sets also each one's, and their mean."""
        name, found = self.task.qualities[0], dict[str, float]()
        with devices.lent(model):
            for label, split in self.data.measured.items():
                posed = progress.track(data.posed(split, self.task, self.processor), f"measuring {label}")
                found[label] = _worth(name, data.outcomes(model, self.task, posed))
        mean = float(np.mean(list(found.values())))
        return {name: mean} | ({"sets": found} if len(found) > 1 else {})

    @torch.no_grad()
    def held_out_loss(self, model: Any) -> float:
        """The label loss on what is held out, averaged over its batches."""
        (split,) = self.data.measured.values()
        batches = data.batches(split, self.task, self.processor, self.suite.batch_size)
        with devices.lent(model.eval()):
            return float(np.mean([model(**devices.beside(model, batch)).loss.item() for batch in batches]))

    def run(self, arm: Arm, budget: float, learning_rate: float) -> dict[str, Any]:
        """Train one arm and measure it: on the held-out rows where there are some, else on test."""
        begun = time.monotonic()
        rank = adapters.matching_rank(self.probed, arm.adapter, self.wanted) if arm.matched else arm.rank
        model, plan = self.start(arm, budget)
        torch.manual_seed(self.seed)
        finish = adapters.lay_(model, arm.adapter, rank) if arm.adapter else partial(factorize.fold_, model)
        folder = self.folder(arm, budget, learning_rate) if arm.name in self.kept else None
        found = self.finished(arm, model, plan, finish, learning_rate, folder)
        if rank is not None:
            found["rank"] = rank
        return found | {"wall_seconds": round(time.monotonic() - begun, 1)}

    def finished(
        self,
        arm: Arm,
        model: Any,
        plan: planning.Plan | None,
        finish: Callable[[], Any],
        learning_rate: float,
        folder: Path | None = None,
    ) -> dict[str, Any]:
        """Train what requires gradients, fold or merge (`finish`), save where there is a folder for it, and measure."""
        trains = bool(self.suite.epochs) and arm.learns != "nothing"
        before = self.quality(model) if self.suite.before or not trains else {}
        costs = self.learned(model, learning_rate, self.adapted if arm.taught else None) if trains else {"trainable": 0}
        model = finish()
        if folder is not None:
            self.save(model, plan, folder)
        gc.collect()  # a Trainer and its optimizer hold each other
        if self.holdout and self.task.chooses_by == "loss":
            costs["held_out_loss"] = self.held_out_loss(model)
        after = self.quality(model) if trains else before
        dense = sum(one.out_features * one.in_features for one in self.targets)
        targets = plan.parameters if plan else dense
        return {
            **after,
            "before_training": before.get(self.task.qualities[0]),
            "kept": targets / dense,
            **costs,
            "retained": {"targets": targets, "model": sum(one.numel() for one in model.parameters())},
            "rows": {"train": len(self.data.train), "measured": sum(map(len, self.data.measured.values()))},
            "digests": dict(self.data.digests),
        }

    def learned(self, model: Any, learning_rate: float, teacher: Any | None) -> dict[str, Any]:
        """Train, and say what it took."""
        found = {"trainable": adapt.trainable(model), "training_bytes": self.memory(model, teacher)}
        begun = time.monotonic()
        history = self.train(model, learning_rate, teacher)
        return found | {"final_loss": history[-1]["loss"], "seconds": round(time.monotonic() - begun, 1)}

    @cached_property
    def targets(self) -> tuple[targets.Target, ...]:
        """What every compressed arm compresses."""
        return targets.find_targets(self.probed)

    def memory(self, model: Any, teacher: Any | None) -> dict[str, int]:
        """What one step of training holds, on the fullest batch, as `adapt_` trains."""
        rows = len(next(iter(self.fullest.values())))
        return self.held(model, teacher, self.fullest) | {"rows": rows}

    @cached_property
    def fullest(self) -> dict[str, torch.Tensor]:
        """The batch of train with most numbers: the longest, or the one before, where that has more rows."""
        batches = data.batches(self.data.train, self.task, self.processor, self.suite.batch_size)
        return max(batches[-2:], key=lambda batch: sum(one.numel() for one in batch.values()))

    def held(self, model: Any, teacher: Any | None, batch: dict[str, torch.Tensor]) -> dict[str, int]:
        """The same on a batch; of a teacher whose lessons are not written, the weights that the model has not got."""
        model.train()
        terms = self.task.terms
        if teacher is None:
            return training_bytes(model, lambda: model(**batch).loss)
        noted = self.noted(teacher.eval())
        with nullcontext() if noted else one_copy(model, teacher):
            found = training_bytes(model, lambda: distillation_loss(model, teacher, batch, self.distillation, terms)[0])
            return found | {"teacher": 0 if noted else further_bytes(teacher, model)}

    def said(self, teacher: Any, batch: dict[str, torch.Tensor]) -> Lesson:
        """The lesson on a batch."""
        return lesson_of(teacher, batch, self.distillation, self.task.terms)

    def noted(self, teacher: Any) -> bool:
        """Whether its lessons on the training rows are written once, so that it is not in memory."""
        batches = data.batches(self.data.train, self.task, self.processor, self.suite.batch_size)
        give = lessons.giving(teacher, self.distillation, self.task.terms)
        return lessons.expected_bytes(batches.then(give)) <= lessons.MOST

    def train(self, model: Any, learning_rate: float, teacher: Any | None) -> adapt.History:
        """The recipe that all arms share; nothing where the suite trains nothing."""
        if not self.suite.epochs:
            return []
        with tempfile.TemporaryDirectory() as scratch:
            history = adapt.adapt_(
                model,
                self.task,
                self.processor,
                self.data.train,
                None,
                self.suite.training(learning_rate),
                folder=Path(scratch) / "checkpoints",
                seed=self.seed,
                teacher=teacher,
                distillation=self.distillation,
            )
        for one in (model, teacher):
            if one is not None:
                one.to("cpu")
        return history

    def folder(self, arm: Arm, budget: float, learning_rate: float) -> Path:
        """Where a trained model lies; `deployment.py` looks for the final ones."""
        if self.holdout:
            return self.models / "select" / f"{self.suite.name}-{arm.name}-{learning_rate:g}"
        return self.models / f"{self.suite.name}-{arm.name}-{budget}-{self.seed}"

    def save(self, model: Any, plan: planning.Plan | None, folder: Path) -> None:
        """The folded model with its plan, config and tokenizer, in the place of one of an earlier run."""
        scratch = folder.parent / "unfinished" / folder.name
        for place in (scratch, folder):
            shutil.rmtree(place, ignore_errors=True)
        storage.save_model(model, self.processor, scratch)
        if plan is not None:
            plan.save(scratch / "plan.json")
        scratch.rename(folder)


def _worth(quality: str, found: Outcomes) -> float:
    if quality == "perplexity":
        return float(np.exp(-found.values.mean()))
    return float((found.predictions == found.labels).mean())
