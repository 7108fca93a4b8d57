"""The artifact: a folded model in its run folder, with a manifest of what it is and of every file's digest.

    runs/x/
      artifact.json          manifest: schema, versions, recipe, plan, and the digest of every file of the artifact
      plan.json  statistics/  subspaces.safetensors  spectra.json  layers.json  measured.json  history.json
      model.safetensors  config.json  tokenizer files      the folded model
      baseline/              the dense model on the same task, and its exports
      exports/<runtime>-<precision>/
      report.json  report.html  report.md  junit.xml
      search.json  trials/<budget>/        of a search: what was tried, each trial a run folder with a seal of its own
      run.json  .work/  .lock              see `run_folder.py`

Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from compressor.errors import ArtifactError, some
from compressor.files import changed_files, file_digest, read_object, require_none, write_json
from compressor.planning import Plan
from compressor.run_folder import LOCK, SCHEMA_VERSION, SCRATCH, STATE, recorded

MANIFEST = "artifact.json"
SEARCH = "search.json"
TRIALS = "trials"
REPORT = "report.json"
REPORTS = {REPORT, "report.html", "report.md", "junit.xml"}
DENSE = "dense-"  # what a report's names of the dense model's exports begin with
LEFTOVER = re.compile(r"^(exports|baseline)/\.|(^|/)\.[^/]+\.(\d+|partial)$")  # scratch: an export's, or a file's
UNSIGNED = {LOCK, MANIFEST, STATE} | REPORTS  # rewritten by later commands
BESIDE = UNSIGNED | {SCRATCH, SEARCH, TRIALS, "baseline", "exports"}  # a run's too, though no stage lists them


def files_of(folder: Path) -> Iterator[str]:
    """Relative names of the artifact's files, sorted."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in UNSIGNED and not _passing(name):
            yield name


def _passing(name: str) -> bool:
    """Whether a relative name is no part of an artifact: scratch, trials, or what a killed process left behind."""
    return name.split("/")[0] in (SCRATCH, TRIALS) or LEFTOVER.search(name) is not None


def _links(folder: Path) -> Iterator[str]:
    """Relative names of the symbolic links among the artifact's files and folders, sorted."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_symlink())
    return (name for name in names if not _passing(name))


def require_ours(folder: Path) -> None:
    """Raises ArtifactError naming what lies right in a run folder and no run made, where that is to be overwritten."""
    stages = (recorded(folder) or {"stages": {}})["stages"].values()
    made = BESIDE | {file.partition("/")[0] for stage in stages for file in stage["files"]}
    names = sorted(path.name for path in folder.glob("*") if path.name not in made and not LEFTOVER.search(path.name))
    if names:
        raise ArtifactError(
            f"{folder} holds {some([repr(name) for name in names])} of no run, which --overwrite would remove with it: "
            "move that elsewhere first, or use another --out."
        )


def place(name: str) -> str:
    """Where an export of the report lies in the run folder: under exports/, a dense one beside the baseline."""
    return f"baseline/{name.removeprefix(DENSE)}" if name.startswith(DENSE) else f"exports/{name}"


def going_on(folder: Path) -> str:
    """What is said of a run that is not finished."""
    return f"go on with `python -m compressor run RECIPE --out {folder} --resume`."


@dataclass(frozen=True)
class Artifact:
    """A folded model with all that was recorded about it."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """Raises ArtifactError where there is no artifact of a schema that this version reads."""
        artifact = cls(Path(path))
        version = artifact.manifest.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{path} has schema version {version}; this version reads {SCHEMA_VERSION}. Take the rankfold that "
                "made it, or make a new run."
            )
        if not isinstance(artifact.manifest.get("files"), dict):
            raise ArtifactError(f"{path / MANIFEST} cannot be read: it lists no files.")
        return artifact

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """artifact.json."""
        if not (self.path / MANIFEST).is_file() and (self.path / SEARCH).is_file():
            raise ArtifactError(
                f"{self.path} is a search that has not ended, or that no trial won: {self.path / SEARCH} says which. "
                f"Go on with --resume, or take a trial: they are run folders of their own, under {self.path / TRIALS}."
            )
        if not (self.path / MANIFEST).is_file() and (self.path / STATE).is_file():
            raise ArtifactError(f"{self.path} is an unfinished run; {going_on(self.path)}")
        return read_object(self.path / MANIFEST)

    @cached_property
    def plan(self) -> Plan:
        """plan.json."""
        return Plan.load(self.path / "plan.json")


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write artifact.json with the digests of all files of the artifact that are there now."""
    _write(folder, facts, {name: file_digest(folder / name) for name in files_of(folder)})


def reseal(folder: Path, made: Collection[Path] = ()) -> None:
    """Write the manifest again, with the files that have been added since, and those of the folders just `made`.

    What it knew already keeps its digest, so that damage is still found; a folder that was removed is forgotten.
    """
    manifest = Artifact.open(folder).manifest
    facts = {key: value for key, value in manifest.items() if key not in ("schema_version", "files")}
    again = tuple(f"{path.relative_to(folder).as_posix()}/" for path in made)
    known = {
        name: digest
        for name, digest in manifest["files"].items()
        if not name.startswith(again) and (folder / name).parent.is_dir()
    }
    _write(folder, facts, known | {name: file_digest(folder / name) for name in files_of(folder) if name not in known})


def _write(folder: Path, facts: dict[str, Any], digests: dict[str, str]) -> None:
    files = dict(sorted(digests.items()))
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, **facts, "files": files})


def require_whole(artifact: Artifact, part: str = "") -> None:
    """Raises ArtifactError where a file right in the folder, or in its `part`, is not what the manifest says."""
    digests = artifact.manifest["files"]
    own = {name: digest for name, digest in digests.items() if name.rpartition("/")[0] == part}
    changed = changed_files(artifact.path, own)
    if changed:
        raise ArtifactError(
            f"{artifact.path}: {'; '.join(changed)} since it was made, so that nothing is made of it. Restore it, or "
            "make a new run."
        )


def verify(path: Path) -> None:
    """Compare every file with the manifest; needs no torch.

    Raises:
        IntegrityError: files are missing, changed or were added, or there are links; all of them are named.
    """
    digests = Artifact.open(path).manifest["files"]
    faults = changed_files(path, digests)
    faults += [f"{name} is not in the manifest" for name in files_of(path) if name not in digests]
    faults += [f"{name} is a link, which may lead anywhere" for name in _links(path)]
    require_none(path, faults)
