"""How much memory this process may still take: what the system has available knows no container's limit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from compressor import cgroup

if TYPE_CHECKING:
    import torch

LIMITS = (  # the limit, what is used, and what that is made of
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
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
    return min((_allowed(*texts) for texts in cgroup.read(*LIMITS)), default=math.inf)


def _allowed(limit: str, used: str, parts: str) -> float:
    """Bytes that one group may still take."""
    if limit.strip() == "max":
        return math.inf
    table = dict(line.split() for line in parts.splitlines())
    given_back = table.get("total_inactive_file", table.get("inactive_file", 0))  # of v1, which has both; of v2
    return max(0, int(limit) - (int(used) - int(given_back)))
