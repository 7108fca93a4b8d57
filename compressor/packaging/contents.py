"""What lies in a package, and its manifest: the size and SHA-256 of every file. Nothing here imports torch.

<name>/
  README.md              model card
  predict.py             gives a prediction in one command; requirements.txt says what it needs
  package.json           what predict.py has to know
  model/                 the export: graph, config, tokenizer or image processor
  bom.cdx.json           CycloneDX ML-BOM
  LICENSE-base           the base model's, where its checkpoint has one
  manifest.json          size and SHA-256 of all of these
  model.sig              signature over all of these and the manifest, where a key was given
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from compressor.errors import ArtifactError, IntegrityError
from compressor.files import file_digest, require_none, write_json

SCHEMA_VERSION = 1
FACTS = "package.json"
MANIFEST = "manifest.json"
SIGNATURE = "model.sig"
BOM = "bom.cdx.json"
CARD = "README.md"
RUNNER = "predict.py"
REQUIREMENTS = "requirements.txt"
LICENSE = "LICENSE-base"
MODEL = "model"
LONGEST_SHOWN = 100  # characters of a name
UNLISTED = frozenset({MANIFEST, SIGNATURE})  # a manifest cannot list itself, and the signature covers the manifest


class File(NamedTuple):
    """One file of a package."""

    size: int  # bytes
    sha256: str


def files_in(folder: Path) -> dict[str, File]:
    """The files under a folder by their relative names, sorted.

    Raises:
        IntegrityError: there are links or devices among them; all are named.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    odd = [path.relative_to(folder).as_posix() for path in paths if path.is_symlink() or not path.is_file()]
    require_none(folder, [f"{shown(name)} is a link or a device; a package holds plain files" for name in odd])
    return {path.relative_to(folder).as_posix(): File(path.stat().st_size, file_digest(path)) for path in paths}


def write_manifest(folder: Path) -> None:
    """manifest.json of all the files that are there now."""
    listed = {name: file._asdict() for name, file in files_in(folder).items() if name not in UNLISTED}
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, "files": listed})


def read_manifest(text: bytes, where: Path) -> dict[str, File]:
    """The files that a manifest lists; `where` is the package, for messages.

    Raises:
        ArtifactError: another schema version.
        IntegrityError: no manifest of ours, or a damaged one.
    """
    try:
        data = json.loads(text)
        version = data["schema_version"]
        if version != SCHEMA_VERSION:  # of which nothing else is known
            raise ArtifactError(
                f"{where} has schema version {version}; this version reads {SCHEMA_VERSION}. Take the rankfold that "
                "made it, or package the run again."
            )
        return {str(name): File(int(file["size"]), str(file["sha256"])) for name, file in data["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise IntegrityError(f"{where}: {MANIFEST} cannot be read: it is damaged, or no package's.") from error


def differences(listed: Mapping[str, File], found: Mapping[str, File]) -> list[str]:
    """A phrase for each file that is missing, differs from the manifest, or is not in it."""
    phrases = []
    for name, file in listed.items():
        if name not in found:
            phrases.append(f"{shown(name)} is missing")
        elif found[name].size != file.size:
            phrases.append(f"{shown(name)} has been changed: it has {found[name].size:,} bytes, not {file.size:,}")
        elif found[name].sha256 != file.sha256:
            phrases.append(f"{shown(name)} has been changed")
    new = (name for name in found if name not in listed and name not in UNLISTED)
    return phrases + [f"{shown(name)} is not in the manifest" for name in new]


def shown(name: str) -> str:
    """A file's name, which may be hostile, for messages: quoted, without what a terminal or a CI would obey, cut."""
    return repr(name[:LONGEST_SHOWN])


def read_facts(folder: Path) -> dict[str, Any]:
    """package.json of an unpacked package."""
    return dict(json.loads((folder / FACTS).read_text(encoding="utf-8")))
