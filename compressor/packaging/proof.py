"""Only what has been measured and holds its gates is packaged. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.artifact import REPORT, Artifact, file_digest
from compressor.errors import ArtifactError, GateError

if TYPE_CHECKING:
    from validators.report import ExportReport, Report

GRAPHS = {"onnx": "model.onnx", "ort": "model.ort"}  # the runtimes that predict.py runs, and their files


def report_of(artifact: Artifact) -> Report:
    """The run's report.

    Raises:
        GateError: there is none.
        ArtifactError: it cannot be read.
    """
    if not (artifact.path / REPORT).is_file():
        raise GateError(
            f"{artifact.path} has no report, so nothing is proven that could be packaged: "
            f"`python -m compressor validate {artifact.path}` measures its exports."
        )
    found: Report = import_module("validators.report").Report.read(artifact.path)
    return found


def choose(report: Report, exports: Path, name: str | None = None, *, allow_failed: bool = False) -> ExportReport:
    """The export of that name, or the smallest of those that hold their gates; where the best was looked for, that.

    Raises:
        ArtifactError: there is no such export, or no export that can be packaged.
        GateError: the export has not been measured, or it fails its gates and that is not allowed.
    """
    measured = {
        found.name: found
        for found in report.exports
        if not found.dense and found.runtime in GRAPHS and (exports / found.name).is_dir()
    }
    if name is None and report.winner and report.winner.dense:
        folder = exports.parent / "baseline" / report.winner.name.removeprefix("dense-")
        raise ArtifactError(
            f"{report.winner.name} won, and packages hold low-rank exports: deploy {folder}, or name one of "
            f"{', '.join(measured) or 'none'} with --export."
        )
    if name is None:
        judged = [found for found in measured.values() if found.role == "candidate"]
        sound = [found for found in judged if found.verdict == "pass"]
        return _allowed(_smallest(sound or judged, exports), allow_failed)
    if name in measured:
        return _allowed(measured[name], allow_failed)
    if any((exports / name / graph).is_file() for graph in GRAPHS.values()):
        raise GateError(
            f"The report says nothing of {name}: `python -m compressor validate {exports.parent}` measures it."
        )
    raise ArtifactError(
        f"{exports} has no export {name} for ONNX Runtime, which packages run; it has "
        f"{', '.join(measured) or 'none that is measured'}."
    )


def _smallest(found: list[ExportReport], exports: Path) -> ExportReport:
    if not found:
        raise ArtifactError(
            f"{exports} has no measured export for ONNX Runtime, which packages run: "
            f"`python -m compressor export {exports.parent} --to onnx --precision int8` makes and measures one."
        )
    return min(found, key=lambda one: _size(exports / one.name, GRAPHS[one.runtime]))


def _size(folder: Path, graph: str) -> int:
    """Bytes of a graph and of what lies beside it for it."""
    return sum(file.stat().st_size for file in folder.glob(f"{graph}*"))


def _allowed(found: ExportReport, allow_failed: bool) -> ExportReport:
    if found.unmet and not allow_failed:
        complain = import_module("validators.wording").complaint
        lines = [f"  {found.name}: {complain(failure)}" for failure in found.unmet]
        told = "Gates do not hold, so nothing is packaged (--allow-failed-gates does, and the model card will say so):"
        raise GateError("\n".join([told, *lines]))
    return found


def require_measured(report: Report, export: str, folder: Path) -> None:
    """That the files of a folder are the very ones that the report is about.

    Raises:
        GateError: they are not; all that differ are named.
    """
    listed = _listed(report.context, f"exports/{export}/")
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    stale = [f"{name} is new" for name in there.keys() - listed.keys()]
    stale += [f"{name} is gone" for name in listed.keys() - there.keys()]
    stale += [
        f"{name} has changed" for name in there.keys() & listed.keys() if file_digest(there[name]) != listed[name]
    ]
    if stale:
        told = "; ".join(sorted(stale)) if listed else "it does not say which files it measured"
        raise GateError(f"The report is not about the export {export} as it is now: {told}. `validate` the run again.")


def _listed(context: Mapping[str, object], prefix: str) -> dict[str, str]:
    files = context.get("files")
    found = files if isinstance(files, Mapping) else {}
    return {str(name).removeprefix(prefix): str(digest) for name, digest in found.items() if name.startswith(prefix)}
