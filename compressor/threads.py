"""How many CPU threads this process may use: inference runtimes look at neither affinity nor container limits."""

from __future__ import annotations

import math
import os

from compressor import cgroup


def usable_threads() -> int:
    """Cores that the scheduler may give this process, cut to the container's quota; at least 1."""
    return math.ceil(min(affinity(), quota()))


def affinity() -> int:
    """Cores that the scheduler may give this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota() -> float:
    """Cores granted by cgroup v2 (`cpu.max`: "quota period" in us) or v1; infinity where nothing limits them."""
    groups = cgroup.read(("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
    limits = (" ".join(texts).split() for texts in groups)
    return min(
        (int(granted) / int(period) for granted, period in limits if granted not in ("max", "-1")), default=math.inf
    )
