"""What is known of the checkpoint that a model was made from: its name and its license. Nothing here imports torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from compressor.paths import HUB_ID

LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class BaseModel:
    """A checkpoint as people know it."""

    name: str  # a hub id, or the last part of a path
    hub: bool
    license: str = UNKNOWN  # the hub's identifiers, as the checkpoint's README states them, between commas
    license_file: Path | None = None


def find(path: str, revision: str | None = None) -> BaseModel:
    """Look into a local checkpoint, or into what the hub's cache holds of a remote one; nothing is fetched."""
    local = Path(path).is_dir()
    hub = not local and HUB_ID.fullmatch(path) is not None
    files = {name: _file(path, name, revision, local, hub) for name in ("README.md", *LICENSE_FILES)}
    texts = [files[name] for name in LICENSE_FILES if files[name]]
    readme = files["README.md"]
    name = path if hub else Path(path).name
    return BaseModel(name, hub, _stated(readme) if readme else UNKNOWN, texts[0] if texts else None)


def _file(path: str, name: str, revision: str | None, local: bool, hub: bool) -> Path | None:
    if local:
        return Path(path) / name if (Path(path) / name).is_file() else None
    if not hub:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _stated(readme: Path) -> str:
    """The licenses in the front matter of a model card; by its name one that the hub has no identifier for."""
    front = re.match(r"---\s*\n(.*?)\n---\s*\n", readme.read_text(encoding="utf-8-sig", errors="replace"), re.DOTALL)
    try:
        data = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:  # somebody else's file: what cannot be read is not known
        return UNKNOWN
    told = data if isinstance(data, dict) else {}
    found = told.get("license")
    named = told.get("license_name") if found == "other" else None
    stated = [named or found] if isinstance(found, str) else found if isinstance(found, list) else []
    return ", ".join(str(one) for one in stated if one) or UNKNOWN
