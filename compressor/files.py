"""Files that can be trusted: written whole or not at all, and known by their digests. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compressor.errors import ArtifactError, IntegrityError

MOST_FAULTS = 100  # lines of one message


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write whole or not at all, the same bytes on every system; processes may write the same file at once."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8", newline="\n")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """The same of JSON."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Raises ArtifactError where the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist: {path.parent} is no run or artifact folder.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from error


def read_object(path: Path) -> dict[str, Any]:
    """Raises ArtifactError where the file is missing or damaged, or holds something else than an object."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} cannot be read: it holds a {type(found).__name__}, not an object.")
    return found


def changed_files(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """A phrase for each file that is missing or differs from its digest."""
    phrases = []
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            phrases.append(f"{name} is missing")
        elif file_digest(path) != digest:
            phrases.append(f"{name} has been changed")
    return phrases


def require_none(where: Path, faults: Iterable[str]) -> None:
    """Raises IntegrityError where there are faults; the first hundred are listed."""
    found = list(faults)
    if found:
        rest = [f"and {len(found) - MOST_FAULTS:,} more"] if len(found) > MOST_FAULTS else []
        lines = [f"  {fault}" for fault in (*found[:MOST_FAULTS], *rest)]
        raise IntegrityError("\n".join([f"{where} is not what was made:", *lines]))
