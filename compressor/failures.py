"""Exceptions as the command line tells them: one clear sentence and an exit code, never a traceback unasked."""

from __future__ import annotations

import errno
from collections.abc import Callable

from compressor.errors import DependencyError, InputError, RankfoldError, ResourceError, first_line, interrupted

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
UNEXPECTED = 4
NO_MEMORY = (  # what torch and the runtimes say in errors that have no type of their own
    "can't allocate memory",
    "Cannot allocate memory",
    "Failed to allocate memory",
    "CUDA error: out of memory",
    "CUDA failure 2: out of memory",
    "ALLOC_FAILED",
    "bad allocation",
    "bad_alloc",
)
NO_GPU = ("no kernel image is available", "busy or unavailable")  # what torch says of one that it sees and cannot use
KEPT = "What was finished is kept: run, compress and plan go on with --resume, other commands are repeated."


def exhausted(error: BaseException) -> bool:
    """Whether memory or disk was wanting, here or in what an error was raised from."""
    return _wanting(out_of_memory, error) or _wanting(_disk_full, error)


def _wanting(what: Callable[[BaseException], bool], error: BaseException) -> bool:
    return what(error) or (error.__cause__ is not None and _wanting(what, error.__cause__))


def explain(error: BaseException) -> tuple[str, int]:
    """The sentence for stderr and the exit code."""
    if interrupted(error):
        return f"interrupted. {KEPT}", ResourceError.exit_code
    if isinstance(error, RankfoldError):
        return str(error), error.exit_code
    if _wanting(out_of_memory, error):
        return f"out of memory. Use a smaller batch_size or another machine. {KEPT}", ResourceError.exit_code
    if _wanting(_disk_full, error):
        return f"disk full{_file(error)}. Free some space. {KEPT}", ResourceError.exit_code
    if any(words in str(error) for words in NO_GPU):
        text = (
            f"torch cannot use the GPU that it sees: {first_line(error)}. It does not support it, or another process "
            "has taken it: install another build of torch, free the GPU, or hide it with CUDA_VISIBLE_DEVICES=."
        )
        return text, DependencyError.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror}{_file(error)}.", InputError.exit_code
    if isinstance(error, ImportError):
        text = f"{error}. `python -m compressor doctor` lists what is missing and how to get it."
        return text, DependencyError.exit_code
    return _bug(error), UNEXPECTED


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was wanting; errors of torch and of runtimes, not imported here, are known by name and text."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    names = {cls.__name__ for cls in type(error).__mro__}
    said = isinstance(error, Exception) and any(words in str(error) for words in NO_MEMORY)
    return said or bool(names & {"MemoryError", "OutOfMemoryError"})


def _disk_full(error: BaseException) -> bool:
    """By number, or by the words of the libraries that write weights (safetensors and torch raise no OSError)."""
    words = ("No space left on device", "file write failed", "unexpected pos")
    return (isinstance(error, OSError) and error.errno in DISK_FULL) or (
        (isinstance(error, RuntimeError | ValueError) or type(error).__name__ == "SafetensorError")
        and any(word in str(error) for word in words)
    )


def _file(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f": {name}" if name else ""


def _bug(error: BaseException) -> str:
    said = str(error).strip().partition("\n")[0]
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"unexpected {what}. This is a bug in rankfold; --debug shows the traceback to report."
