"""`export.json`, which every exporter writes beside its files: what the export is and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import ArtifactError

EXPORT_FILE = "export.json"


@dataclass(frozen=True)
class ExportRecord:
    """What an export says of itself."""

    runtime: str
    precision: str
    model_files: tuple[str, ...]  # what a deployment ships
    inputs: tuple[Mapping[str, Any], ...]  # name, dtype and axes of each, in order; empty where it does not say
    facts: Mapping[str, Any]  # all that it says, these among them


def read(folder: Path) -> ExportRecord:
    """The record in a folder.

    Raises:
        ArtifactError: there is none, or it does not say what it is a record of.
    """
    file = folder / EXPORT_FILE
    try:
        facts = dict(json.loads(file.read_text(encoding="utf-8")))
        inputs = tuple({**value, "name": value["name"]} for value in facts.get("inputs", ()))
        return ExportRecord(facts["runtime"], facts["precision"], tuple(facts.get("model_files", ())), inputs, facts)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder} is no export: {EXPORT_FILE} is missing. Name a folder under exports/ of a run, or export again."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} cannot be read ({error!r}): {folder} is no whole export, export again.") from error
