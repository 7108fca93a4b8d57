from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from compressor import nvidia
from compressor.errors import DependencyError
from validators import process_memory
from validators.process_memory import MIB, gauge

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_resident_memory_agrees_with_psutil_and_remembers_its_peak():
    read = gauge("cpu")
    before = read()
    assert before.now == pytest.approx(psutil.Process().memory_info().rss / MIB, abs=2)
    ballast = np.ones(int(before.peak - before.now + 100) * MIB, np.uint8)
    during = read()
    del ballast
    after = read()
    assert during.now >= before.peak + 50
    assert after.peak + 2 >= during.now > after.now + 50  # the kernel's counters lag by a fraction of a MiB


def test_a_system_without_a_peak_is_refused_by_name(tmp_path: Path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmRSS:\t   1024 kB\n")
    with pytest.raises(DependencyError, match=r"VmHWM.*Measure on Linux or Windows"):
        process_memory._status(status)
    with pytest.raises(DependencyError, match="absent"):
        process_memory._status(tmp_path / "absent")


class Driver:
    """NVML as far as we use it, with a list of (device MiB in use, processes) to go through."""

    class NVMLError(Exception):
        pass

    def __init__(self, *steps: tuple[int, dict[int, int | None]]) -> None:
        self.steps = list(steps)

    def nvmlDeviceGetName(self, handle: str) -> str:
        return f"a card, {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        used, _ = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        return SimpleNamespace(used=used * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        _, processes = self.steps[0]
        sizes = {pid: None if used is None else used * MIB for pid, used in processes.items()}
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in sizes.items()]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*steps: tuple[int, dict[int, int | None]]) -> Driver:
        made = Driver(*steps)
        monkeypatch.setitem(sys.modules, "pynvml", made)
        monkeypatch.setattr(nvidia, "handle", lambda: "CUDA's first")
        monkeypatch.setattr(nvidia, "begin_context", lambda: None)
        return made

    return install


def test_what_exports_run_on_names_the_gpu_that_is_seen_and_the_threads_that_are_allowed(
    driver: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(process_memory, "usable_threads", lambda: 3)
    driver((0, {}))
    assert process_memory.used("cuda", 0) == {"threads": 3, "gpu": "a card, CUDA's first"}
    assert process_memory.used("cpu", 2) == {"threads": 2}


def refuse() -> None:
    raise DependencyError("no NVIDIA driver here")


def test_a_gpu_without_a_driver_has_no_name(driver: Any, monkeypatch: pytest.MonkeyPatch):
    driver((0, {}))
    monkeypatch.setattr(nvidia, "handle", refuse)
    assert process_memory.used("cuda", 1) == {"threads": 1, "gpu": None}


def test_gpu_memory_is_that_of_this_process_where_the_driver_lists_it(driver: Any):
    driver((5000, {}), (5900, {os.getpid(): 700, 1: 5000}))
    assert gauge("cuda")().now == 700


def test_the_floor_on_a_gpu_has_cudas_own_context(driver: Any, monkeypatch: pytest.MonkeyPatch):
    made = driver((5000, {}), (5600, {os.getpid(): 590}))
    began: list[int] = []
    monkeypatch.setattr(nvidia, "begin_context", lambda: began.append(len(made.steps)))
    assert gauge("cuda")().now == 590
    assert began == [1]  # behind what was in use before, which was read already


@pytest.mark.parametrize("hidden", [{}, {os.getpid(): None}])
def test_gpu_memory_is_the_increase_where_process_ids_are_hidden(driver: Any, hidden: dict[int, int | None]):
    driver((1000, hidden), (1600, hidden), (1250, hidden))
    read = gauge("cuda")
    assert read() == (600, 600)
    assert read() == (250, 600)


@pytest.mark.parametrize("asked", ["handle", "begin_context"])
def test_no_gpu_is_an_environment_error(driver: Any, monkeypatch: pytest.MonkeyPatch, asked: str):
    driver((0, {}))
    monkeypatch.setattr(nvidia, asked, refuse)
    with pytest.raises(DependencyError, match="no NVIDIA driver here"):
        gauge("cuda")
