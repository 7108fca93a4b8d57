"""doctor: what it calls broken, and what it says to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pynvml
import pytest

from compressor import doctor, threads


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Other distributions at other versions (None: not installed); underscores stand for dashes."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        key = name.replace("-", "_")
        if key not in versions:
            return real(name)
        found = versions[key]
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)


def found(topic: str) -> doctor.Diagnosis:
    return next(one for one in doctor.diagnose() if one.topic == topic)


def test_this_environment_is_healthy() -> None:
    assert [one for one in doctor.diagnose() if one.status == "broken"] == []


def test_both_onnxruntimes_together_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    assert found("onnxruntime").status == "broken"
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in found("onnxruntime").remedy


def test_no_onnxruntime_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, onnxruntime=None, onnxruntime_gpu=None)
    assert (found("onnxruntime").status, found("onnxruntime").text) == ("broken", "not installed")


@pytest.mark.parametrize(
    ("version", "status", "said"),
    [
        ("4.57.6", "broken", "older than what was tested"),
        ("6.0.0", "warning", "newer than what was tested"),
        (None, "broken", ""),
    ],
)
def test_transformers_outside_the_tested_range_is_told(
    monkeypatch: pytest.MonkeyPatch, version: str | None, status: str, said: str
) -> None:
    pretend(monkeypatch, transformers=version)
    diagnosis = found("transformers")
    assert diagnosis.status == status
    assert said in diagnosis.text
    assert diagnosis.remedy.startswith("pip install 'transformers")


@pytest.mark.parametrize("name", doctor.CONFLICTS)
def test_a_known_bad_neighbor_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, **{name.replace("-", "_"): "0.1"})
    assert (found(name).status, found(name).remedy) == ("warning", f"pip uninstall {name}")


def test_packages_overwritten_by_others_are_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = SimpleNamespace(origin=str(tmp_path / "validators" / "__init__.py"))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: other if name == "validators" else real(name))
    assert found("validators").status == "broken"
    assert str(tmp_path) in found("validators").text


@pytest.mark.parametrize(("quota", "status"), [(math.inf, "ok"), (0.5, "warning")])
def test_a_quota_below_the_affinity_is_told(monkeypatch: pytest.MonkeyPatch, quota: float, status: str) -> None:
    monkeypatch.setattr(threads, "quota", lambda: quota)
    assert found("threads").status == status


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        ("flags\t\t: avx2 avx512_vnni\nflags\t: avx2\n", "ok", "avx512_vnni"),
        ("flags\t: avx2 fma\n", "note", "may be no faster than fp32"),
        ("", "note", "not known"),
    ],
)
def test_instructions_say_what_int8_gains(monkeypatch: pytest.MonkeyPatch, flags: str, status: str, said: str) -> None:
    monkeypatch.setattr(doctor, "_read", lambda path: flags if path.endswith("cpuinfo") else "")
    assert found("instructions").status == status
    assert said in found("instructions").text


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU."""
    said = {"Init": None, "DeviceGetCount": 1, "DeviceGetHandleByIndex": "a", "DeviceGetName": "H200"}
    for name, value in said.items():
        monkeypatch.setattr(pynvml, f"nvml{name}", lambda *_, value=value: value)


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("cuda", "gpu", "providers", "said"),
    [
        ("'13.0'", "1.32.0", ["CUDAExecutionProvider"], []),
        ("None", "1.32.0", ["CUDAExecutionProvider"], [("warning", "torch is a build without CUDA")]),
        ("'13.0'", "1.32.0", ["CPUExecutionProvider"], [("warning", "onnxruntime-gpu offers no CUDA")]),
        ("'13.0'", None, ["CPUExecutionProvider"], [("note", "ONNX Runtime is the CPU build")]),
    ],
)
def test_what_leaves_a_gpu_idle_is_told(
    monkeypatch: pytest.MonkeyPatch, cuda: str, gpu: str | None, providers: list[str], said: list[tuple[str, str]]
) -> None:
    pretend(monkeypatch, onnxruntime_gpu=gpu)
    text = f"__version__ = '2.13.0'\ndebug = False\ncuda: Optional[str] = {cuda}\nhip: Optional[str] = '7'\n"
    monkeypatch.setattr(doctor, "_read", lambda path: text if path.endswith("version.py") else "")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    first, *others = doctor._gpu()
    assert (first.status, first.text) == ("ok", "H200")
    assert [(one.status, one.text.partition(":")[0]) for one in others] == said
    assert all(one.remedy for one in others)


def test_a_collection_that_is_no_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKFOLD_MODELS", "/no/such/folder")
    assert found("RANKFOLD_MODELS").status == "warning"


def test_something_broken_ends_with_3(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from compressor.cli import app

    pretend(monkeypatch, torch=None)
    result: Any = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 3
    assert "BROKEN  torch" in result.stdout
