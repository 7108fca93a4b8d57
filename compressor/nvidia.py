"""NVIDIA's driver about the GPU that CUDA takes first, asked without torch and without a runtime."""

from __future__ import annotations

import ctypes
import sys
import uuid
from typing import Any

from compressor.errors import DependencyError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
UNAVAILABLE = 46  # CUDA_ERROR_DEVICE_UNAVAILABLE


def require() -> None:
    """Raises DependencyError where CUDA has no GPU here, or the driver does not say how full it is."""
    handle()


def handle() -> Any:
    """NVML's handle of CUDA's device 0, a card or a MIG slice of one: the two count devices in orders of their own.

    Raises:
        DependencyError: no driver or no GPU is visible.
    """
    import pynvml

    cuda, device = _first()
    found = (ctypes.c_ubyte * 16)()
    if code := cuda.cuDeviceGetUuid_v2(found, device):
        raise _nothing(f"cuDeviceGetUuid_v2 gives {code}")
    name = uuid.UUID(bytes=bytes(found))
    try:
        pynvml.nvmlInit()
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{name}")
        except pynvml.NVMLError:
            return pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{name}")
    except pynvml.NVMLError as error:
        raise _nothing(str(error)) from error


def begin_context() -> None:
    """Retain the context that CUDA's runtime libraries share; where that fails for want of memory, loading says so.

    Raises:
        DependencyError: no driver or no GPU is visible, or it takes no further process.
    """
    cuda, device = _first()
    if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), device) == UNAVAILABLE:
        raise DependencyError(
            "The GPU takes no further process, and exports are measured in processes of their own. Set its compute "
            "mode to default (`nvidia-smi -c 0`), end what else runs there, or ask for `device: cpu`."
        )


def _first() -> tuple[Any, ctypes.c_int]:
    """CUDA's driver, and its device 0."""
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise _nothing(str(error)) from error
    device = ctypes.c_int()
    if code := cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        raise _nothing(f"CUDA's error {code}")
    return cuda, device


def _nothing(reason: str) -> DependencyError:
    return DependencyError(
        f"The device cuda was asked for, but no NVIDIA driver or GPU is visible here ({reason}). Install the driver, "
        "give a container its GPU (`--gpus all`), see what CUDA_VISIBLE_DEVICES hides, or ask for `device: cpu`."
    )
