"""Starting the measuring child (validators/probe.py) and turning its failures into our errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compressor.children import import_path
from compressor.errors import DataError, DependencyError, InputError, RankfoldError, ResourceError, RuntimeFailure
from compressor.tasks.base import inputs_of
from exporters.base import Arrays
from validators.base import Evaluation, Subject

ERRORS = {error.exit_code: error for error in (InputError, DependencyError, RuntimeFailure, ResourceError)}
TAIL = 5  # last lines of the child's stderr that an error message repeats


def ask(
    mode: Literal["memory", "latency"], subjects: Sequence[Subject], inputs: Arrays, **knobs: int
) -> dict[str, Any]:
    """What a fresh, torch-free process measures on the subjects; see validators/probe.py for the modes.

    Raises:
        DependencyError: the runtime or the device is not there.
        ResourceError: the child ran out of memory or was killed.
        RuntimeFailure: it failed in any other way.
    """
    with tempfile.TemporaryDirectory(prefix="rankfold-") as scratch:
        file = Path(scratch, "inputs.npz")
        arrays: dict[str, Any] = dict(inputs)
        np.savez(file, **arrays)
        request = {"subjects": [_described(subject) for subject in subjects], "inputs": str(file)} | knobs
        command = [sys.executable, "-P", "-m", "validators.probe", mode, json.dumps(request)]
        threads = subjects[0].session.threads
        done = subprocess.run(
            command, env=_environment(threads), capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    return _answer(done, f"Measuring {mode} of {' and '.join(subject.name for subject in subjects)}")


def tiled(evaluation: Evaluation, batch_size: int, sequence_length: int) -> dict[str, np.ndarray]:
    """Valid inputs of one shape from the first batches: their unpadded tokens, repeated and cut to (batch, sequence).

    All rows have the same tokens, the last of them a text's end: BART wants ends, and as many in each row. Arrays that
    are not shaped like the attention mask are repeated and cut along their first axis alone. A batch that is `shaped`
    already is given as it is.

    Raises:
        DataError: the evaluation set is empty.
    """
    if evaluation.shaped:
        return dict(evaluation.batches[0])
    batches = _first(evaluation, batch_size)
    if not batches:
        raise DataError("The evaluation set is empty, so there is nothing to measure with: check `data.evaluation`.")
    return {name: _tile(name, batches, (batch_size, sequence_length)) for name in batches[0]}


def _first(evaluation: Evaluation, rows: int) -> list[Arrays]:
    """As many batches as have so many rows; images of more of them would fill the memory."""
    found = list[Arrays]()
    for batch in evaluation.batches:
        found.append(inputs_of(batch))
        if sum(len(next(iter(one.values()))) for one in found) >= rows:
            break
    return found


def _tile(name: str, batches: Sequence[Arrays], shape: tuple[int, int]) -> np.ndarray:
    key = "attention_mask" if "attention_mask" in batches[0] else "input_ids"
    like_tokens = key in batches[0] and all(batch[name].shape == batch[key].shape for batch in batches)
    if not like_tokens:
        rows = np.concatenate([batch[name] for batch in batches])  # (rows, ...)
        return np.resize(rows, (shape[0], *rows.shape[1:]))  # (B, ...)
    real = np.concatenate([batch[name][_unpadded(batch)] for batch in batches])  # (tokens,)
    row = np.resize(real, shape[1])  # (T,)
    row[-1] = real[-1]  # a text's end, which may have been cut off
    return np.tile(row, (shape[0], 1))  # (B, T)


def _unpadded(batch: Arrays) -> np.ndarray:
    """Where the tokens are real (B, T) bool; everywhere without an attention mask."""
    mask = batch.get("attention_mask")
    return np.ones(batch["input_ids"].shape, bool) if mask is None else mask.astype(bool)


def _described(subject: Subject) -> dict[str, str | int]:
    session = subject.session
    path = str(subject.path.absolute())
    return {"runtime": subject.runtime, "path": path, "device": session.device, "threads": session.threads}


def _environment(threads: int) -> Mapping[str, str]:
    """Ours, with the same import path: with -P, no folder `validators` that lies about can take our place."""
    extra = {
        "PYTHONPATH": import_path(),
        "OPENBLAS_NUM_THREADS": "1",  # NumPy only carries the arrays
    }
    return os.environ | extra | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


def _answer(done: subprocess.CompletedProcess[str], what: str) -> dict[str, Any]:
    if done.returncode:
        raise _failure(done, what)
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))  # native code may print before it
    except (IndexError, ValueError, TypeError) as error:
        raise RuntimeFailure(f"{what} gave no JSON object but {done.stdout[-200:]!r}.{_tail(done)}") from error


def _failure(done: subprocess.CompletedProcess[str], what: str) -> RankfoldError:
    code = done.returncode
    if code == -9:  # SIGKILL has no name on Windows
        return ResourceError(
            f"{what}: the measuring process was killed, most likely for want of memory. Free memory, or lower "
            f"`validate.batch_size` and `validate.sequence_length`; `--resume` goes on.{_tail(done)}"
        )
    if code < 0:
        return RuntimeFailure(f"{what}: the measuring process crashed with {_signal(-code)}.{_tail(done)}")
    return ERRORS.get(code, RuntimeFailure)(f"{what} failed with exit code {code}.{_tail(done)}")


def _signal(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return "\n  " + "\n  ".join(lines[-TAIL:]) if lines else ""
