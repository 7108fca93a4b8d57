"""Markdown appended to the file that $GITHUB_STEP_SUMMARY names, which GitHub Actions shows on the run's page."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Protocol

VARIABLE = "GITHUB_STEP_SUMMARY"  # set by GitHub Actions and by nothing else; no other variable of a CI is read


class Told(Protocol):
    """A result that can be told in markdown."""

    def to_markdown(self) -> str:
        """Headings and tables, names escaped."""
        ...


def append(result: Told, path: Path | None = None) -> None:
    """Append a result to the step summary, where there is one, and to `path`; once where both are the same file.

    A summary that cannot be written is noted on stderr and hides neither result nor exit code.

    Raises:
        OSError: `path` cannot be written.
    """
    named = os.environ.get(VARIABLE)
    if path is not None:
        _append(path, result)
    if named and (path is None or Path(named).resolve() != path.resolve()):
        try:
            _append(Path(named), result)
        except OSError as error:
            sys.stderr.write(f"warning: ${VARIABLE} names {named}, which cannot be written: {error.strerror}.\n")


def _append(path: Path, result: Told) -> None:
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(f"{result.to_markdown()}\n")
