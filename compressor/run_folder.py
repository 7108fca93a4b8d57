"""The run folder: stages that finish whole or not at all, in a folder that is one process's at a time.

    runs/x/
      run.json      the recipe as resolved, the stages that are finished, their files' digests and seconds
      .work/        scratch and checkpoints; empty when a run is finished
      .lock         held by the process that is at work here

What else lies there is in `artifact.py`. Nothing here imports torch.
"""

from __future__ import annotations

import errno
import shutil
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compressor import progress
from compressor.errors import ArtifactError, InputError
from compressor.files import changed_files, file_digest, read_json, write_json
from compressor.sharing import share

SCHEMA_VERSION = 1
STATE = "run.json"
SCRATCH = ".work"
LOCK = ".lock"


@contextmanager
def alone(folder: Path, *, writes: bool = True) -> Iterator[None]:
    """Keep other processes out of a run folder; nothing where there is no such folder.

    Who only reads (`writes=False`) goes on without where the folder does not let a lock be written.

    Raises:
        ArtifactError: another process is at work there.
    """
    if not folder.is_dir():
        yield
        return
    try:
        lock = _lock(folder)
    except OSError as error:
        if writes or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _lock(folder: Path) -> FileLock:
    """The folder's lock, taken; the system lets go of it when this process ends, in whichever way."""
    lock = FileLock((folder / LOCK).resolve(), is_singleton=True, thread_local=False)  # counts within one process
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ArtifactError(
            f"Another process is at work in {folder}. Wait until it has ended, or use another --out."
        ) from error
    return lock


def require_spared(sources: Iterable[str], folder: Path) -> None:
    """Raises InputError naming what a recipe reads, or the recipe, where that lies in a folder to be overwritten."""
    inside = [path for path in sources if Path(path).resolve().is_relative_to(folder.resolve())]
    if inside:
        raise InputError(
            f"{', '.join(inside)} {'lies' if len(inside) == 1 else 'lie'} in {folder}, which --overwrite would remove "
            "with it: copy it elsewhere first, or use another --out."
        )


class Run:
    """One run folder: which stages are finished, and a place to make the next one in.

    The folder is this process's alone as long as the object lives.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any], *, resume: bool = False, overwrite: bool = False) -> None:
        """Open a folder for a recipe; what it holds is removed for `overwrite` when the first stage begins, not before.

        Raises:
            ArtifactError: there is something there already and neither flag is given, or it was made by another recipe,
                or a file of a finished stage has been changed, or another process is at work there.
            InputError: both flags are given.
        """
        if resume and overwrite:
            raise InputError("--resume goes on with a run and --overwrite starts it again: give one of them.")
        self.folder = folder
        self.scratch = folder / SCRATCH
        _require_permission(folder, asked=resume or overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        weakref.finalize(self, _lock(folder).release)
        _require_permission(folder, asked=resume or overwrite)  # another process may just have begun and ended
        self.replaces = overwrite
        old = None if overwrite else recorded(folder)
        if old and not resume and not old["stages"]:  # one that ended before it had anything
            old = None
        self.state: dict[str, Any] = old or {"schema_version": SCHEMA_VERSION, "recipe": recipe, "stages": {}}
        if self.state["recipe"] != recipe:
            changed = ", ".join(_differences(self.state["recipe"], recipe))
            raise ArtifactError(
                f"{folder} was begun with another recipe: {changed}. Use another --out, or --overwrite."
            )
        self._require_untouched()
        self._save()

    def _begin(self) -> None:
        """Remove what is to be overwritten: what the recipe asks for has been found to be possible."""
        if self.replaces:
            for lock in self.folder.glob(f"*/*/{LOCK}"):  # trials are run folders of their own
                with alone(lock.parent):
                    pass
            _empty(self.folder)
            self.replaces = False
            self._save()

    def _require_untouched(self) -> None:
        digests = {name: digest for stage in self.state["stages"].values() for name, digest in stage["files"].items()}
        changed = changed_files(self.folder, digests)
        if changed:
            raise ArtifactError(
                f"{self.folder}: {'; '.join(changed)} since the stage that made it. Restore it, or start again with "
                "--overwrite (an edited plan is replayed with plan.path)."
            )

    def _save(self) -> None:
        if not self.replaces:
            write_json(self.folder / STATE, self.state)

    def require_same_data(self, facts: Mapping[str, Any]) -> None:
        """Note what was read when the run was begun; later, that it is still the same.

        Args:
            facts: `digest` and more of each split, by name.

        Raises:
            ArtifactError: a split has other rows now.
        """
        digests = {f"data.{name}": split["digest"] for name, split in facts.items() if isinstance(split, Mapping)}
        self.require_same("data", digests, "other rows of {}: what is finished there was made of those")

    def require_same(self, kind: str, digests: Mapping[str, str], changed: str) -> None:
        """Note digests, by the keys of the recipe, when the run is begun; later, that they are still the same.

        Args:
            kind: under which they stand in the run's state.
            digests: what they are now.
            changed: what is said where some differ, `{}` for their keys.

        Raises:
            ArtifactError: some differ.
        """
        if kind not in self.state:
            self.state[kind] = dict(digests)
            self._save()
        known = self.state[kind]
        names = [name for name in sorted({*known, *digests}) if known.get(name) != digests.get(name)]
        if names:
            raise ArtifactError(
                f"{self.folder} was begun with {changed.format(', '.join(names))}. Bring it back, use another --out, "
                "or start again with --overwrite."
            )

    def finished(self, stage: str) -> bool:
        """Whether a stage's outputs are there."""
        return stage in self.state["stages"]

    @contextmanager
    def stage(self, name: str, title: str, outputs: Sequence[str]) -> Iterator[Path]:
        """A scratch folder to make `outputs` (relative names) in; they move to the run folder if all goes well."""
        self._begin()
        scratch = self.scratch / name
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        start = time.monotonic()
        with progress.stage(title):
            yield scratch
        for output in outputs:
            _replace(scratch / output, self.folder / output)
        shutil.rmtree(scratch)
        made = [file for output in outputs for file in _files_under(self.folder, output)]
        digests = {file: file_digest(self.folder / file) for file in made}
        self.state["stages"][name] = {"files": digests, "seconds": round(time.monotonic() - start, 3)}
        self._save()

    def adopt(self, name: str, other: Run) -> None:
        """Take over a finished stage of another run, its files, digests and seconds; nothing where it is finished."""
        if self.finished(name):
            return
        self._begin()
        stage = other.state["stages"][name]
        for file in stage["files"]:
            share(other.folder / file, self.folder / file)
        self.state["stages"][name] = stage
        self._save()

    @property
    def seconds(self) -> dict[str, float]:
        """How long each finished stage took."""
        return {name: stage["seconds"] for name, stage in self.state["stages"].items()}


def recorded(folder: Path) -> dict[str, Any] | None:
    """What a run's file says; None where there is none, or one that no run wrote."""
    found = read_json(folder / STATE) if (folder / STATE).is_file() else None
    ours = isinstance(found, dict) and all(isinstance(found.get(key), dict) for key in ("recipe", "stages"))
    return found if ours else None


def _empty(folder: Path) -> None:
    """Remove all but the lock, which other processes look for; last what says that it is a run."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == STATE):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _require_permission(folder: Path, *, asked: bool) -> None:
    """A folder that holds something is only touched if a run made it and a flag says so."""
    if not folder.exists() or all(path.name == LOCK for path in folder.iterdir()):
        return
    old = recorded(folder)
    if old is None:
        raise ArtifactError(f"{folder} holds files that no run made; they are left as they are. Use another --out.")
    if not asked and old["stages"]:
        done = ", ".join(old["stages"]) or "nothing"
        raise ArtifactError(
            f"{folder} holds a run (finished: {done}). Add --resume to go on or --overwrite to start again."
        )


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _files_under(folder: Path, name: str) -> list[str]:
    path = folder / name
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file.relative_to(folder).as_posix() for file in inside if file.is_file()]


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    elif old != new:
        yield f"{path} was {old!r}, is {new!r}"
