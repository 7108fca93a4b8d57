"""`verify`: a package as archive or folder, or a run folder, against its digests. Nothing here imports torch."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compressor import artifact
from compressor.errors import ArtifactError, IntegrityError
from compressor.files import require_none
from compressor.packaging import archive, contents
from compressor.packaging.contents import FACTS, MANIFEST, SIGNATURE, UNLISTED


@dataclass(frozen=True)
class Verified:
    """What was compared, and whether there is a signature."""

    path: Path
    kind: Literal["run", "package"]
    files: int
    signature: Literal["none", "unchecked", "verified"] = "none"

    def __str__(self) -> str:
        told = {
            "none": "" if self.kind == "run" else "; not signed",
            "unchecked": "; signed, but without --public-key nobody knows by whom",
            "verified": "; the signature holds",
        }
        return f"{self.path}: {self.files} files, none changed{told[self.signature]}"


def verify(path: Path | str, public_key: Path | str | None = None) -> Verified:
    """Compare every file of a package (archive or folder) or of a run folder with its digest.

    With a public key, the package's signature too.

    Raises:
        ArtifactError: there is nothing of the kind at `path`, or the key cannot be read.
        DependencyError: a signature is to be checked, and model-signing is not installed.
        IntegrityError: files are missing, changed or were added (all are named), or the signature does not hold.
    """
    path, key = Path(path), Path(public_key) if public_key else None
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: name a package, its unpacked folder, or a run folder.")
    if path.is_file():
        return _archive(path, key)
    if (path / MANIFEST).is_file() or (path / FACTS).is_file():
        return _folder(path, key)
    return _run(path, key)


def _run(path: Path, key: Path | None) -> Verified:
    if key:
        raise ArtifactError(f"{path} is no package: run folders are not signed. Leave --public-key out.")
    artifact.verify(path)
    return Verified(path, "run", len(artifact.Artifact.open(path).manifest["files"]))


def _archive(path: Path, key: Path | None) -> Verified:
    found = archive.check(path)
    if key:
        with tempfile.TemporaryDirectory() as scratch:
            _signed(archive.unpack(path, scratch), key)
    return _verified(path, found.files, key)


def _folder(path: Path, key: Path | None) -> Verified:
    if not (path / MANIFEST).is_file():
        raise IntegrityError(f"{path}: {MANIFEST} is missing, so there is nothing to compare with.")
    found = contents.files_in(path)
    listed = contents.read_manifest((path / MANIFEST).read_bytes(), path)
    require_none(path, contents.differences(listed, found))
    if key:
        _signed(path, key)
    return _verified(path, found, key)


def _verified(path: Path, found: dict[str, contents.File], key: Path | None) -> Verified:
    signature: Literal["none", "unchecked", "verified"] = "unchecked" if SIGNATURE in found else "none"
    return Verified(path, "package", len(found.keys() - UNLISTED), "verified" if key else signature)


def _signed(folder: Path, key: Path) -> None:
    from compressor.packaging import signing

    signing.verify(folder, key)
