"""From an artifact with exports to its report: subjects and findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from compressor import data, devices, models, registry, storage
from compressor.artifact import DENSE, Artifact
from compressor.errors import ArtifactError, RankfoldError, ResourceError, RuntimeFailure
from compressor.factory import Allowed
from compressor.progress import note, stage
from compressor.recipe import Recipe
from compressor.tasks.base import Outcomes, Task
from exporters import record
from exporters.base import Session
from exporters.record import EXPORT_FILE
from validators import contest, rows
from validators.base import Evaluation, Finding, Subject
from validators.context import context
from validators.export_report import ExportReport, Role
from validators.measure import measure
from validators.report import AUTO, Report


class Field(NamedTuple):
    """The export folders that a proof is of."""

    dense: dict[str, Path]  # fp32, by runtime: what exports are held against
    candidates: list[Path]
    references: list[Path]  # the other dense ones of these runtimes

    @property
    def names(self) -> set[str]:
        """What the report calls those that it has findings of."""
        return {*(one.name for one in self.candidates), *(f"{DENSE}{one.name}" for one in self.references)}


def field(run: Path, exports: Sequence[str] | None = None) -> Field:
    """What there is to prove of a run folder's exports (all, or those named).

    Raises:
        ArtifactError: there is no such export, or not the dense one in fp32 that it is held against.
    """
    candidates, baseline = _folders(run / "exports", exports), run / "baseline"
    dense = {runtime: baseline / f"{runtime}-fp32" for runtime in map(_runtime, candidates)}
    for runtime, folder in dense.items():
        if not (folder / EXPORT_FILE).is_file():
            raise ArtifactError(
                f"{folder} is no export, and every export for {runtime} is held against it. "
                f"`python -m compressor export {run} --to {runtime} --precision fp32 --overwrite` makes it."
            )
    others = [folder for folder in _folders(baseline) if folder not in dense.values() and _runtime(folder) in dense]
    return Field(dense, candidates, others)


def prove(
    artifact: Artifact, recipe: Recipe, exports: Sequence[str] | None = None, **code: Unpack[Allowed]
) -> tuple[Report, RankfoldError | None]:
    """Run every check of a recipe on the exports (all, or those named) and on the dense exports beside them.

    Each is held against dense fp32 on its own runtime, which it is measured side by side with. With `export: auto`
    dense exports are judged too, and the winner is the report's only candidate.
    `code` is whose code may run to load both models: see `compressor.load`.

    Returns:
        the report, and the error of the first export that had to hold and could not be measured: one that cannot be
        run loses no other's measurements. A reference or an entrant of `export: auto` is left out and said.

    Raises:
        ArtifactError: there is no such export.
        DataError: the evaluation data is not the one that the artifact was made with.
        DependencyError: the asked device is not there.
    """
    entered = field(artifact.path, exports)
    prover, auto = _Prover(artifact, recipe, code), recipe.export == AUTO
    contestants = len(entered.names) if auto else 1
    dense = {runtime: prover.subject(folder, DENSE) for runtime, folder in entered.dense.items()}
    found, lost = list[ExportReport](), dict[str, tuple[Role, RankfoldError]]()
    for role, subject in prover.subjects(entered):
        gates = recipe.gates if auto or role == "candidate" else {}
        try:
            findings = measure(dense[subject.runtime], [subject], recipe.validation, gates, contestants)
            found.append(_row(subject, role, findings[subject.name]))
        except (RuntimeFailure, ResourceError) as error:
            note(f"{subject.name} could not be measured: {error}")
            lost[subject.name] = ("reference" if auto else role, error)
    failed = [error for role, error in lost.values() if role == "candidate" or not found]
    facts = context(artifact, recipe, prover.rows) | _unmeasured(lost)
    return Report(contest.crowned(found) if auto else tuple(found), facts), next(iter(failed), None)


def _unmeasured(lost: Mapping[str, tuple[Role, RankfoldError]]) -> dict[str, Any]:
    told = [{"export": name, "role": role, "error": str(error)} for name, (role, error) in lost.items()]
    return {"unmeasured": told} if told else {}


def _runtime(folder: Path) -> str:
    """Whose export a folder is."""
    return record.read(folder).runtime


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


def _row(subject: Subject, role: Role, findings: tuple[Finding, ...]) -> ExportReport:
    return ExportReport(subject.name, subject.runtime, record.read(subject.path).precision, role, findings)


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
        with devices.lent(model), devices.exact():
            return data.outcomes(model, self.evaluation.task, self.batches)

    def subjects(self, entered: Field) -> Iterator[tuple[Role, Subject]]:
        """Candidates, then references, each by runtime."""
        runtimes = list(entered.dense)
        parts: list[tuple[Role, list[Path], str]]
        parts = [("candidate", entered.candidates, ""), ("reference", entered.references, DENSE)]
        for role, folders, prefix in parts:
            found = (self.subject(folder, prefix) for folder in folders)
            yield from ((role, one) for one in sorted(found, key=lambda one: runtimes.index(one.runtime)))

    def subject(self, folder: Path, prefix: str = "") -> Subject:
        """An export folder as a subject; `baseline/<export>` reproduces the dense model, the others the folded one."""
        source = folder.parent if folder.parent.name == "baseline" else self.artifact.path
        return Subject(
            prefix + folder.name, _runtime(folder), folder, self.evaluation, self.session, self.outcomes[source]
        )
