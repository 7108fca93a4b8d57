"""What this environment offers and what is wrong with it, without importing torch or transformers."""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compressor import registry, threads
from compressor.errors import DependencyError
from compressor.memory import allowance

Status = Literal["ok", "note", "warning", "broken"]
DISTRIBUTION = "rankfold"
GIGABYTE = 1e9

# Installed beside us these are known to break one side: the reason, as found by trying
CONFLICTS = {
    "optimum-onnx": "it pins transformers < 4.58; use its ORTModel classes in an environment of their own",
    "optimum-intel": "it pins an older transformers; use it in an environment of its own",
    "nvidia-modelopt": "it pins its own onnx and onnxruntime; use it in an environment of its own",
    "llmcompressor": "it pins an older transformers and compressed-tensors; use it in an environment of its own",
}
CUDA_BUILD = re.compile(r"^cuda\b.*=\s*['\"]", re.MULTILINE)  # in torch/version.py, where others have None
INT8_FLAGS = ("amx_int8", "avx512_vnni", "avx_vnni")  # x86 instructions that multiply int8 directly


@dataclass(frozen=True)
class Diagnosis:
    """One thing looked at; `remedy` says what to do where it is not ok."""

    topic: str
    status: Status
    text: str
    remedy: str = ""


def diagnose() -> list[Diagnosis]:
    """Everything that is looked at, in a fixed order."""
    checks = (_python, _requirements, _runtimes, _others, _conflicts, _packages, _gpu, _cores, _instructions)
    return [diagnosis for check in (*checks, _memory, _folders) for diagnosis in check()]


def _python() -> Iterator[Diagnosis]:
    from packaging.specifiers import SpecifierSet

    version, wanted = platform.python_version(), metadata.metadata(DISTRIBUTION)["Requires-Python"]
    if SpecifierSet(wanted).contains(version, prereleases=True):
        yield Diagnosis("python", "ok", f"{version} at {sys.executable}")
    else:
        yield Diagnosis("python", "broken", f"{version}; needs {wanted}", "Make an environment with such a Python.")


def _requirements() -> Iterator[Diagnosis]:
    """Every distribution that pyproject.toml requires, against the range it was tested with."""
    from packaging.requirements import Requirement

    for line in metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _requirement(requirement.name, str(requirement.specifier))


def _requirement(name: str, wanted: str) -> Diagnosis:
    from packaging.specifiers import SpecifierSet

    remedy = f"pip install '{name}{wanted}'"
    version = _version(name)
    if version is None:
        return Diagnosis(name, "broken", "not installed", remedy)
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Diagnosis(name, "ok", version)
    ceilings = [one for one in SpecifierSet(wanted) if one.operator in ("<", "<=")]
    newer = any(not ceiling.contains(version, prereleases=True) for ceiling in ceilings)
    status: Status = "warning" if newer else "broken"
    return Diagnosis(
        name, status, f"{version} is {'newer' if newer else 'older'} than what was tested: {wanted}", remedy
    )


def _runtimes() -> Iterator[Diagnosis]:
    """ONNX Runtime: exactly one of its two distributions, and the providers that it offers."""
    found = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if len(found) == 2:
        remedy = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'rankfold[gpu]' (or [cpu])."
        yield Diagnosis("onnxruntime", "broken", "onnxruntime and onnxruntime-gpu overwrite each other's files", remedy)
        return
    if not found:
        yield Diagnosis("onnxruntime", "broken", "not installed", "pip install 'rankfold[cpu]', or 'rankfold[gpu]'.")
        return
    try:
        import onnxruntime
    except ImportError as error:
        remedy = f"pip install --force-reinstall {found[0]}"
        yield Diagnosis(found[0], "broken", f"cannot be imported: {error}", remedy)
        return
    providers = ", ".join(onnxruntime.get_available_providers())
    yield Diagnosis(found[0], "ok", f"{_version(found[0])} with {providers}")


def _others() -> Iterator[Diagnosis]:
    """The runtimes that an extra brings: whether an export for them can be made and run here."""
    for name in registry.names("exporters"):
        try:
            packages = registry.load("exporters", name).packages
        except DependencyError as error:
            yield Diagnosis(name, "broken", str(error))
            continue
        lacking = registry.missing(packages)
        if lacking:
            remedy = f"To export for {name}: {' and '.join(dict.fromkeys(lacking.values()))}"
            yield Diagnosis(name, "note", f"not installed: {', '.join(lacking)}", remedy)
        elif packages:
            yield Diagnosis(name, "ok", ", ".join(f"{one} {_version(one)}" for one in registry.outer(packages)))


def _conflicts() -> Iterator[Diagnosis]:
    for name, reason in CONFLICTS.items():
        if version := _version(name):
            yield Diagnosis(name, "warning", f"{version} shares this environment: {reason}", f"pip uninstall {name}")


def _packages() -> Iterator[Diagnosis]:
    """`exporters` and `validators` are common names: another distribution may have overwritten ours."""
    for package in registry.SHARED_NAMES:
        if place := registry.foreign(package):
            yield Diagnosis(package, "broken", f"found at {place}, which is not rankfold's", registry.REINSTALL)
        else:
            yield Diagnosis(package, "ok", f"rankfold's own, at {Path(__file__).parent.parent / package}")


def _gpu() -> Iterator[Diagnosis]:
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        names = [pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]
    except ImportError:
        return  # already told as a missing requirement
    except pynvml.NVMLError as error:
        yield Diagnosis("gpu", "note", f"no NVIDIA GPU here ({error}); validate.device must be cpu")
        return
    yield Diagnosis("gpu", "ok", ", ".join(names))
    yield from _gpu_unused()


def _gpu_unused() -> Iterator[Diagnosis]:
    """What is installed and leaves the GPU idle."""
    found = importlib.util.find_spec("torch")
    if found and found.origin and not CUDA_BUILD.search(_read(str(Path(found.origin).with_name("version.py")))):
        remedy = "pip uninstall -y torch, then pip install torch, without the index of CPU builds."
        text = "torch is a build without CUDA: calibration and training take the CPU"
        yield Diagnosis("gpu", "warning", text, remedy)
    if not _version("onnxruntime-gpu"):
        remedy = "To measure on it: pip uninstall -y onnxruntime, then pip install 'rankfold[gpu]'."
        yield Diagnosis("gpu", "note", "ONNX Runtime is the CPU build: its exports run on the CPU", remedy)
    elif "CUDAExecutionProvider" not in _providers():
        remedy = "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'rankfold[gpu]'."
        yield Diagnosis("gpu", "warning", "onnxruntime-gpu offers no CUDA: its exports run on the CPU", remedy)


def _providers() -> list[str]:
    """ONNX Runtime's; none where it cannot be imported, which is told already."""
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def _cores() -> Iterator[Diagnosis]:
    total, allowed, quota = os.cpu_count() or 1, threads.affinity(), threads.quota()
    text = f"{allowed} of {total} cores may be used"
    if quota >= allowed:
        yield Diagnosis("threads", "ok", text)
        return
    remedy = f"Give the inference service {threads.usable_threads()} threads: runtimes do not see the quota."
    yield Diagnosis("threads", "warning", f"{text}, but a cgroup quota allows only {quota:g}", remedy)


def _instructions() -> Iterator[Diagnosis]:
    flags = set(_read("/proc/cpuinfo").partition("flags")[2].partition("\n")[0].split())
    if not flags:
        yield Diagnosis("instructions", "note", f"not known for {platform.machine()}; measure whether int8 is faster")
        return
    fast = [flag for flag in INT8_FLAGS if flag in flags]
    if fast:
        yield Diagnosis("instructions", "ok", f"{', '.join(fast)}: int8 is computed directly")
        return
    known = "avx2" if "avx2" in flags else "no avx2"
    text = f"{known}, no VNNI or AMX: int8 saves memory, and may be no faster than fp32"
    yield Diagnosis("instructions", "note", text, "Judge int8 by the report's latency gate.")


def _memory() -> Iterator[Diagnosis]:
    import psutil

    memory, allowed = psutil.virtual_memory(), allowance()
    capped = f", of which a cgroup allows {allowed / GIGABYTE:.1f} GB" if allowed < memory.available else ""
    text = f"{memory.available / GIGABYTE:.1f} of {memory.total / GIGABYTE:.1f} GB available{capped}"
    yield Diagnosis("memory", "ok", text)
    free = shutil.disk_usage(Path.cwd()).free / GIGABYTE
    status: Status = "ok" if free >= 1 else "warning"
    yield Diagnosis("disk", status, f"{free:.1f} GB free here", "" if free >= 1 else "Free some, or use another --out.")


def _folders() -> Iterator[Diagnosis]:
    for variable in ("RANKFOLD_MODELS", "RANKFOLD_DATA"):
        folder = os.environ.get(variable)
        if folder is None:
            yield Diagnosis(variable, "note", "not set: models and data are looked for beside the recipe")
        elif Path(folder).expanduser().is_dir():
            yield Diagnosis(variable, "ok", folder)
        else:
            yield Diagnosis(variable, "warning", f"{folder} is no folder", f"Make it, or unset {variable}.")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    yield Diagnosis(
        "HF_HUB_OFFLINE", "note", "set: nothing is downloaded" if offline else "not set: hub ids are downloaded"
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
