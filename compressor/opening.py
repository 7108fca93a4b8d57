"""The run folder of a recipe, held against what the recipe reads by path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compressor import progress, storage
from compressor.artifact import require_ours
from compressor.files import file_digest
from compressor.recipe import Recipe, dump
from compressor.run_folder import Run, require_spared


def open_run(recipe: Recipe, out: Path, *, resume: bool, overwrite: bool) -> Run:
    """The run folder of a recipe; see `Run`.

    Raises:
        ArtifactError: see `Run`; or weights or a plan that the recipe names have been changed since the run was begun;
            or there is something in the folder that is to be overwritten and that no run made.
        InputError: what the recipe reads lies in the folder that is to be overwritten.
    """
    progress.forget()
    if overwrite:
        require_spared(_sources(recipe), out)
        require_ours(out)
    run = Run(out, dump(recipe), resume=resume, overwrite=overwrite)
    run.require_same("sources", _digests(recipe), "another {}: what is finished there was made of that one")
    return run


def _digests(recipe: Recipe) -> dict[str, str]:
    """Of what is read by a path that stays the same while the files change: weights and a plan, by their keys."""
    weights = {"model.path": recipe.model.path, "baseline.path": recipe.baseline.path}
    found = {key: storage.checkpoint_digest(path) for key, path in weights.items() if path}
    found["plan.path"] = file_digest(Path(recipe.plan.path)) if recipe.plan.path else None
    return {key: digest for key, digest in found.items() if digest}


def _sources(recipe: Recipe) -> Iterator[str]:
    """The local files and folders that a recipe names."""
    model, data = recipe.model, recipe.data
    sources = (data.train, data.evaluation, data.validation, data.calibration.source)
    named = [model.path, model.processor, model.code, recipe.baseline.path, recipe.plan.path]
    named += [source.path for source in sources if source is not None]
    return (path for path in named if path and Path(path).exists())
