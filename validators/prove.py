"""From an artifact with exports to its report: subjects and findings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from compressor import data, models, registry, storage
from compressor.artifact import DENSE, Artifact
from compressor.errors import ArtifactError
from compressor.factory import Allowed
from compressor.files import read_json
from compressor.progress import stage
from compressor.recipe import Recipe
from compressor.tasks.base import Outcomes, Task
from exporters.base import EXPORT_FILE, Session
from validators import advice, rows
from validators.base import Evaluation, Subject
from validators.context import context
from validators.measure import measure
from validators.report import AUTO, ExportReport, Report


def prove(artifact: Artifact, exports: Sequence[str] | None = None, **code: Unpack[Allowed]) -> Report:
    """Run every check on the exports (all, or those named) and on the dense exports beside them.

    Each is held against dense fp32 on its own runtime: two runtimes' memory and time have no common floor. With
    `export: auto` dense exports are judged too, and the winner is the report's only candidate.
    `code` is whose code may run to load both models: see `compressor.load`.

    Raises:
        ArtifactError: there is no such export.
        DataError: the evaluation data is not the one that the artifact was made with.
        DependencyError: the asked device is not there.
    """
    recipe = Recipe.model_validate(artifact.manifest["recipe"])
    candidates, prover = _folders(artifact.path / "exports", exports), _Prover(artifact, recipe, code)
    runtimes = dict.fromkeys(map(_runtime, candidates))
    baseline = artifact.path / "baseline"
    dense = {runtime: prover.subject(baseline / f"{runtime}-fp32", DENSE) for runtime in runtimes}
    full = {subject.path for subject in dense.values()}
    others = [folder for folder in _folders(baseline) if folder not in full]
    auto, found = recipe.export == AUTO, list[ExportReport]()
    for role, folders in {"candidate": candidates, "reference": others}.items():
        for runtime in runtimes:
            gates = recipe.gates if auto or role == "candidate" else {}
            prefix = DENSE if role == "reference" else ""
            subjects = [prover.subject(folder, prefix) for folder in folders if _runtime(folder) == runtime]
            findings = measure(dense[runtime], subjects, recipe.validation, gates)
            found += [_row(subject, role, findings[subject.name]) for subject in subjects]
    return Report(advice.crowned(found) if auto else tuple(found), context(artifact, recipe, prover.rows))


def _runtime(folder: Path) -> str:
    """Whose export a folder is."""
    return str(read_json(folder / EXPORT_FILE)["runtime"])


def _folders(parent: Path, names: Sequence[str] | None = None) -> list[Path]:
    whole = (folder for folder in sorted(parent.glob("[!.]*")) if (folder / EXPORT_FILE).is_file())
    there = {folder.name: folder for folder in whole}
    missing = [name for name in names or there if name not in there]
    if missing or not there:
        other = f" {', '.join(missing)}; it has {', '.join(there) or 'none'}" if missing else ""
        raise ArtifactError(
            f"{parent} has no export{other}. `python -m compressor export RUN --to onnx --precision fp32` makes one."
        )
    return [there[name] for name in names or there]


def _row(subject: Subject, role: Any, findings: Any) -> ExportReport:
    precision = read_json(subject.path / EXPORT_FILE)["precision"]
    return ExportReport(subject.name, subject.runtime, precision, role, findings)


class _Prover:
    """What all subjects of one artifact share: the evaluation set and what the torch models say on it."""

    def __init__(self, artifact: Artifact, recipe: Recipe, code: Allowed) -> None:
        models.quiet_libraries()
        self.artifact, self.code = artifact, code
        self.session = Session(recipe.validation.device, recipe.validation.threads)
        task: Task = registry.task(artifact.manifest["task"])
        processor = task.processor(str(artifact.path), trust_remote_code=code["trust_remote_code"])
        encoded, self.rows = rows.measured(artifact, recipe, task, processor)
        self.batches = data.posed(encoded, task, processor)
        self.evaluation = Evaluation(task, self.batches.then(data.arrays))
        with stage("Evaluating the dense and the folded model in torch"):
            self.outcomes = {folder: self._predict(folder) for folder in (artifact.path, artifact.path / "baseline")}

    def _predict(self, folder: Path) -> Outcomes:
        model = storage.load(folder, self.artifact.manifest["task"], **self.code)
        return data.outcomes(model, self.evaluation.task, self.batches)

    def subject(self, folder: Path, prefix: str = "") -> Subject:
        """An export folder as a subject; `baseline/<export>` reproduces the dense model, the others the folded one."""
        source = folder.parent if folder.parent.name == "baseline" else self.artifact.path
        return Subject(
            prefix + folder.name, _runtime(folder), folder, self.evaluation, self.session, self.outcomes[source]
        )
