"""Artifact -> exports, of the candidate and of the dense model that it is held against."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor import progress, registry, storage
from compressor.artifact import MANIFEST, Artifact, require_whole, reseal
from compressor.errors import ArtifactError, DataError, ExportError
from compressor.factory import Allowed, Factory, Function, allowed, require_given, unasked_code
from compressor.files import changed_files
from compressor.line import Line
from compressor.recipe import ExportSection, Recipe
from compressor.run_folder import Run, alone, recorded
from compressor.sources import Sources
from exporters.base import Session, write
from validators import process_memory

if TYPE_CHECKING:
    import numpy as np

    from compressor.tasks.base import Task


def require_runtimes(recipe: Recipe, exports: Sequence[ExportSection]) -> None:
    """A runtime or device that is not there is told before hours of training, not after them."""
    session = Session(recipe.validation.device, recipe.validation.threads)
    for section in exports:
        exporter = registry.exporter(section.runtime, section.precision)
        registry.require(exporter.packages)
        exporter.require(session)


def require_gauge(recipe: Recipe) -> None:
    """Nor is it told after hours of training that this system does not say how much memory a process takes."""
    if recipe.validation.device == "cpu":  # the runtimes have asked for the GPU, and its gauge would begin to use it
        process_memory.resident()


def export_all(artifact: Artifact, recipe: Recipe) -> None:
    """The recipe's exports, those that are not there yet or lack a dense one that they are held against."""
    exporting = Exporting(artifact, allowed(recipe.model))
    for section in recipe.exports:
        there = exporting.target(section.runtime, section.precision).exists()
        dense = exporting.dense(section.runtime, section.precision)
        if not there or not all(place.exists() for place in dense.values()):
            _try(exporting, section, required=recipe.export != "auto" or section.precision == "fp32", overwrite=there)
    reseal(artifact.path)  # a run that was killed between an export and its seal is made whole here


def _try(exporting: Exporting, section: ExportSection, *, required: bool, overwrite: bool) -> None:
    """One export; where the best of many is looked for, one that this model cannot have is left out and said."""
    try:
        exporting.make(section.runtime, section.precision, overwrite=overwrite)
    except ExportError as error:
        if required:
            raise
        progress.note(f"{section.name} is left out: {error}")


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
    registry.exporter(runtime, precision)  # asked before anything is folded
    given = None if factory is None else Factory.given(factory)
    artifact = _folded(path, given, trusted=trust_remote_code)
    code: Allowed = {"factory": given, "trust_remote_code": trust_remote_code}
    return Exporting(artifact, code).make(runtime, precision, overwrite=overwrite)


class Exporting:
    """The exports of one artifact; the rows that precisions are calibrated on are read once for all of them."""

    def __init__(self, artifact: Artifact, code: Allowed) -> None:
        """`code`: what may be run to make the model."""
        self.artifact, self.code = artifact, code
        self.task: Task = registry.task(artifact.manifest["task"])

    def target(self, runtime: str, precision: str) -> Path:
        """The folder of an export."""
        return self.artifact.path / "exports" / f"{runtime}-{precision}"

    def dense(self, runtime: str, precision: str) -> dict[str, Path]:
        """By precision the folders of the dense exports that one is held against and shown beside."""
        return {kind: self.artifact.path / "baseline" / f"{runtime}-{kind}" for kind in ("fp32", precision)}

    def make(self, runtime: str, precision: str, *, overwrite: bool = False) -> Path:
        """One export with all that belongs to it; see `export`."""
        target, beside = self.target(runtime, precision), registry.exporter(runtime, precision).beside
        if target.exists() and not overwrite:
            raise ArtifactError(f"{target} exists already. Add --overwrite to replace it, or `validate` it as it is.")
        with alone(self.artifact.path):
            made = list[Path]()
            _sweep(self.artifact.path)
            try:
                # the dense ones first, so that where the last one is, all of them are
                for kind, place in self.dense(runtime, precision).items():
                    again = overwrite and (kind == precision or not self._is_whole(place))
                    made += self._write(place.parent, runtime, kind, place, again=again)
                for kind in (*beside, precision):
                    place = self.target(runtime, kind)
                    made += self._write(self.artifact.path, runtime, kind, place, again=place == target)
            finally:
                reseal(self.artifact.path, made)
        return target

    def _is_whole(self, folder: Path) -> bool:
        """Whether an export is what the manifest says."""
        prefix = f"{folder.relative_to(self.artifact.path).as_posix()}/"
        files = self.artifact.manifest["files"].items()
        digests = {name: digest for name, digest in files if name.startswith(prefix)}
        return bool(digests) and not changed_files(self.artifact.path, digests)

    def _write(self, source: Path, runtime: str, precision: str, target: Path, *, again: bool) -> list[Path]:
        """An export of the model in `source`, with the tokenizer's or image processor's files; the folders made.

        None where it is there already, unless `again`: then it is replaced once the new one is whole.
        """
        if target.exists() and not again:
            return []
        require_whole(self.artifact, "" if source == self.artifact.path else source.name)
        processor, scratch = self._processor(source), target.with_name(f".{target.name}")
        with progress.stage(f"Exporting {target.relative_to(self.artifact.path)}"):
            target.parent.mkdir(exist_ok=True)
            try:
                write(
                    registry.exporter(runtime, precision),
                    partial(storage.load, source, self.artifact.manifest["task"], **self.code),
                    self.task.example(processor, self.artifact.manifest["recipe"]["model"]["max_length"]),
                    scratch,
                    lambda: self.samples,
                )
                processor.save_pretrained(scratch)
                shutil.rmtree(target, ignore_errors=True)
                scratch.replace(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return [target]

    def _processor(self, source: Path) -> Any:
        return self.task.processor(str(source), trust_remote_code=self.code["trust_remote_code"])

    @cached_property
    def samples(self) -> Sequence[Mapping[str, np.ndarray]]:
        """Batches of the very examples that the moments were gathered on.

        Raises:
            DataError: the training data is not the one that the artifact was made with.
        """
        from compressor import data

        recipe, processor = Recipe.model_validate(self.artifact.manifest["recipe"]), self._processor(self.artifact.path)
        found = data.prepare(recipe.data, self.task, processor, recipe.model.max_length, recipe.seed)
        if found.facts["train"]["digest"] != self.artifact.manifest["data"]["train"]["digest"]:
            raise DataError(
                f"{recipe.data.train.path} is not the training data that the artifact was made with: its digest "
                "differs. Bring the data back, or export a precision that looks at no data, such as fp32."
            )
        batches = data.batches(found.calibration, self.task, processor, recipe.data.calibration.batch_size)
        return batches.then(data.arrays)


def _sweep(folder: Path) -> None:
    """Remove what killed exports left half-written."""
    for parent in (folder / "exports", folder / "baseline"):
        for scratch in parent.glob(".*"):
            if scratch.is_dir() and not scratch.is_symlink():
                shutil.rmtree(scratch, ignore_errors=True)


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
        run = Run(folder, state["recipe"], resume=True)
        return Line(recipe, run, Sources(recipe, run, factory)).fold()
    return Artifact.open(folder)
