"""Exports -> report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor import progress
from compressor.artifact import REPORT, Artifact
from compressor.errors import ArtifactError
from compressor.factory import Factory, Function
from compressor.recipe import judged_by
from compressor.run_folder import alone
from validators import context, prove
from validators.report import Report


def validate(
    path: Artifact | Path | str,
    exports: list[str] | None = None,
    *,
    settings: Sequence[str] = (),
    factory: Factory | str | Function | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Measure the exports (all, or those named) against the dense baseline and write the report beside them.

    `settings` are laid over the recipe as after `--set`, for this measurement alone: `gates.*`, `validate.*`, and where
    the data lies now, such as `data.evaluation.path=there`. `factory` names the code that made the dense model, where
    code did, and `trust_remote_code` allows what a checkpoint ships: see `compressor.load`.

    Raises:
        ArtifactError: there is no export to validate.
        DataError: the evaluation data is not the one that the artifact was made with.
        DependencyError: the asked device is not there.
        RecipeError: a setting is of another key, or cannot be.
        RuntimeFailure, ResourceError: an export cannot be run; the report is of the others, and fails.
    """
    artifact = path if isinstance(path, Artifact) else Artifact.open(Path(path))
    with alone(artifact.path):
        recipe = judged_by(artifact.manifest["recipe"], settings, artifact.path)
        report, error = prove.prove(artifact, recipe, exports, factory=factory, trust_remote_code=trust_remote_code)
        report.save(artifact.path)
    progress.note(f"Report: {artifact.path / 'report.html'}")
    if error is not None:
        raise error
    return report


def measured(folder: Path) -> Report | None:
    """The report that is there already, where it is of all exports as they are, by the run's own recipe."""
    if not (folder / REPORT).is_file():
        return None
    try:
        found = Report.read(folder)
    except ArtifactError:  # of another version, or cut off: it is written again
        return None
    whole = not found.unmeasured and found.told == prove.field(folder).names
    same = found.context.get("files") == context.exported(folder) and not found.context.get("judged_otherwise")
    return found if whole and same else None
