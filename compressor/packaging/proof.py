"""Only what has been measured and holds its gates is packaged. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from compressor import progress
from compressor.artifact import DENSE, REPORT, Artifact, place
from compressor.errors import ArtifactError, GateError
from compressor.files import file_digest
from compressor.recipe import Gate
from validators.export_report import ExportReport
from validators.options import DENSE_FP32
from validators.report import Report
from validators.wording import complaint

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
    return Report.read(artifact.path)


def choose(report: Report, run: Path, name: str | None = None, *, allow_failed: bool = False) -> ExportReport:
    """The export of that name, or the smallest of those that hold their gates; where the best was looked for, that.

    A dense export may be named as the report does (`dense-onnx-int8`) or by its place (`baseline/onnx-int8`). It is
    chosen unasked where it won, and it has to hold the gates of the recipe as the low-rank ones have.

    Raises:
        ArtifactError: there is no such export, no export that can be packaged, or the winner is none.
        GateError: the export has not been measured, or it fails its gates and that is not allowed.
    """
    measured = {
        found.name: found for found in report.exports if found.runtime in GRAPHS and (run / place(found.name)).is_dir()
    }
    if name is None:
        _require_winner(report, measured, allow_failed)
        judged = [found for found in measured.values() if found.role == "candidate"]
        sound = [found for found in judged if found.verdict == "pass"]
        chosen = _allowed(_smallest(sound or judged, run), allow_failed)
        _note_better(report, chosen, measured)
        return chosen
    wanted = name.replace("baseline/", DENSE, 1).removeprefix("exports/").rstrip("/")
    if wanted in measured:
        return _allowed(_judged(measured[wanted], report), allow_failed)
    if any((run / place(wanted) / graph).is_file() for graph in GRAPHS.values()):
        raise GateError(f"The report says nothing of {name}: {_unmeasured(wanted, run)}")
    raise ArtifactError(
        f"{run} has no export {name} for ONNX Runtime, which packages run; it has "
        f"{', '.join(measured) or 'none that is measured'}."
    )


def _note_better(report: Report, chosen: ExportReport, measured: Collection[str]) -> None:
    """Say where the report advises another export than the one that is packaged unasked."""
    best = report.recommendation.best
    if best is None or best.name == chosen.name:
        return
    if best.name == DENSE_FP32:
        advised = "the dense model in fp32 instead."
    elif best.name in measured:
        advised = f"{best.name}: --export {place(best.name)}"
    else:
        advised = f"{best.name}, which runs on {best.runtime} and cannot be packaged."
    progress.note(f"{chosen.name} is packaged; the report advises {advised}")


def _require_winner(report: Report, measured: Collection[str], allow_failed: bool) -> None:
    winner = report.winner
    if winner is not None and winner.runtime not in GRAPHS and measured:
        raise ArtifactError(
            f"{winner.name} has won, but packages run ONNX Runtime: name another with --export "
            f"{' or '.join(map(place, measured))}, or deploy {place(winner.name)} with code of your own."
        )
    if report.auto and winner is None and not allow_failed:
        raise GateError(
            f"No export has won, so there is none to package: {report.advice()} Name one with --export, or take the "
            "smallest of those that hold their gates with --allow-failed-gates."
        )


def _unmeasured(name: str, run: Path) -> str:
    if name in {f"{DENSE}{runtime}-fp32" for runtime in GRAPHS}:
        return "it is what all exports are held against, and not an export under test."
    return f"`python -m compressor validate {run}` measures it."


def _judged(found: ExportReport, report: Report) -> ExportReport:
    """As a candidate: what was only shown beside the candidates is held to the gates of the recipe."""
    recipe = report.context.get("recipe")
    asked = recipe.get("gates", {}) if isinstance(recipe, Mapping) else {}
    gates = {quantity: Gate.model_validate(gate) for quantity, gate in asked.items()}
    findings = (one.judged(gates[one.quantity]) if one.quantity in gates else one for one in found.findings)
    return replace(found, role="candidate", findings=tuple(findings))


def _smallest(found: list[ExportReport], run: Path) -> ExportReport:
    if not found:
        raise ArtifactError(
            f"{run / 'exports'} has no measured export for ONNX Runtime, which packages run: "
            f"`python -m compressor export {run} --to onnx --precision int8` makes and measures one."
        )
    return min(found, key=lambda one: _size(run / place(one.name), GRAPHS[one.runtime]))


def _size(folder: Path, graph: str) -> int:
    """Bytes of a graph and of what lies beside it for it."""
    return sum(file.stat().st_size for file in folder.glob(f"{graph}*"))


def _allowed(found: ExportReport, allow_failed: bool) -> ExportReport:
    if found.unmet and not allow_failed:
        lines = [f"  {found.name}: {complaint(failure)}" for failure in found.unmet]
        told = "Gates do not hold, so nothing is packaged (--allow-failed-gates does, and the model card will say so):"
        raise GateError("\n".join([told, *lines]))
    return found


def require_measured(report: Report, export: str, folder: Path) -> None:
    """That the files of a folder are the very ones that the report is about.

    Raises:
        GateError: they are not; all that differ are named.
    """
    listed = _listed(report.context, f"{place(export)}/")
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
