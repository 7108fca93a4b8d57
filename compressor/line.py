"""The straight line over one run folder, one method per stage.

Every stage is saved when it ends and read back from disk, in the run that made it as in one that resumes, so that both
go on with the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from compressor import (
    adapt,
    devices,
    factorize,
    feasible,
    measured,
    memory,
    models,
    planning,
    probing,
    progress,
    subspaces,
    targets,
    tensors,
)
from compressor.adapt import History
from compressor.allocation import Spectrum
from compressor.artifact import MANIFEST, Artifact, seal
from compressor.calibration import Statistics, calibrate, model_loss, own_label_loss
from compressor.correction import correct_
from compressor.factory import RECORD
from compressor.files import read_json, write_json
from compressor.machine import versions
from compressor.methods.base import Subspace
from compressor.passes import in_passes
from compressor.planning import Plan
from compressor.recipe import Distillation, Recipe, dump
from compressor.run_folder import Run
from compressor.sources import HEAD, Sources

CORRECTED = "corrected.safetensors"
SUBSPACES = "subspaces.safetensors"
STATISTICS = "statistics"  # a folder: a file for each pass over the sample
PROBED = 4096  # training rows that the head is probed on: enough for its gradients to mean something


class Line:
    """The line over one run folder."""

    def __init__(self, recipe: Recipe, run: Run, sources: Sources | None = None) -> None:
        """`sources`: what the line reads, where it is another's too or code of the caller's makes the model."""
        self.recipe, self.run, self.folder = recipe, run, run.folder
        self.sources = sources or Sources(recipe, run)
        models.quiet_libraries()

    # ---- the stages ----

    def probe(self) -> None:
        """Train the head alone: calibration's gradients, and both trainings, start from it."""
        if self.run.finished("probe"):
            return
        model = self.sources.dense()
        feasible.require(self.sources, model)
        with self.run.stage("probe", "Probing the head", [HEAD]) as scratch:
            head = targets.head_parameters(model)
            if head:
                with devices.lent(model):
                    probing.probe_head_(model, self.sources.drawn(PROBED, 32))
            tensors.save_tensors(head, scratch / HEAD)

    def baseline(self) -> None:
        """The dense model on the same task."""
        if self.run.finished("baseline"):
            return
        section = self.recipe.baseline
        model = self.sources.given(section.path) if section.path else self.sources.dense()
        with self.run.stage("baseline", "Training the dense baseline", ["baseline"]) as scratch:
            history: History = []
            if section.train == "full" and not section.path:
                history = self._train(model, section, "baseline")
            self.sources.save(model, scratch / "baseline")
            adapt.save_history(scratch / "baseline" / "history.json", history)

    def calibrate(self) -> Statistics:
        """The moments that the method needs."""
        if not self.run.finished("calibrate"):
            model = self.sources.start()
            with self.run.stage("calibrate", "Calibrating", [STATISTICS]) as scratch, devices.lent(model):
                (scratch / STATISTICS).mkdir()
                free = memory.free(next(model.parameters()).device)
                passes = in_passes(self.sources.targets(model), self.recipe.method.needs(), free)
                for number, names in enumerate(passes, 1):
                    title = "calibrating" if len(passes) == 1 else f"calibrating, pass {number} of {len(passes)}"
                    self._gather(model, names, title).save(scratch / STATISTICS / f"{number:03}.safetensors")
        return Statistics.load(self.folder / STATISTICS)

    def _gather(self, model: Any, names: Sequence[str], title: str) -> Statistics:
        """The moments of some targets; every pass draws the same labels of the model's own."""
        terms = self.sources.task.terms
        loss = partial(own_label_loss, terms=terms) if self.recipe.starts_adapted else model_loss
        tracked, needs = progress.track(self.sources.sample(), title), self.recipe.method.needs()
        with devices.fork_rng(model):
            return calibrate(model, tracked, needs, targets=names, loss=loss, terms=terms)

    @cached_property
    def subspaces(self) -> Mapping[str, Subspace]:
        """The decompositions, as far as any plan may need them; made once, until the ranks are planned."""
        model = self.sources.start()
        names = [target.name for target in self.sources.targets(model)]
        return factorize.decompose(
            model, self.recipe.method, self.calibrate(), targets=names, layout=self.recipe.plan.layout
        )

    def plan(self) -> Plan:
        """The ranks."""
        if not self.run.finished("plan"):
            section = self.recipe.plan
            outputs = ["plan.json", SUBSPACES, "spectra.json", "layers.json"]
            outputs += [measured.RECORD] if section.measures else []
            with self.run.stage("plan", "Planning the ranks", outputs) as scratch:
                model = self.sources.start()
                write_json(scratch / "layers.json", [asdict(one) for one in self.sources.considered(model)])
                spectra = factorize.spectra(model, self.subspaces)
                plan = self._choose(spectra, scratch)
                plan.save(scratch / "plan.json")
                subspaces.save(self.subspaces, plan, scratch / SUBSPACES)
                (scratch / "spectra.json").write_text(json.dumps(_curves(spectra)) + "\n")
                for layer in plan.layers:
                    progress.detail(f"  {layer.name}: {_rank(layer)}, {layer.energy:.1%} of what it gains")
            self.__dict__.pop("subspaces", None)  # twice the weights' memory, which what follows has no use for
        return Plan.load(self.folder / "plan.json")

    def _choose(self, spectra: Sequence[Spectrum], scratch: Path) -> Plan:
        section = self.recipe.plan
        if section.path:
            return planning.replayed(Plan.load(Path(section.path)), spectra)
        if not section.measures:
            return planning.by_recipe(section, spectra)
        plan, record = measured.choose(self, spectra, scratch)
        write_json(scratch / measured.RECORD, record)
        return plan

    def correct(self) -> None:
        """Where the recipe says so, decompose every layer anew, in order, for what it reads behind compressed ones."""
        if not self.recipe.adapt.correct or self.run.finished("correct"):
            return
        dense, model = self.sources.start(), self.factorized()
        with (
            self.run.stage("correct", "Correcting the layers in order", [CORRECTED]) as scratch,
            devices.lent(dense),
            devices.lent(model),
        ):
            correct_(model, dense, self.recipe.method, self.calibrate(), self.plan(), self.sources.sample())
            tensors.save_tensors(tensors.state_of(model), scratch / CORRECTED)

    def adapt(self) -> None:
        """Train the cores."""
        if self.run.finished("adapt"):
            return
        model = self.factorized()
        if self.recipe.adapt.correct:
            tensors.load_tensors_(model, self.folder / CORRECTED)
        with self.run.stage("adapt", "Adapting the compressed model", ["cores.safetensors", "history.json"]) as scratch:
            history: History = []
            if adapt.trainable(model):  # not an untrained core in a model without a head, which is folded as it is
                history = self._train(model, self.recipe.adapt, "adapt", self.recipe.distillation)
            tensors.save_tensors(tensors.state_of(model), scratch / "cores.safetensors")
            adapt.save_history(scratch / "history.json", history)

    def factorized(self, plan: Plan | None = None) -> Any:
        """A new copy of the model with cores in place of the planned targets, untrained; by default of its own plan."""
        found = self._planned() if plan is None else self.subspaces
        model, plan = self.sources.start(), plan or self.plan()
        torch.manual_seed(self.recipe.seed)  # behind what draws as many numbers only where it is not made yet
        return factorize.factorize_(model, self.recipe.method, {}, plan, subspaces=found)

    def _planned(self) -> Mapping[str, Subspace]:
        """The directions of the run's own plan, which are kept beside it."""
        self.plan()
        kept = self.folder / SUBSPACES
        return subspaces.load(kept) if kept.is_file() else self.subspaces  # runs of before it was kept have none

    def fold(self) -> Artifact:
        """The artifact: the folded model, its manifest, no scratch."""
        if not self.run.finished("fold"):
            model = self.factorized()
            tensors.load_tensors_(model, self.folder / "cores.safetensors")
            with self.run.stage("fold", "Folding", ["model.safetensors", *self._sidecars()]) as scratch:
                factorize.fold_(model)
                self.sources.save(model, scratch)
        if not (self.folder / MANIFEST).is_file():
            seal(self.folder, self.facts())
        return Artifact.open(self.folder)

    # ---- helpers ----

    def _train(self, model: Any, training: Any, name: str, distillation: Distillation | None = None) -> History:
        progress.note(f"  on {devices.described()}")
        with devices.lent(model):
            return adapt.adapt_(
                model,
                self.sources.task,
                self.sources.processor,
                self.sources.data.train,
                self.sources.data.validation,
                training,
                folder=self.run.scratch / f"{name}-checkpoints",
                seed=self.recipe.seed,
                title={"adapt": "adapting", "baseline": "training the baseline"}[name],
                teacher=self.sources.models.adapted if distillation else None,
                distillation=distillation,
            )

    def _sidecars(self) -> list[str]:
        """Config and tokenizer or image processor files, as the baseline's folder has them."""
        other = {"model.safetensors", "history.json"}
        return sorted(
            file.name for file in (self.folder / "baseline").iterdir() if file.is_file() and file.name not in other
        )

    def facts(self) -> dict[str, Any]:
        """What the manifest records beside the digests."""
        plan = self.plan()
        return {
            "recipe": dump(self.recipe),
            "task": self.recipe.model.task,
            "labels": self.sources.data.labels,
            "data": dict(self.sources.data.facts),
            "trust_remote_code": self.recipe.model.trust_remote_code,
            "factory": read_json(self.folder / RECORD) if self.sources.models.factory else None,
            "base_digest": self.sources.digest(),
            "parameters": {
                "targets": plan.dense_parameters,
                "targets_deployed": plan.parameters,
                "model": tensors.stored_parameters(self.folder / "baseline" / "model.safetensors"),
                "model_deployed": tensors.stored_parameters(self.folder / "model.safetensors"),
            },
            "versions": versions(),
            "seconds": self.run.seconds,
        }


def _rank(layer: planning.PlanLayer) -> str:
    return "dense" if layer.rank is None else f"rank {layer.rank} (as dense at {layer.break_even})"


def _curves(spectra: Sequence[Spectrum], points: int = 64) -> dict[str, dict[str, list[float]]]:
    """Cumulative gain against rank for each target, thinned to a readable number of points."""
    curves = {}
    for spectrum in spectra:
        captured = torch.tensor(spectrum.gains).cumsum(0) / (spectrum.total or 1.0)
        ranks = torch.linspace(1, len(captured), min(points, len(captured))).round().long()
        curves[spectrum.name] = {"rank": ranks.tolist(), "energy": [round(float(captured[r - 1]), 5) for r in ranks]}
    return curves
