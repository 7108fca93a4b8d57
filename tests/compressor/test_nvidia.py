"""NVIDIA's driver, played by a library of six functions and an NVML that knows one UUID."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from compressor import nvidia
from compressor.errors import DependencyError

NAME = "8932f937-d72c-4106-c12f-20bd9faed9f6"


class Cuda:
    """A driver with one device; `codes` are what its functions return, 0 being success."""

    def __init__(self, **codes: int) -> None:
        self.codes, self.called = codes, list[str]()

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == "cuDeviceGetUuid_v2":
                arguments[0][:] = uuid.UUID(NAME).bytes
            return self.codes.get(name, 0)

        return call


class Nvml:
    """An NVML that starts or not, and knows a device by one name."""

    class NVMLError(Exception):
        pass

    def __init__(self, known: str, *, starts: bool = True) -> None:
        self.known, self.starts = known, starts

    def nvmlInit(self) -> None:
        if not self.starts:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        if name != self.known:
            raise self.NVMLError("Not Found")
        return f"handle of {name}"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cuda]:
    def install(cuda: Cuda, nvml: Nvml) -> Cuda:
        monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda _: cuda)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return cuda

    return install


@pytest.mark.parametrize("kind", ["GPU", "MIG"])
def test_the_handle_is_that_of_the_device_that_cuda_takes_whatever_its_number(
    machine: Callable[..., Cuda], kind: str
) -> None:
    machine(Cuda(), Nvml(f"{kind}-{NAME}"))
    assert nvidia.handle() == f"handle of {kind}-{NAME}"
    nvidia.require()


@pytest.mark.parametrize(
    ("codes", "starts", "reason"),
    [
        ({"cuInit": 100}, True, "CUDA's error 100"),
        ({"cuDeviceGet": 101}, True, "CUDA's error 101"),
        ({"cuDeviceGetUuid_v2": 3}, True, "cuDeviceGetUuid_v2 gives 3"),
        ({}, False, "Driver Not Loaded"),
    ],
)
def test_a_driver_without_a_gpu_is_an_environment_error(
    machine: Callable[..., Cuda], codes: dict[str, int], starts: bool, reason: str
) -> None:
    machine(Cuda(**codes), Nvml(f"GPU-{NAME}", starts=starts))
    with pytest.raises(DependencyError, match=rf"no NVIDIA driver or GPU is visible here \({reason}\).*device: cpu"):
        nvidia.require()


def test_no_driver_is_an_environment_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(nvidia.ctypes, "CDLL", lacking)
    for ask in (nvidia.require, nvidia.begin_context):
        with pytest.raises(DependencyError, match=r"no NVIDIA driver or GPU .*cannot open.*--gpus all"):
            ask()


def test_a_gpu_that_takes_no_further_process_is_told_so(machine: Callable[..., Cuda]) -> None:
    cuda = machine(Cuda(cuDevicePrimaryCtxRetain=nvidia.UNAVAILABLE), Nvml(NAME))
    with pytest.raises(DependencyError, match=r"takes no further process.*nvidia-smi -c 0"):
        nvidia.begin_context()
    assert cuda.called == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]


@pytest.mark.parametrize("code", [0, 2])
def test_a_context_is_begun_and_what_it_lacks_loading_tells(machine: Callable[..., Cuda], code: int) -> None:
    assert machine(Cuda(cuDevicePrimaryCtxRetain=code), Nvml(NAME)).called == []
    nvidia.begin_context()
