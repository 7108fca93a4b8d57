"""What a figure was measured on: the machine and the versions of what ran on it. Nothing here imports torch."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from compressor.threads import affinity

RECORDED = (
    "rankfold",
    "torch",
    "transformers",
    "optimum",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "nncf",
    "executorch",
    "torchao",
    "numpy",
    "pillow",
)


def versions() -> dict[str, str]:
    """Python's version and those of the installed packages that figures depend on."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory (GiB) and system."""
    import psutil

    return {
        "cpu": _processor(),
        "cores": affinity(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
