"""`package`: from an artifact with a measured export to one file, as a straight line."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from compressor.artifact import Artifact, place
from compressor.errors import ArtifactError, InputError, ModelError
from compressor.files import file_digest, write_json
from compressor.packaging import archive, bom, card, contents, facts, proof, rehearsal, signing, verification
from compressor.packaging.contents import FACTS, LICENSE, MODEL, REQUIREMENTS, RUNNER
from compressor.packaging.summary import Summary, summarize
from compressor.packaging.tasks import PACKAGED
from compressor.run_folder import alone


@dataclass(frozen=True)
class Package:
    """One file that ships."""

    path: Path
    export: str
    bytes: int
    sha256: str
    signed: bool

    def __str__(self) -> str:
        signed = "signed" if self.signed else "not signed"
        return f"{self.path}: {self.export}, {self.bytes / 1e6:.1f} MB, {signed}, sha256 {self.sha256}"


def package(
    artifact: Artifact | Path | str,
    path: Path | str | None = None,
    *,
    export: str | None = None,
    sign_with: Path | str | None = None,
    allow_failed_gates: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Package:
    """One reproducible .tar.gz: the export, predict.py, model card, bill of materials, manifest, signature.

    Args:
        artifact: a run whose exports are measured.
        path: the archive; `<run folder>.tar.gz` beside the run otherwise.
        export: a folder under `exports/`, or `baseline/onnx-int8` of the dense model; otherwise the winner of
            `export: auto`, or the smallest that holds its gates.
        sign_with: an elliptic-curve private key in PEM.
        allow_failed_gates: package an export that fails its gates too; its model card says so.
        overwrite: replace an archive that is there.
        trust_remote_code: run the code that a checkpoint ships for its tokenizer or image processor, which predict.py
            is held against.

    Raises:
        ArtifactError: no artifact, no such export, the archive is there already, or code would run that is not trusted.
        DependencyError: a signature is asked for, and model-signing is not installed.
        ExportError: predict.py cannot make this model's inputs.
        GateError: there is no report, it is about other files, or a gate does not hold.
        InputError: the task or the tokenizer cannot be packaged, or the key cannot sign.
    """
    found = artifact if isinstance(artifact, Artifact) else Artifact.open(Path(artifact))
    report, target = proof.report_of(found), _target(found.path, path, overwrite)
    chosen = proof.choose(report, found.path, export, allow_failed=allow_failed_gates)
    name = _slug(f"{Path(found.manifest['recipe']['model']['path']).name}-{chosen.name}")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        folder = Path(scratch) / name
        with alone(found.path, writes=False):
            shutil.copytree(found.path / place(chosen.name), folder / MODEL)
        proof.require_measured(report, chosen.name, folder / MODEL)
        _describe(summarize(name, found, report, chosen, sign_with is not None), folder, trust_remote_code)
        if sign_with is not None:
            signing.sign(folder, Path(sign_with))
        verification.verify(folder)
        archive.write(folder, Path(scratch) / target.name)
        _require_free(target, overwrite)  # another process may have been faster
        (Path(scratch) / target.name).replace(target)
    return Package(target, chosen.name, target.stat().st_size, file_digest(target), sign_with is not None)


def _describe(summary: Summary, folder: Path, trust_remote_code: bool) -> None:
    """All that lies beside the model; predict.py is tried before anything is said of it."""
    told = facts.collect(summary.artifact, summary.export.name, folder / MODEL, summary.name)
    write_json(folder / FACTS, told)
    shutil.copyfile(Path(__file__).with_name(RUNNER), folder / RUNNER)
    (folder / REQUIREMENTS).write_text(PACKAGED[summary.task].requirements, encoding="utf-8", newline="\n")
    if summary.base.license_file:
        shutil.copyfile(summary.base.license_file, folder / LICENSE)
    _rehearse(summary, folder, trust_remote_code)
    card.write(summary, folder)
    bom.write(summary, folder)
    contents.write_manifest(folder)


def _rehearse(summary: Summary, folder: Path, trust_remote_code: bool) -> None:
    try:
        rehearsal.rehearse(folder, trust_remote_code=trust_remote_code)
    except ModelError as error:
        if trust_remote_code or not summary.manifest["trust_remote_code"]:
            raise
        from compressor.factory import unasked_code  # which imports torch

        raise unasked_code(summary.artifact.path) from error


def _target(run: Path, path: Path | str | None, overwrite: bool) -> Path:
    """Where the archive goes: not over another file unasked, and not into the run, whose files are sealed."""
    target = Path(path) if path else run.resolve().with_name(f"{run.resolve().name}.tar.gz")
    if not target.name.endswith(archive.ENDINGS):
        raise InputError(f"{target} must end in {' or '.join(archive.ENDINGS)}: packages are compressed tar archives.")
    if run.resolve() in target.resolve().parents:
        raise InputError(f"{target} lies in the run folder, whose files are sealed: name a place outside of {run}.")
    _require_free(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _require_free(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise ArtifactError(f"{target} is a folder: name a file with --out.")
    if target.exists() and not overwrite:
        raise ArtifactError(f"{target} exists already. Add --overwrite to replace it, or name another file with --out.")


def _slug(name: str) -> str:
    """A folder name of plain characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
