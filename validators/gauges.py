"""How much memory this process takes, asked of the operating system or of the GPU driver; values in MiB.

Never `ru_maxrss`: Linux carries the parent's value over exec, so a child of a large process reports the parent's peak.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
        DependencyError: this system offers no peak per process, or there is no NVIDIA driver.
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
    """Memory on the first visible GPU: of this process where the driver lists it, else what was added since now.

    Containers hide process ids from the driver; the increase is then right as long as nobody else uses the GPU.
    The peak is the largest reading: the arena of ONNX Runtime gives nothing back while its session lives. CUDA's own
    context, some hundred MiB that any program has, is begun here, so that the first reading, the floor, has it.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = _first_visible(pynvml)
    except pynvml.NVMLError as error:
        raise DependencyError(f"No NVIDIA GPU can be measured here: {error}. Set `validate.device: cpu`.") from error
    before, peak = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used), 0.0
    _begin_context()

    def read() -> Reading:
        nonlocal peak
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        own = next((p.usedGpuMemory for p in processes if p.pid == os.getpid()), None)
        used = pynvml.nvmlDeviceGetMemoryInfo(handle).used - before if own is None else own
        peak = max(peak, used / MIB)
        return Reading(used / MIB, peak)

    return read


def _begin_context() -> None:
    """Retain the context that CUDA's runtime libraries share; where that fails, loading says what is wrong."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if not cuda.cuInit(0) and not cuda.cuDeviceGet(ctypes.byref(device), 0):
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


def used(device: str, threads: int) -> dict[str, Any]:
    """What of this machine exports run on: CPU threads, 0 being as many as allowed, and the GPU's name on "cuda"."""
    found: dict[str, Any] = {"threads": threads or usable_threads()}
    return found | ({"gpu": _card()} if device == "cuda" else {})


def _card() -> str | None:
    """The first visible GPU's name; None where no driver tells it."""
    import pynvml

    try:
        pynvml.nvmlInit()
        name = pynvml.nvmlDeviceGetName(_first_visible(pynvml))
    except pynvml.NVMLError:
        return None
    return name.decode() if isinstance(name, bytes) else str(name)


def _first_visible(pynvml: Any) -> Any:
    """The driver's handle of CUDA device 0; the child counts devices as NVML does (CUDA_DEVICE_ORDER=PCI_BUS_ID)."""
    name = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if name.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)
