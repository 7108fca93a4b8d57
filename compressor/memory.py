"""How much memory this process may still take: what the system has available knows no container's limit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")
VERSIONS = (  # of cgroups: the limit, what is used, and the file and key of the part that is given back when asked for
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def free(device: torch.device) -> float:
    """Bytes that are free on a device and, where that is a GPU, beside it too: what is gathered there ends up here."""
    import psutil
    import torch

    here = min(psutil.virtual_memory().available, allowance())
    if device.type != "cuda":
        return here
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(here, torch.cuda.mem_get_info(device)[0] + unused)


def allowance() -> float:
    """Bytes that the container may still take, by cgroup v2 or v1; infinity where nothing limits it."""
    for limit, used, statistics, given_back in VERSIONS:
        if all((CGROUP / name).is_file() for name in (limit, used, statistics)):
            allowed = (CGROUP / limit).read_text().strip()
            table = dict(line.split() for line in (CGROUP / statistics).read_text().splitlines())
            taken = int((CGROUP / used).read_text()) - int(table.get(given_back, 0))
            return math.inf if allowed == "max" else max(0, int(allowed) - taken)
    return math.inf
