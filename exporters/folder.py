"""A new folder that appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import ExportError, ResourceError


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
