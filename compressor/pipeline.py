"""The verbs: recipe -> run folder -> exports -> report. The stages themselves are in compressor.line."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from compressor import progress, registry, storage
from compressor.artifact import MANIFEST, REPORT, Artifact, require_whole, reseal
from compressor.errors import ArtifactError, DataError, ExportError, InputError, RecipeError
from compressor.factory import Allowed, Factory, Function, allowed, require_given, unasked_code
from compressor.files import changed_files, file_digest
from compressor.line import Line
from compressor.planning import Plan
from compressor.recipe import ExportSection, Recipe, dump, read
from compressor.run_folder import Run, alone, recorded, require_spared
from exporters.base import Session, write

if TYPE_CHECKING:
    import numpy as np

    from compressor.tasks.base import Task
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
    _require_runtimes(found, found.exports)
    if found.plan.budget == "auto":
        from compressor import search

        return search.run(found, Path(out), resume=resume, overwrite=overwrite)
    artifact = compress(found, out, resume=resume, overwrite=overwrite)
    with alone(artifact.path):
        export_all(artifact, found)
        return _measured(artifact.path) or validate(artifact, **allowed(found.model))


def _measured(folder: Path) -> Report | None:
    """The report that is there already, where it is of the very exports; `validate` measures them again."""
    context = importlib.import_module("validators.context")
    report = importlib.import_module("validators.report").Report
    if not (folder / REPORT).is_file():
        return None
    try:
        found: Report = report.read(folder)
    except ArtifactError:  # of another version, or cut off: it is written again
        return None
    return found if found.context.get("files") == context.exported(folder) else None


def _require_runtimes(recipe: Recipe, exports: Sequence[ExportSection]) -> None:
    """A runtime or device that is not there is told before hours of training, not after them."""
    session = Session(recipe.validation.device, recipe.validation.threads)
    for section in exports:
        exporter = registry.exporter(section.runtime, section.precision)
        registry.require(registry.packages_of(exporter))
        if hasattr(exporter, "require"):
            exporter.require(session)


def export_all(artifact: Artifact, recipe: Recipe) -> None:
    """The recipe's exports, those that are not there yet."""
    for section in recipe.exports:
        if not (artifact.path / "exports" / section.name).exists():
            required = recipe.export != "auto" or section.precision == "fp32"
            _try(artifact, section, required=required, **allowed(recipe.model))
    reseal(artifact.path)  # a run that was killed between an export and its seal is made whole here


def _try(artifact: Artifact, section: ExportSection, *, required: bool, **code: Unpack[Allowed]) -> None:
    """One export; where the best of many is looked for, one that this model cannot have is left out and said."""
    try:
        export(artifact, section.runtime, precision=section.precision, **code)
    except ExportError as error:
        if required:
            raise
        progress.note(f"{section.name} is left out: {error}")


def compress(
    recipe: Recipe | Path | str, out: Path | str, *, resume: bool = False, overwrite: bool = False
) -> Artifact:
    """Recipe -> folded artifact in `out`, with the dense baseline beside it."""
    line = _line(_read(recipe), out, resume=resume, overwrite=overwrite)
    line.probe()
    line.baseline()
    line.calibrate()
    line.plan()
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
        _require_runtimes(recipe, recipe.exports[:1])
    return Line(recipe, open_run(recipe, Path(out), resume=resume, overwrite=overwrite))


def open_run(recipe: Recipe, out: Path, *, resume: bool, overwrite: bool) -> Run:
    """The run folder of a recipe; see `Run`.

    Raises:
        ArtifactError: see `Run`; or weights or a plan that the recipe names have been changed since the run was begun.
        InputError: what the recipe reads lies in the folder that is to be overwritten.
    """
    if overwrite:
        require_spared(_sources(recipe), out)
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


def export(
    path: Artifact | Path | str,
    runtime: str = "onnx",
    *,
    precision: str = "fp32",
    overwrite: bool = False,
    factory: Factory | str | Function | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Fold where that is still to be done, and export the artifact and its dense baseline.

    `factory` names the code that made the dense model, where code did, and `trust_remote_code` allows what a checkpoint
    ships: see `compressor.load`.

    Writes `exports/<runtime>-<precision>`, and before it beside the baseline the dense export in fp32 (what everything
    is held against) and in this precision (what a user would ship without us). Of a precision that other runtimes do
    not load, the portable `exports/<runtime>-fp32` is written too. `overwrite` makes the dense one of this precision
    again as well, and that in fp32 where it is not whole.

    Raises:
        ArtifactError: no artifact, or the export is there already and `overwrite` is not set; files that it is made of
            are not what the manifest says.
        DataError: the precision is calibrated, and the training data is not the one that the artifact was made with.
        ExportError: the runtime's exporter failed.
        InputError: there is no such runtime, or it does not write this precision.
    """
    beside = getattr(registry.exporter(runtime, precision), "beside", ())
    given = None if factory is None else Factory.given(factory)
    code: Allowed = {"factory": given, "trust_remote_code": trust_remote_code}
    artifact = _folded(path, given, trusted=trust_remote_code)
    target = artifact.path / "exports" / f"{runtime}-{precision}"
    if target.exists() and not overwrite:
        raise ArtifactError(f"{target} exists already. Add --overwrite to replace it, or `validate` it as it is.")
    with alone(artifact.path):
        made = list[Path]()
        _sweep(artifact.path)
        try:
            for kind in dict.fromkeys(["fp32", precision]):  # first, so that where the last one is, all of them are
                dense = artifact.path / "baseline"
                place = dense / f"{runtime}-{kind}"
                again = overwrite and (kind == precision or not _is_whole(artifact, place))
                made += _export(dense, artifact, runtime, kind, place, code, again=again)
            for kind in (*beside, precision):
                place = target.with_name(f"{runtime}-{kind}")
                made += _export(artifact.path, artifact, runtime, kind, place, code, again=place == target)
        finally:
            reseal(artifact.path, made)
    return target


def _sweep(folder: Path) -> None:
    """Remove what killed exports left half-written."""
    for parent in (folder / "exports", folder / "baseline"):
        for scratch in parent.glob(".*"):
            if scratch.is_dir() and not scratch.is_symlink():
                shutil.rmtree(scratch, ignore_errors=True)


def _is_whole(artifact: Artifact, folder: Path) -> bool:
    """Whether an export is what the manifest says."""
    prefix = f"{folder.relative_to(artifact.path).as_posix()}/"
    digests = {name: digest for name, digest in artifact.manifest["files"].items() if name.startswith(prefix)}
    return bool(digests) and not changed_files(artifact.path, digests)


def _export(
    source: Path,
    artifact: Artifact,
    runtime: str,
    precision: str,
    target: Path,
    code: Allowed,
    *,
    again: bool = False,
) -> list[Path]:
    """One export, with the tokenizer's or image processor's files beside it; the folders that were made.

    None where it is there already, unless `again`: then it is replaced once the new one is whole.
    """
    if target.exists() and not again:
        return []
    require_whole(artifact, "" if source == artifact.path else source.name)
    exporter = registry.exporter(runtime, precision)
    task = registry.task(artifact.manifest["task"])
    processor = task.processor(str(source), trust_remote_code=code["trust_remote_code"])
    title = f"Exporting {target.relative_to(artifact.path)}"
    scratch = target.with_name(f".{target.name}")
    with progress.stage(title):
        target.parent.mkdir(exist_ok=True)
        load = partial(storage.load, source, artifact.manifest["task"], **code)
        try:
            write(exporter, load, task.example(processor), scratch, partial(_samples, artifact, task, processor))
            processor.save_pretrained(scratch)
            shutil.rmtree(target, ignore_errors=True)
            scratch.replace(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return [target]


def _samples(artifact: Artifact, task: Task, processor: Any) -> Sequence[Mapping[str, np.ndarray]]:
    """Batches of the very examples that the moments were gathered on."""
    from compressor import data

    recipe = Recipe.model_validate(artifact.manifest["recipe"])
    found = data.prepare(recipe.data, task, processor, recipe.model.max_length, recipe.seed)
    if found.facts["train"]["digest"] != artifact.manifest["data"]["train"]["digest"]:
        raise DataError(
            f"{recipe.data.train.path} is not the training data that the artifact was made with: its digest differs. "
            "Bring the data back, or export a precision that looks at no data, such as fp32."
        )
    batches = data.batches(found.calibration, task, processor, recipe.data.calibration.batch_size)
    return batches.then(data.arrays)


def _folded(path: Artifact | Path | str, factory: Factory | None, *, trusted: bool = False) -> Artifact:
    """The artifact at a path; a run that is trained but not yet folded is folded first."""
    if isinstance(path, Artifact):
        return path
    folder = Path(path)
    state = None if (folder / MANIFEST).is_file() else recorded(folder)
    if state and "adapt" in state["stages"]:
        recipe = Recipe.model_validate(state["recipe"])
        require_given(recipe.model.path, folder, factory)
        if recipe.model.trust_remote_code and not trusted:
            raise unasked_code(folder)
        return Line(recipe, Run(folder, state["recipe"], resume=True), factory).fold()
    return Artifact.open(folder)


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
    """
    artifact = path if isinstance(path, Artifact) else Artifact.open(Path(path))
    with alone(artifact.path):
        prove = importlib.import_module("validators.prove").prove
        report: Report = prove(artifact, exports, factory=factory, trust_remote_code=trust_remote_code)
        report.save(artifact.path)
    progress.note(f"Report: {artifact.path / 'report.html'}")
    return report
