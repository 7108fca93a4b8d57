"""How much memory this process takes, asked of the operating system or of the GPU driver; values in MiB.

Never `ru_maxrss`: Linux carries the parent's value over exec, so a child of a large process reports the parent's peak.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from compressor import nvidia
from compressor.errors import DependencyError
from compressor.threads import usable_threads

MIB = 2**20


class Reading(NamedTuple):
    """MiB at this moment, and the most since the process began."""

    now: float
    peak: float


Gauge = Callable[[], Reading]


def gauge(device: str) -> Gauge:
    """The gauge of what an export on `device` occupies: resident memory, or device memory for "cuda".

    Raises:
        DependencyError: this system offers no peak per process, or no GPU takes this process.
    """
    return _device_gauge() if device == "cuda" else resident


def resident() -> Reading:
    """Resident memory of this process.

    Raises:
        DependencyError: neither Linux's `VmHWM` nor Windows' peak working set is there to be read.
    """
    if sys.platform == "win32":
        import psutil

        info = psutil.Process().memory_info()
        return Reading(info.rss / MIB, info.peak_wset / MIB)
    return _status(Path("/proc/self/status"))


def _status(path: Path) -> Reading:
    """`VmRSS` and `VmHWM` of a Linux status file, given there in KiB."""
    try:
        lines = path.read_text().splitlines()
        kib = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.strip()}
        return Reading(int(kib["VmRSS"]) / 1024, int(kib["VmHWM"]) / 1024)
    except (OSError, KeyError) as error:
        raise DependencyError(
            f"Peak memory cannot be measured here: {path} with VmRSS and VmHWM is needed ({error!r}). "
            "Measure on Linux or Windows."
        ) from error


def _device_gauge() -> Gauge:
    """Memory on the first GPU that CUDA sees: of this process where the driver lists it, else what was added since now.

    Containers hide process ids from the driver; the increase is then right as long as nobody else uses the GPU.
    The peak is the largest reading: the arena of ONNX Runtime gives nothing back while its session lives. CUDA's own
    context, some hundred MiB that any program has, is begun here, so that the first reading, the floor, has it.
    """
    import pynvml

    handle = nvidia.handle()
    before, peak = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used), 0.0
    nvidia.begin_context()

    def read() -> Reading:
        nonlocal peak
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        own = next((p.usedGpuMemory for p in processes if p.pid == os.getpid()), None)
        used = pynvml.nvmlDeviceGetMemoryInfo(handle).used - before if own is None else own
        peak = max(peak, used / MIB)
        return Reading(used / MIB, peak)

    return read


def used(device: str, threads: int) -> dict[str, Any]:
    """What of this machine exports run on: CPU threads, 0 being as many as allowed, and the GPU's name on "cuda"."""
    found: dict[str, Any] = {"threads": threads or usable_threads()}
    return found | ({"gpu": _card()} if device == "cuda" else {})


def _card() -> str | None:
    """The first visible GPU's name; None where no driver tells it."""
    import pynvml

    try:
        name = pynvml.nvmlDeviceGetName(nvidia.handle())
    except (DependencyError, pynvml.NVMLError):
        return None
    return name.decode() if isinstance(name, bytes) else str(name)
