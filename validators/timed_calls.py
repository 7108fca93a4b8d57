"""How a run is timed: from arrays in memory to arrays in memory, or on a GPU without copies and without launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from compressor.errors import ResourceError, RuntimeFailure
from exporters.base import Arrays

Call = Callable[[], object]
PLAIN, COPIED = "arrays in, arrays out", "arrays in, arrays out, copied to the GPU and back"
BOUND, REPLAYED = "inputs and outputs on the GPU", "inputs and outputs on the GPU, replayed as CUDA graphs"


def timed_calls(runners: Sequence[Any], inputs: Arrays, *, on_gpu: bool) -> tuple[str, Sequence[Call]]:
    """How a run is timed, and the runs: on a GPU the first of three ways that all of the runners can go.

    These are one CUDA graph without copies, a run without copies, and a run with them.
    """
    plain = [partial(runner, inputs) for runner in runners]
    if not on_gpu:
        return PLAIN, plain
    able = all(hasattr(runner, "bound") for runner in runners)
    for way, replayed in ((REPLAYED, True), (BOUND, False)) if able else ():
        with suppress(ResourceError, RuntimeFailure):  # a recorded run takes more memory
            return way, [runner.bound(inputs, replayed=replayed) for runner in runners]
    return COPIED, plain
