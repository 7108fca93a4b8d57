"""Where a path of a recipe leads: beside the recipe, the current folder, a collection, or the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from compressor.errors import InputError, did_you_mean

MODELS, DATA = "RANKFOLD_MODELS", "RANKFOLD_DATA"  # environment variables that name a folder to look in
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # "package.module:function"
FILES = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".txt", ".arrow", ".safetensors", ".zip", ".gz")


def is_factory(path: str) -> bool:
    """Whether a path names a function that makes the model, "package.module:function"."""
    return bool(FACTORY.fullmatch(path))


def as_hub_id(path: str) -> str:
    """What is said of a path that was found nowhere and so was taken for a hub id; nothing of a folder."""
    if Path(path).exists():
        return ""
    collection = Path(os.environ.get(MODELS) or ".")
    near = did_you_mean(path, (entry.name for entry in collection.iterdir())) if collection.is_dir() else ""
    return (
        f" {path} is no folder beside the recipe, in the current folder or in ${MODELS}, so it was taken for a hub "
        f"id.{near}"
    )


def resolve(path: str, base: Path, variable: str | None, *, code: bool = False) -> str:
    """The absolute local path, or the hub id, or where `code` allows it the factory, unchanged.

    Looked up in turn: beside the recipe (`base`), in the current folder, in the folder that the environment variable
    `variable` names; what is found nowhere and looks like `name` or `owner/name` is a hub id, unless there is a folder
    `owner` at one of these places. Without a variable only local files are meant.

    Raises:
        InputError: an environment variable is not set, or a local path is nowhere; all places tried are named.
    """
    expanded = _expand(path)
    if is_factory(expanded):
        if code:
            return expanded
        raise InputError(f"'{path}' names code, which only model.path may do: name a file or folder here.")
    tried = [folder / expanded for folder in _folders(base, variable)]  # an absolute path swallows the folder
    found = next((place for place in tried if place.exists()), None)
    if found is not None:
        return os.path.abspath(found)  # noqa: PTH100 (a link's own name says of what kind it is, its target's may not)
    parents = [place.parent for place in tried if "/" in expanded and place.parent.is_dir()]
    if variable and HUB_ID.fullmatch(expanded) and not expanded.endswith(FILES) and not parents:
        return expanded
    places = ", ".join(dict.fromkeys(map(os.path.abspath, tried)))
    near = did_you_mean(Path(expanded).name, (entry.name for parent in parents for entry in parent.iterdir()))
    raise InputError(f"'{path}' does not exist. Looked for {places}.{near}{_hint(expanded, variable)}")


def _expand(path: str) -> str:
    expanded = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111 (Path would make a hub id of ./name)
    unset = re.search(r"\$(\w+|\{[^}]*\})", expanded)
    if unset:
        raise InputError(f"'{path}' names the environment variable {unset[0]}, which is not set.")
    if not expanded.strip():
        raise InputError(f"'{path}' is empty: name a file or folder.")
    return expanded


def _folders(base: Path, variable: str | None) -> list[Path]:
    collection = os.environ.get(variable) if variable else None
    return [base, Path.cwd(), *([Path(collection).expanduser()] if collection else [])]


def _hint(expanded: str, variable: str | None) -> str:
    if variable is None or Path(expanded).is_absolute() or variable in os.environ:
        return ""
    return f" ${variable} is not set; it may name one more folder to look in."
