"""Exports -> report."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from compressor import progress
from compressor.artifact import REPORT, Artifact
from compressor.errors import ArtifactError, RankfoldError
from compressor.factory import Factory, Function
from compressor.run_folder import alone

if TYPE_CHECKING:
    from validators.report import Report


def validate(
    path: Artifact | Path | str,
    exports: list[str] | None = None,
    *,
    factory: Factory | str | Function | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Measure the exports (all, or those named) against the dense baseline and write the report beside them.

    `factory` names the code that made the dense model, where code did, and `trust_remote_code` allows what a checkpoint
    ships: see `compressor.load`.

    Raises:
        ArtifactError: there is no export to validate.
        DataError: the evaluation data is not the one that the artifact was made with.
        DependencyError: the asked device is not there.
        RuntimeFailure, ResourceError: an export cannot be run; the report is of the others, and fails.
    """
    artifact = path if isinstance(path, Artifact) else Artifact.open(Path(path))
    with alone(artifact.path):
        prove = importlib.import_module("validators.prove").prove
        found: tuple[Report, RankfoldError | None] = prove(
            artifact, exports, factory=factory, trust_remote_code=trust_remote_code
        )
        report, error = found
        report.save(artifact.path)
    progress.note(f"Report: {artifact.path / 'report.html'}")
    if error is not None:
        raise error
    return report


def measured(folder: Path) -> Report | None:
    """The report that is there already, where it is of all the exports as they are; `validate` measures them again."""
    context, prove = (importlib.import_module(f"validators.{name}") for name in ("context", "prove"))
    report = importlib.import_module("validators.report").Report
    if not (folder / REPORT).is_file():
        return None
    try:
        found: Report = report.read(folder)
    except ArtifactError:  # of another version, or cut off: it is written again
        return None
    whole = not found.unmeasured and found.told == prove.field(folder).names
    return found if whole and found.context.get("files") == context.exported(folder) else None
