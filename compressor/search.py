"""`plan.budget: auto`: the smallest budget whose gates hold, found by trials.

    runs/x/
      search.json          the budgets there are, what every trial gave, and which one was chosen
      trials/0.500/        one trial: the run folder that this budget makes by itself, measured on the validation rows
      (all else)           the chosen trial's files, then its exports measured on the evaluation data, once

Head, baseline, statistics and dense exports do not depend on the budget: they are made once and shared by all trials.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from compressor import bisection, factorize, planning, progress, trials
from compressor.artifact import SEARCH, TRIALS, Artifact
from compressor.errors import ArtifactError, BudgetError
from compressor.exporting import export_all
from compressor.factory import allowed
from compressor.files import write_json
from compressor.line import Line
from compressor.methods.base import Subspace
from compressor.opening import open_run
from compressor.proving import measured, validate
from compressor.recipe import Budget, Recipe, dump
from compressor.run_folder import Run
from compressor.search_record import Search, TrialRecord
from compressor.sharing import share_folder
from validators.report import Report

SHARED = ("probe", "baseline", "calibrate")
CHOSEN = ("plan", "correct", "adapt", "fold")


class TrialLine(Line):
    """The line at one budget; what does not depend on the budget is the search's."""

    def __init__(self, search: Line, recipe: Recipe, run: Run) -> None:
        super().__init__(recipe, run, search.sources)
        self.search = search
        for stage in SHARED:
            run.adopt(stage, search.run)

    @cached_property
    def subspaces(self) -> Mapping[str, Subspace]:
        """The decompositions."""
        return self.search.subspaces


def run(recipe: Recipe, out: Path, *, resume: bool = False, overwrite: bool = False) -> Report:
    """Try budgets, and prove the smallest whose gates hold; the report lies in `out`, gates not yet raised.

    Where none holds, the report is that of the trial that came closest.

    Raises:
        ArtifactError: search.json is damaged, or another trial stands in the folder than now should.
        BudgetError: no budget leaves a target at low rank.
        RankfoldError: see compressor.errors; finished trials and stages stay, and `resume=True` goes on.
    """
    line = Line(recipe, open_run(recipe, out, resume=resume, overwrite=overwrite))
    line.probe()
    line.baseline()
    line.calibrate()
    found = _begun(line)
    while (budget := found.next_budget) is not None:
        progress.note(f"Trial {len(found.trials) + 1} of at most {bisection.TRIALS}: budget {budget:.3f}")
        found = found.with_trial(_try(line, budget))
        write_json(out / SEARCH, trials.told(found))
        progress.note(trials.line(found.trials[-1]))
    progress.note(trials.conclusion(found))
    return _proven(line, found)


def _begun(line: Line) -> Search:
    """The search as it stands: what was recorded, or one without trials."""
    if (line.folder / SEARCH).is_file():
        return Search.read(line.folder)
    rows = len(line.sources.data.validation) if line.sources.data.validation is not None else 0
    return Search("validation", rows, _budgets(line))


def _budgets(line: Line) -> tuple[float, ...]:
    """Of the grid what can be met, leaves a target at low rank, and gives a plan that no smaller budget gives."""
    spectra = factorize.spectra(line.sources.start(), line.subspaces)
    found: dict[tuple[int | None, ...], float] = {}
    for budget in bisection.grid():
        try:
            plan = planning.by_recipe(line.recipe.plan, spectra, budget)
        except BudgetError:
            continue
        if plan.ranks:
            found.setdefault(tuple(layer.rank for layer in plan.layers), budget)
    if not found:
        raise BudgetError(
            "No budget below 1 leaves any target at low rank: plan.multiple_of is too large for these layers. Lower it."
        )
    return tuple(found.values())


def _at(recipe: Recipe, budget: float) -> Recipe:
    """The recipe of one trial."""
    plan = recipe.plan.model_copy(update={"budget": Budget(parameters=budget)})
    validation = recipe.validation.model_copy(update={"split": "validation"})
    return recipe.model_copy(update={"plan": plan, "validation": validation})


def _opened(line: Line, budget: float) -> Run:
    return Run(line.folder / TRIALS / trials.name(budget), dump(_at(line.recipe, budget)), resume=True)


def _try(line: Line, budget: float) -> TrialRecord:
    """One trial, from its plan to its report; what is there of it already is not made again."""
    recipe = _at(line.recipe, budget)
    trial = TrialLine(line, recipe, _opened(line, budget))
    trial.plan()
    trial.correct()
    trial.adapt()
    artifact = trial.fold()
    _share_exports(line.folder / "baseline", trial.folder / "baseline")
    export_all(artifact, recipe)
    _share_exports(trial.folder / "baseline", line.folder / "baseline")
    report = validate(artifact, **allowed(recipe.model))
    return trials.record(report, artifact.plan, budget, sum(trial.run.seconds.get(stage, 0) for stage in CHOSEN))


def _share_exports(source: Path, target: Path) -> None:
    for folder in sorted(source.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            share_folder(folder, target / folder.name)


def _proven(line: Line, found: Search) -> Report:
    """The chosen trial in the search's own folder, on the evaluation data; or, without one, the closest's report."""
    _require_standing(line, found)
    if found.stands is None:
        report = Report.read(line.folder / TRIALS / trials.name(found.closest.budget))
        report = replace(report, context={**report.context, "search": trials.told(found)})
        report.save(line.folder)
        return report
    standing = _standing(line, found.stands.budget)
    return measured(standing.path) or validate(standing, **allowed(line.recipe.model))


def _require_standing(line: Line, found: Search) -> None:
    """Trials that are measured again (a search.json that was removed, a later version) may come to another end."""
    there = line.plan().budget if line.run.finished("plan") else None
    if there not in (None, found.stands and found.stands.budget):
        raise ArtifactError(
            f"Budget {there:.3f} stands in {line.folder}, but the search now ends otherwise. Start again with "
            f"--overwrite, or take a trial: they are run folders of their own, under {line.folder / TRIALS}."
        )


def _standing(line: Line, budget: float) -> Artifact:
    """A trial's files in the search's own folder, which becomes an artifact like any other."""
    trial = _opened(line, budget)
    for stage in filter(trial.finished, CHOSEN):  # a recipe may leave the correction out
        line.run.adopt(stage, trial)
    _share_exports(trial.folder / "exports", line.folder / "exports")
    return line.fold()
