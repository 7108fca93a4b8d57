"""Files that several runs have in common: the large ones as hard links, which take no room, the small ones as copies.

A link and its origin are one file: nothing here or elsewhere writes into a file of a run, all are replaced whole. Small
files are copied so that a person who edits one (a plan, say) edits that one alone.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LARGE = 2**20  # bytes


def share(source: Path, target: Path) -> None:
    """Have a file at a second place too, replacing what is there; a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.partial")
    scratch.unlink(missing_ok=True)
    if source.stat().st_size < LARGE or not _linked(source, scratch):
        shutil.copyfile(source, scratch)
    scratch.replace(target)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        return False
    return True


def share_folder(source: Path, target: Path) -> None:
    """Have a folder at a second place too, whole or not at all; nothing where something is there already."""
    if target.exists():
        return
    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    for file in sorted(source.rglob("*")):
        if file.is_file():
            share(file, scratch / file.relative_to(source))
    scratch.replace(target)
