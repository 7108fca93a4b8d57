"""What the kernel's control groups say of this process's container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def read(*places: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The texts of files, of every group that this process is in, from its own up to the root.

    Of the first of `places` that there is anything of: the names of the files in cgroup v2, then in v1, there behind
    their controller ("cpu/cpu.cfs_quota_us"). Each group limits those in it, so that the least counts.
    """
    for names in places:
        found = [tuple(path.read_text() for path in paths) for paths in _files(names)]
        if found:
            return found
    return []


def _files(names: tuple[str, ...]) -> Iterator[list[Path]]:
    """The named files of a group, of each group that has all of them."""
    controller, _, _ = names[0].rpartition("/")
    group = _group(controller)
    for folder in (group, *group.parents):
        paths = [ROOT / controller / folder / name.rpartition("/")[2] for name in names]
        if all(path.is_file() for path in paths):
            yield paths


def _group(controller: str) -> Path:
    """This process's group under a controller's root; with an empty name that of cgroup v2."""
    lines = OWN.read_text().splitlines() if OWN.is_file() else []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controller in controllers.split(","):
            return Path(path.lstrip("/"))
    return Path()
