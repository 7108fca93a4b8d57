"""package.json: what predict.py has to know of a model. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.artifact import MANIFEST, Artifact, place
from compressor.errors import InputError
from compressor.files import file_digest
from compressor.packaging.contents import SCHEMA_VERSION
from compressor.packaging.tasks import PACKAGED


def collect(artifact: Artifact, export: str, folder: Path, name: str) -> dict[str, Any]:
    """The facts of one export, a copy of whose files lies in `folder`.

    Raises:
        InputError: predict.py does not know the task, or a text model has no tokenizer.json.
    """
    task, measured = artifact.manifest["task"], artifact.path / place(export)
    if task not in PACKAGED:
        raise InputError(
            f"Packages are made for {', '.join(PACKAGED)}, not for {task}: deploy {measured} with code of your own."
        )
    packaged = PACKAGED[task]
    if packaged.reads == "text" and not (folder / "tokenizer.json").is_file():
        raise InputError(
            f"{measured} has no tokenizer.json, so its tokenizer needs transformers and cannot be packaged. "
            "Convert it to a fast tokenizer and export again."
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "task": task,
        "export": export,
        "labels": artifact.manifest["labels"],
        "artifact": file_digest(artifact.path / MANIFEST),
        **packaged.inputs.facts(artifact.manifest["recipe"], folder),
    }
