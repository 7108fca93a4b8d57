"""The folder of an export, which appears whole or not at all, and what its `export.json` says in every runtime."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor.errors import ExportError, ResourceError
from exporters.base import Exporter

SCHEMA_VERSION = 1  # of export.json


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A scratch folder beside `path` that takes its name on success and is removed on failure.

    What a killed run left behind is a hidden `.<name>.partial`, cleared by the next one.

    Raises:
        ExportError: `path` exists already.
        ResourceError: the disk refuses the files.
    """
    if path.exists():
        raise ExportError(f"{path} exists already, and an export overwrites nothing: remove it or name another folder.")
    scratch = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        yield scratch
        scratch.rename(path)
    except OSError as error:
        raise ResourceError(
            f"The export to {path} could not be written: {error}. Check space and permissions."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def facts(exporter: Exporter, folder: Path, files: Sequence[str], versions: Mapping[str, str]) -> dict[str, Any]:
    """What is said of every export: its exporter, the sizes of its model's files, the versions that wrote them."""
    return {
        "schema_version": SCHEMA_VERSION,
        "runtime": exporter.name,
        "precision": exporter.precision,
        "model_files": list(files),
        "file_bytes": {name: (folder / name).stat().st_size for name in files},
        "versions": dict(versions),
    }


def save_config(config: Any, folder: Path) -> bool:
    """A model's config beside the graph, where optimum's and transformers' loaders look for it; whether it has one."""
    save = getattr(config, "save_pretrained", None)
    if callable(save):
        save(folder)
    return callable(save)
