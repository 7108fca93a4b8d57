"""An ExecuTorch program on the CPU. ExecuTorch's Python module imports torch, and only when a program is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor import registry
from compressor.errors import RuntimeFailure, first_line
from compressor.threads import usable_threads
from exporters import record
from exporters.base import DAMAGED, Arrays, Session, failed
from exporters.feed import Feed, shapes, told

PROGRAM = "model.pte"
METHOD = "forward"
INSTALL = "pip install 'rankfold[executorch]'"
PACKAGES: Mapping[str, str] = {"torch": "pip install torch", "executorch.runtime": INSTALL}


@dataclass(frozen=True, eq=False)
class ExecutorchRunner:
    """A loaded program; call it with named arrays."""

    path: Path
    program: Any  # executorch.runtime.Program, which its method needs as long as it lives
    method: Any  # executorch.runtime.Method
    feed: Feed
    longest: int  # tokens of a row

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named arrays in, the logits out, row by row; inputs that the program lacks are ignored, dtypes are cast.

        Raises:
            ResourceError: memory is wanting.
            RuntimeFailure: an input is missing or too long, or ExecuTorch fails on these inputs.
        """
        given = self.feed(inputs)
        self._check(given)
        rows = len(next(iter(given.values())))
        return {"logits": np.concatenate([self._row(given, row) for row in range(rows)])}

    @property
    def providers(self) -> tuple[str, ...]:
        """The backend that its layers were lowered to."""
        return ("XNNPACK",)

    def _check(self, given: Arrays) -> None:
        longest = max(
            (array.shape[1] for array in given.values() if array.dtype.kind in "iub" and array.ndim > 1), default=0
        )
        if longest > self.longest:
            raise RuntimeFailure(
                f"{self.path} takes rows of {self.longest} tokens at most, not of {longest}: memory was set aside for "
                "that many. Shorten the texts, or export with a larger `max_length`."
            )

    def _row(self, given: Arrays, row: int) -> np.ndarray:
        import torch

        values = [torch.from_numpy(array[row : row + 1]) for array in given.values()]
        try:
            # copied: the next row is computed in the same memory
            return self.method.execute(values)[0].numpy().copy()
        except RuntimeError as error:
            what = f"ExecuTorch failed to run {self.path} on {shapes(given)}, in row {row}: {first_line(error)}"
            raise failed(what, error, "What it printed above says more.") from error


def load(folder: Path, session: Session) -> ExecutorchRunner:
    """A runner for the program in `folder`.

    Raises:
        ArtifactError: the folder lacks the program, or `export.json`.
        DependencyError: executorch is not installed.
        ResourceError: memory is wanting.
        RuntimeFailure: ExecuTorch refuses the program.
    """
    file, dtypes = folder / PROGRAM, told(folder, PROGRAM)
    _, runtime = registry.imported(PACKAGES)
    import executorch.kernels.quantized  # noqa: F401 (registers what int8 embeddings are looked up with)
    from executorch.extension.pybindings import portable_lib

    threads = session.threads or usable_threads()
    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)  # unsafe while a program runs, and none does here
    try:
        program = runtime.Runtime.get().load_program(file)
        method = program.load_method(METHOD)
    except RuntimeError as error:
        what = f"ExecuTorch refuses {file} ({file.stat().st_size} bytes): {first_line(error)}"
        raise failed(what, error, DAMAGED) from error
    longest = record.read(folder).facts["max_length"]
    return ExecutorchRunner(file, program, method, Feed(file, dtypes), longest)
