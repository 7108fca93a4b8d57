"""package.json: what predict.py has to know of a model. Nothing here imports torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compressor.artifact import MANIFEST, Artifact, place
from compressor.errors import InputError
from compressor.files import file_digest
from compressor.packaging.contents import SCHEMA_VERSION
from compressor.packaging.tasks import PACKAGED
from compressor.tasks.multiple_choice import PROMPT
from exporters.generate import ends, places, turn


def collect(artifact: Artifact, export: str, folder: Path, name: str) -> dict[str, Any]:
    """The facts of one export, a copy of whose files lies in `folder`.

    Raises:
        InputError: predict.py does not know the task, or a text model has no tokenizer.json.
    """
    task, measured = artifact.manifest["task"], artifact.path / place(export)
    if task not in TASKS:
        raise InputError(
            f"Packages are made for {', '.join(TASKS)}, not for {task}: deploy {measured} with code of your own."
        )
    if PACKAGED[task].reads == "text" and not (folder / "tokenizer.json").is_file():
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
        **TASKS[task](artifact.manifest["recipe"], folder),
    }


def _image(_: Mapping[str, Any], __: Path) -> dict[str, Any]:
    return {}


def _text(recipe: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {
        "max_length": _length(recipe, folder),
        "truncation_side": _settings(folder).get("truncation_side") or "right",
        "pair": bool(recipe["data"]["train"].get("text_pair")),
    }


def _generation(_: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    config = _read(folder / "config.json")
    limits = [limit for limit in (places(config), turn(config)) if limit]
    return {"longest": min(limits, default=None), "stop": ends(config)}


def _choice(recipe: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {"max_length": _length(recipe, folder), "prompt": PROMPT, "opening": _opening(folder)}


def _length(recipe: Mapping[str, Any], folder: Path) -> int:
    """Where texts are cut: as for training, but not behind what the model and its tokenizer take."""
    limits = (places(_read(folder / "config.json")), _settings(folder).get("model_max_length"))
    return int(min([recipe["model"]["max_length"], *(limit for limit in limits if limit)]))


TASKS: dict[str, Callable[[Mapping[str, Any], Path], dict[str, Any]]] = {
    "text-classification": _text,
    "image-classification": _image,
    "text-generation": _generation,
    "multiple-choice": _choice,
}


def _opening(folder: Path) -> list[int]:
    """The token that the tokenizer begins every text with, where it has one."""
    from tokenizers import Tokenizer

    named = _settings(folder).get("bos_token")
    token = named.get("content") if isinstance(named, Mapping) else named
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first = tokenizer.encode("").ids[:1]
    return first if token and first == [tokenizer.token_to_id(token)] else []


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json."""
    return _read(folder / "tokenizer_config.json")


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
