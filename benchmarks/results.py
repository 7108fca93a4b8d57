"""JSON lines files of results: one row for each run or measurement, never run again once it is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compressor import progress
from compressor.errors import RankfoldError

TOLD = (
    "export",
    "what",
    "phase",
    "suite",
    "arm",
    "budget",
    "seed",
    "learning_rate",
    "accuracy",
    "perplexity",
    "seconds",
)
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The rows of a file, none where there is no file; a last line that a kill cut short is left out."""
    lines = path.read_text().splitlines() if path.is_file() else []
    *whole, last = lines or [""]
    return [json.loads(line) for line in whole if line] + _maybe(last)


def _maybe(line: str) -> list[Row]:
    try:
        return [json.loads(line)]
    except json.JSONDecodeError:
        return []


class Rows:
    """The rows of a file, and more appended to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = read(path)

    def find(self, **key: Any) -> list[Row]:
        """Rows with these values."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in key.items())]

    def add(self, row: Row) -> None:
        """Append one row."""
        self.rows.append(row)
        self._mend()
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        progress.note(" ".join(f"{key}={row[key]}" for key in TOLD if key in row))

    def _mend(self) -> None:
        """End a last line that a kill cut short: complete it where it is a row, else take it out."""
        text = self.path.read_bytes() if self.path.is_file() else b""
        start = text.rfind(b"\n") + 1
        if start < len(text):
            self.path.write_bytes(text + b"\n" if _maybe(text[start:].decode()) else text[:start])


def exit_code(work: Callable[[], object]) -> int:
    """Do a benchmark's work; an error on purpose is one sentence and its exit code."""
    try:
        work()
    except RankfoldError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0
