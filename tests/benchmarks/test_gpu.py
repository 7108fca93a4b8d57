"""The GPU benchmark: what it refuses, and its whole path on the CPU with a small random model."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_tables
import gpu
import pytest
import suites
from results import read

from compressor.errors import DependencyError


def test_without_a_gpu_it_says_so_with_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(gpu, "NEEDED", ("torch",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == DependencyError.exit_code == 3
    assert "sees no NVIDIA GPU here" in capsys.readouterr().err


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "NEEDED", ("torch", "no_such_package"))
    assert gpu.main(["--device", "cpu"]) == 3
    said = capsys.readouterr().err
    assert "no_such_package is not installed" in said
    assert gpu.INSTALL in said


def test_an_onnxruntime_without_cuda_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime
    import torch

    monkeypatch.setattr(gpu, "NEEDED", ("torch",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DependencyError, match="not built for CUDA"):
        gpu.require("cuda")


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft: pip install 'rankfold[bench]'")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_same_code_runs_on_the_cpu_and_measures_nothing_twice(
    tiny_suite: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(suites.SUITES, "tiny", tiny_suite())
    monkeypatch.setattr(gpu, "TRAINED", ("dense", "dense-lora", "jactus", "psoft-pretrained"))
    monkeypatch.setattr(gpu, "TINY", gpu.TINY | {"epochs": 0.2})
    monkeypatch.setattr(gpu, "PRECISIONS", {"onnx": ("fp32", "fp16"), "torch-export": ("fp32",)})  # bf16 crawls on CPUs
    words = ["tiny", "--device", "cpu", "--out", str(tmp_path / "gpu.jsonl"), "--models", str(tmp_path / "models")]
    for _ in range(2):
        assert gpu.main(words) == 0, capsys.readouterr().err
        rows = read(tmp_path / "gpu.jsonl")
        assert [row["what"] for row in rows] == ["export"] * 4 + ["training"] * 4
    exported = {(row["runtime"], row["export"]): row["findings"] for row in rows if row["what"] == "export"}
    assert set(exported) == {
        ("onnx", "tiny-tiny-dense-1.0-0-fp16"),
        ("onnx", "tiny-tiny-jactus-0.5-0-fp32"),
        ("onnx", "tiny-tiny-jactus-0.5-0-fp16"),
        ("torch-export", "tiny-tiny-jactus-0.5-0-fp32"),
    }
    for findings in exported.values():
        assert {"accuracy", "peak_memory", "latency_p50"} <= set(findings)
    by_arm = {row["arm"]: row for row in rows if row["what"] == "training"}
    assert all(row["peak_bytes"] is None and row["counted_bytes"]["peak"] > 0 for row in by_arm.values())
    assert "teacher" in by_arm["jactus"]["counted_bytes"]
    assert by_arm["dense-lora"]["trainable"] < by_arm["dense"]["trainable"]
    assert sum(1 for _ in export_tables.gpu_exports(rows)) == 2 + 6  # dense fp32 of each runtime too
    assert sum(1 for _ in export_tables.gpu_training(rows)) == 2 + 4


@pytest.mark.gpu
def test_torch_tells_the_most_that_it_allocated() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU and a torch built for CUDA")
    peak = gpu._peak_since("cuda")
    torch.empty(2**20, dtype=torch.uint8, device="cuda")
    assert (peak() or 0) >= 2**20


def test_it_is_found_without_an_installed_rankfold() -> None:
    assert str(Path(gpu.__file__).parents[1]) in sys.path
