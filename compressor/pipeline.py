"""The verbs: recipe -> run folder -> exports -> report. The stages themselves are in compressor.line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from compressor import search
from compressor.artifact import Artifact
from compressor.errors import InputError, RecipeError
from compressor.exporting import export_all, require_gauge, require_runtimes
from compressor.factory import allowed
from compressor.line import Line
from compressor.opening import open_run
from compressor.planning import Plan
from compressor.proving import measured, validate
from compressor.recipe import Recipe, read
from compressor.run_folder import alone

if TYPE_CHECKING:
    from validators.report import Report


def run(recipe: Recipe | Path | str, out: Path | str, *, resume: bool = False, overwrite: bool = False) -> Report:
    """The whole line: compress, export, validate; the report lies in `out` and is returned, gates not yet raised.

    With `plan.budget: auto` it is tried at several budgets, and the smallest whose gates hold stands in `out`.

    Raises:
        RankfoldError: see compressor.errors; what was finished stays in `out`, and `resume=True` goes on.
    """
    found = _read(recipe)
    if not found.exports:
        raise RecipeError("export: is empty, and `run` proves exports. Name one, or use `compress`.")
    require_runtimes(found, found.exports)
    require_gauge(found)
    if found.plan.budget == "auto":
        return search.run(found, Path(out), resume=resume, overwrite=overwrite)
    artifact = compress(found, out, resume=resume, overwrite=overwrite)
    with alone(artifact.path):
        export_all(artifact, found)
        return measured(artifact.path) or validate(artifact, **allowed(found.model))


def compress(
    recipe: Recipe | Path | str, out: Path | str, *, resume: bool = False, overwrite: bool = False
) -> Artifact:
    """Recipe -> folded artifact in `out`, with the dense baseline beside it."""
    line = _line(_read(recipe), out, resume=resume, overwrite=overwrite)
    line.probe()
    line.baseline()
    line.calibrate()
    line.plan()
    line.correct()
    line.adapt()
    return line.fold()


def plan(recipe: Recipe, out: Path | None = None, *, resume: bool = False, overwrite: bool = False) -> Plan:
    """Recipe -> ranks; in `out`, or in a scratch folder that is removed."""
    if out is None:
        if resume or overwrite:
            raise InputError("--resume and --overwrite are of a run folder: name it with --out.")
        with tempfile.TemporaryDirectory() as scratch:
            return plan(recipe, Path(scratch) / "plan")
    line = _line(recipe, out, resume=resume, overwrite=overwrite)
    line.probe()
    if recipe.starts_adapted:
        line.baseline()
    line.calibrate()
    return line.plan()


def _read(recipe: Recipe | Path | str) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else read(Path(recipe))


def _line(recipe: Recipe, out: Path | str, *, resume: bool, overwrite: bool) -> Line:
    if recipe.plan.budget == "auto":
        raise RecipeError(
            "plan.budget: auto is found by `run` alone, since it takes exports and gates; here name a budget: "
            "--set 'plan.budget={parameters: 0.5}'."
        )
    if recipe.plan.measures:
        require_runtimes(recipe, recipe.exports[:1])
    return Line(recipe, open_run(recipe, Path(out), resume=resume, overwrite=overwrite))
