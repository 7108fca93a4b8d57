"""From an artifact with exports to its report: subjects, findings, context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Unpack

from compressor import adapt, data, models, registry, storage
from compressor.artifact import DENSE, SEARCH, Artifact, files_of
from compressor.errors import ArtifactError
from compressor.factory import Allowed
from compressor.files import file_digest, read_json
from compressor.machine import machine, versions
from compressor.planning import Plan
from compressor.progress import stage
from compressor.recipe import Recipe, dump
from compressor.run_folder import STATE
from compressor.tasks.base import Outcomes, Task
from exporters.base import EXPORT_FILE, Session
from validators import advice, rows
from validators.base import Evaluation, Subject
from validators.measure import measure
from validators.report import AUTO, ExportReport, Report

KEPT = "the rank it asks for costs as much as"  # the dense layer, where the plan keeps that


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
    there = {folder.name: folder for folder in sorted(parent.glob("*")) if (folder / EXPORT_FILE).is_file()}
    missing = [name for name in names or there if name not in there]
    if missing or not there:
        raise ArtifactError(
            f"{parent} has no export {', '.join(missing)}".rstrip() + f"; it has {', '.join(there) or 'none'}. "
            "`python -m compressor export RUN --to onnx --precision fp32` makes one."
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


def context(artifact: Artifact, recipe: Recipe, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured on what: docs/report.md lists the keys. `measured` is said of the rows behind the qualities."""
    manifest, path = artifact.manifest, artifact.path
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    architectures = config.get("architectures") or [config.get("model_type", "")]
    settings, measured_on = dump(recipe), machine()
    return {
        "model": {
            "path": recipe.model.path,
            "class": (manifest.get("factory") or {}).get("class") or ", ".join(architectures),
            "digest": manifest["base_digest"],
            "task": manifest["task"],
            "parameters": manifest["parameters"],
            "trust_remote_code": manifest["trust_remote_code"],
        },
        "method": settings["method"],
        "plan": {**settings["plan"], **_budget(artifact.plan)},
        "layers": [_layer(layer, artifact.plan.strategy) for layer in artifact.plan.layers],
        "linear_layers": read_json(path / "layers.json") if (path / "layers.json").is_file() else [],
        "spectra": read_json(path / "spectra.json"),
        "history": adapt.load_history(path / "history.json"),
        "baseline_history": adapt.load_history(path / "baseline" / "history.json"),
        "data": {**manifest["data"], "evaluation": measured},
        "files": {name: file_digest(path / name) for name in files_of(path) if _exported(name)},
        "machine": measured_on | {"threads": recipe.validation.threads or measured_on["cores"]},
        "versions": versions(),
        "seed": recipe.seed,
        "seconds": {name: found["seconds"] for name, found in read_json(path / STATE)["stages"].items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": settings,
        **({"search": read_json(path / SEARCH)} if (path / SEARCH).is_file() else {}),
    }


def _budget(plan: Plan) -> dict[str, Any]:
    if plan.quantity == "parameters":
        return {"budget": plan.budget}
    figures = {"predicted": plan.predicted, "measured_untrained": plan.measured}
    return {"budget": {plan.quantity: plan.budget}} | {name: value for name, value in figures.items() if value}


def _exported(name: str) -> bool:
    """Whether a file belongs to an export: under exports/, or in a folder beside the dense baseline."""
    return name.startswith("exports/") or (name.startswith("baseline/") and name.count("/") > 1)


def _layer(layer: Any, strategy: str) -> dict[str, Any]:
    kept = layer.rank is None
    reason = "factors of the rank it asks for take as long as" if strategy == "measured" else KEPT
    return {
        "name": layer.name,
        "out_features": layer.out_features,
        "in_features": layer.in_features,
        "rank": layer.rank,
        "break_even": layer.break_even,
        "parameters": layer.parameters,
        "energy": layer.energy,
        "kept": kept,
        "reason": f"{reason} the dense layer" if kept else "",
    }
