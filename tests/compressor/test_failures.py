"""Exceptions as sentences and exit codes."""

from __future__ import annotations

import pytest

from compressor import progress
from compressor.errors import RuntimeFailure
from compressor.failures import explain, out_of_memory

Native = type("RuntimeException", (Exception,), {})  # as ONNX Runtime's errors are, no RuntimeError

WANTING = [
    MemoryError(),
    RuntimeError("CUDA error: out of memory\nCompile with ..."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    Native("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 9"),
    Native("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0"),
    Native("[ONNXRuntimeError] : 1 : FAIL : bad allocation"),
    Native("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", WANTING, ids=str)
def test_errors_of_torch_and_of_runtimes_that_want_memory_are_known(error: Exception) -> None:
    assert out_of_memory(error)
    assert explain(error)[1] == 5


@pytest.mark.parametrize("error", [RuntimeError("a shape"), Native("a node"), KeyboardInterrupt("bad_alloc")], ids=str)
def test_others_do_not_want_memory(error: BaseException) -> None:
    assert not out_of_memory(error)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: no kernel image is available for execution on the device",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    ],
)
def test_a_gpu_that_torch_sees_and_cannot_use_is_no_bug(said: str) -> None:
    text, code = explain(type("AcceleratorError", (RuntimeError,), {})(f"{said}\nCUDA kernel errors might be ..."))
    assert code == 3
    assert said in text
    assert "CUDA_VISIBLE_DEVICES=" in text
    assert "bug" not in text


def test_what_was_raised_on_purpose_is_said_as_it_is() -> None:
    assert explain(RuntimeFailure("It failed: bad allocation.")) == ("It failed: bad allocation.", 4)


def cut_off(error: Exception) -> Exception:
    """What a writer raises that an interruption has cut off."""
    try:
        try:
            raise KeyboardInterrupt
        finally:
            raise error
    except type(error) as found:
        return found


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos 64 vs 0"), RuntimeFailure("no answer")], ids=str)
def test_what_an_interruption_makes_fail_is_an_interruption(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    found = cut_off(error)
    assert explain(found)[1] == 5
    assert explain(found)[0].startswith("interrupted.")
    progress.set_level("normal")
    with pytest.raises(type(error)), progress.stage("Work"):
        raise found
    progress.set_level("off")
    assert "Work: interrupted after" in capsys.readouterr().err
