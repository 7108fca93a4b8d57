"""How many CPU threads this process may use: inference runtimes look at neither affinity nor container limits."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_threads() -> int:
    """Cores that the scheduler may give this process, cut to the container's quota; at least 1."""
    return math.ceil(min(affinity(), quota()))


def affinity() -> int:
    """Cores that the scheduler may give this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota() -> float:
    """Cores granted by cgroup v2 (`cpu.max`: "quota period" in us) or v1; infinity where nothing limits them."""
    places = (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"])
    found = [names for names in places if all((CGROUP / name).is_file() for name in names)]
    if not found:
        return math.inf
    granted, period = " ".join((CGROUP / name).read_text() for name in found[0]).split()
    return math.inf if granted in ("max", "-1") else int(granted) / int(period)
