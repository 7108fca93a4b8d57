"""Loading and running an export: no torch, the right device, and sentences instead of tracebacks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from compressor import cgroup, nvidia, threads
from compressor.errors import ArtifactError, DependencyError, ResourceError, RuntimeFailure
from exporters.base import Session
from exporters.onnx import OnnxExporter
from exporters.onnx import runtime as onnx_runtime

NO_CUDA = onnx_runtime.CUDA not in onnxruntime.get_available_providers()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export that doubles `x (B, 2)`."""
    tensors = [helper.make_tensor("eye", TensorProto.FLOAT, (2, 2), [2.0, 0.0, 0.0, 2.0])]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "eye"], ["logits"])],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch_size", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", 2])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path


def test_inputs_are_cast_and_unknown_ones_ignored(folder: Path) -> None:
    runner = OnnxExporter().load(folder)
    found = runner({"x": np.array([[1, 2]], np.int64), "token_type_ids": np.zeros(3)})
    np.testing.assert_array_equal(found["logits"], [[2.0, 4.0]])
    assert found["logits"].dtype == np.float32
    assert runner.providers == ("CPUExecutionProvider",)


def test_a_missing_input_is_named(folder: Path) -> None:
    with pytest.raises(RuntimeFailure, match=r"needs the inputs x too; got y"):
        OnnxExporter().load(folder)({"y": np.zeros((1, 2))})


def test_a_wrong_shape_is_told_with_the_shape(folder: Path) -> None:
    with pytest.raises(RuntimeFailure, match=r"model\.onnx on x \(1, 3\)"):
        OnnxExporter().load(folder)({"x": np.zeros((1, 3), np.float32)})


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"{tmp_path / 'model.onnx'} does not exist"):
        OnnxExporter().load(tmp_path)


def test_a_cut_off_graph_is_refused_with_its_path(folder: Path) -> None:
    graph = folder / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-30])
    with pytest.raises(RuntimeFailure, match=rf"refuses {graph} \(\d+ bytes\)"):
        OnnxExporter().load(folder)


@pytest.mark.skipif(not NO_CUDA, reason="this ONNX Runtime has CUDA")
def test_cuda_without_a_cuda_runtime_says_what_to_install(folder: Path) -> None:
    with pytest.raises(DependencyError, match=r"offers no CUDA; it has .*CPU.*rankfold\[gpu\]") as caught:
        OnnxExporter().load(folder, Session(device="cuda"))
    assert caught.value.exit_code == 3


@pytest.fixture
def built_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX Runtime that was built with CUDA, wherever it runs."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [onnx_runtime.CUDA, onnx_runtime.CPU])


@pytest.mark.usefixtures("built_with_cuda")
def test_a_gpu_that_is_not_there_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking() -> None:
        raise DependencyError("no GPU is visible here")

    monkeypatch.setattr(nvidia, "require", lacking)
    OnnxExporter().require(Session())
    with pytest.raises(DependencyError, match="no GPU is visible here"):
        OnnxExporter().require(Session(device="cuda"))


@pytest.mark.usefixtures("built_with_cuda")
def test_a_gpu_that_takes_no_further_process_is_told_before_the_graph_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken() -> None:
        raise DependencyError("takes no further process")

    monkeypatch.setattr(nvidia, "require", lambda: None)
    monkeypatch.setattr(nvidia, "begin_context", taken)
    with pytest.raises(DependencyError, match="takes no further process"):
        OnnxExporter().load(folder, Session(device="cuda"))


def test_fp32_is_multiplied_in_full_on_a_gpu() -> None:
    (cuda, settings), cpu = onnx_runtime._providers(Session(device="cuda"))
    assert (cuda, cpu) == (onnx_runtime.CUDA, onnx_runtime.CPU)
    assert settings["use_tf32"] == "0"  # type: ignore[index]


@pytest.mark.usefixtures("built_with_cuda")
def test_a_session_that_fell_back_to_the_cpu_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "require", lambda: None)
    monkeypatch.setattr(nvidia, "begin_context", lambda: None)
    monkeypatch.setattr(onnx_runtime, "_providers", lambda *_: [onnx_runtime.CPU])
    with pytest.raises(DependencyError, match="could not start CUDA"):
        OnnxExporter().load(folder, Session(device="cuda"))


def test_a_heavy_node_that_is_not_on_cuda_is_found(folder: Path) -> None:
    options = onnx_runtime.options(Session(device="cuda"))
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=[onnx_runtime.CPU])
    assert onnx_runtime.misplaced(session) == ["MatMul"]


@pytest.mark.gpu
@pytest.mark.skipif(NO_CUDA, reason="needs onnxruntime-gpu and an NVIDIA GPU")
def test_cuda_runs_the_graph(folder: Path) -> None:
    runner = OnnxExporter().load(folder, Session(device="cuda"))
    assert runner.providers[0] == onnx_runtime.CUDA
    np.testing.assert_allclose(runner({"x": np.ones((3, 2), np.float32)})["logits"], np.full((3, 2), 2.0))


def outcome(run: Callable[[], Any]) -> np.ndarray:
    (logits,) = run().copy_outputs_to_cpu()
    return logits


def test_a_bound_run_gives_what_a_plain_one_does(folder: Path) -> None:
    runner, inputs = OnnxExporter().load(folder), {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}
    run = runner.bound(inputs)
    np.testing.assert_array_equal(outcome(run), runner(inputs)["logits"])
    np.testing.assert_array_equal(outcome(run), runner(inputs)["logits"])  # again, in the same place


@pytest.mark.gpu
@pytest.mark.skipif(NO_CUDA, reason="needs onnxruntime-gpu and an NVIDIA GPU")
@pytest.mark.parametrize("replayed", [False, True])
def test_a_run_bound_on_a_gpu_or_replayed_there_gives_what_a_plain_one_does(folder: Path, replayed: bool) -> None:
    runner = OnnxExporter().load(folder, Session(device="cuda"))
    inputs = {"x": np.arange(6, dtype=np.float32).reshape(3, 2)}
    run = runner.bound(inputs, replayed=replayed)
    for _ in range(3):
        np.testing.assert_allclose(outcome(run), runner(inputs)["logits"])


def test_loading_and_running_imports_neither_torch_nor_onnx(folder: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from compressor import registry;"
        f"runner = registry.load('exporters', 'onnx')().load(Path({str(folder)!r}));"
        "print(runner({'x': np.ones((1, 2))})['logits'].sum());"
        "print(sorted({'torch', 'onnx', 'onnx_ir', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["4.0", "[]"]
    assert done.stderr == ""


def graph(path: Path, name: str, kind: int, *axes: int | str) -> Path:
    """A graph that gives its one input back."""
    value, given = onnx.helper.make_tensor_value_info, onnx.helper.make_node("Identity", [name], ["logits"])
    made = onnx.helper.make_graph([given], "g", [value(name, kind, axes)], [value("logits", kind, axes)])
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(made, opset_imports=opsets, ir_version=8), path / "model.onnx")
    return path


@pytest.mark.parametrize("axes", [("b", 2, "p"), ("b", "heads", "p", "size")])
def test_what_is_called_a_cache_and_has_no_known_shape_is_an_input(tmp_path: Path, axes: tuple[Any, ...]) -> None:
    runner = OnnxExporter().load(graph(tmp_path, "past_key_values.0.key", TensorProto.FLOAT, *axes))
    assert not runner.cached
    with pytest.raises(RuntimeFailure, match=r"needs the inputs past_key_values\.0\.key too"):
        runner({"input_ids": np.ones((1, 2))})


def test_an_input_of_a_type_that_is_not_fed_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match=r"takes inputs of tensor\(uint32\); fed can be tensor\(int64\)"):
        OnnxExporter().load(graph(tmp_path, "x", TensorProto.UINT32, "b"))


def test_a_limit_of_any_group_above_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "groups")
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
    (tmp_path / "groups" / "a" / "b").mkdir(parents=True)
    for place, limit in {"a/b": "max 100000", "a": "300000 100000", ".": "500000 100000"}.items():
        (tmp_path / "groups" / place / "cpu.max").write_text(f"{limit}\n")
    (tmp_path / "own").write_text("0::/a/b\n")
    assert threads.usable_threads() == 3
    (tmp_path / "own").write_text("0::/gone/elsewhere\n")
    assert threads.usable_threads() == 5
    (tmp_path / "groups" / "cpu" / "job").mkdir(parents=True)
    (tmp_path / "groups" / "cpu.max").unlink()
    (tmp_path / "own").write_text("4:cpu,cpuacct:/job\n0::/\n")
    (tmp_path / "groups" / "cpu" / "job" / "cpu.cfs_quota_us").write_text("200000\n")
    (tmp_path / "groups" / "cpu" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    assert threads.usable_threads() == 2


def test_threads_are_those_asked_for_or_those_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_runtime, "usable_threads", lambda: 3)
    assert onnx_runtime.options(Session(threads=5)).intra_op_num_threads == 5
    assert onnx_runtime.options(Session()).intra_op_num_threads == 3
    assert onnx_runtime.options(Session()).inter_op_num_threads == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({}, 8),
    ],
)
def test_a_container_quota_limits_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.usable_threads() == expected


def test_a_graph_that_fails_on_bound_inputs_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no memory there")

    runner = OnnxExporter().load(folder)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", refuse)
    with pytest.raises(RuntimeFailure, match=r"failed to run .*model.onnx on x \(3, 2\): no memory there"):
        runner.bound({"x": np.ones((3, 2), np.float32)})


def test_a_graph_that_wants_memory_is_no_damaged_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object, **__: object) -> None:
        raise onnx_runtime.native.RuntimeException("Failed to allocate memory for requested buffer of size 9")

    runner, x = OnnxExporter().load(folder), {"x": np.ones((3, 2), np.float32)}
    monkeypatch.setattr(runner.session, "run", hungry)
    with pytest.raises(ResourceError, match=r"on x \(3, 2\): Failed to allocate memory .*batch_size") as told:
        runner(x)
    assert told.value.exit_code == 5
    with pytest.raises(ResourceError, match="Failed to allocate memory"):
        runner.bound(x)
    monkeypatch.setattr(onnxruntime, "InferenceSession", hungry)
    with pytest.raises(ResourceError, match=r"refuses .*model\.onnx") as told:
        OnnxExporter().load(folder)
    assert "cut off" not in str(told.value)
