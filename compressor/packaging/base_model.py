"""What is known of the checkpoint that a model was made from: its name and its license. Nothing here imports torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from compressor.paths import HUB_ID

LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING")
UNKNOWN = "unknown"
TEXT = "tag:yaml.org,2002:str"


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
    found = Path(path) / name if local else _cached(path, name, revision) if hub else None
    return found if found and _is_own(found) else None


def _cached(path: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _is_own(file: Path) -> bool:
    """Whether a file is there and no link that leads out of its checkpoint, which would ship what lies there."""
    folder = file.parent.resolve()
    cached = folder.parent.name == "snapshots" and (folder.parents[1] / "blobs").is_dir()  # the hub's cache has links
    return file.is_file() and file.resolve().is_relative_to(folder.parents[1] if cached else folder)


def _stated(readme: Path) -> str:
    """The licenses in the front matter of a model card; by its name one that the hub has no identifier for."""
    text = readme.read_text(encoding="utf-8-sig", errors="replace")
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.DOTALL)
    try:
        root = yaml.compose(front[1], yaml.SafeLoader) if front else None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):  # somebody else's file: then it is not known
        return UNKNOWN
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    told = {key.value: _texts(value) for key, value in entries if isinstance(key, yaml.ScalarNode)}
    stated = told.get("license", [])
    return ", ".join((stated == ["other"] and told.get("license_name")) or stated) or UNKNOWN


def _texts(node: yaml.Node) -> list[str]:
    """The text of a node, or those of a list's items, each once: an anchor makes many of one."""
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    return list(dict.fromkeys(item.value for item in items if item.tag == TEXT and item.value))
