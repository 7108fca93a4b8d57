"""How a run is timed: from arrays in memory to arrays in memory, or on a GPU without copies and without launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from compressor.errors import RuntimeFailure
from exporters.base import Arrays

Call = Callable[[], object]
PLAIN, COPIED = "arrays in, arrays out", "arrays in, arrays out, copied to the GPU and back"
BOUND, REPLAYED = "inputs and outputs on the GPU", "inputs and outputs on the GPU, replayed as CUDA graphs"


def ways(runners: Sequence[Any], inputs: Arrays, *, on_gpu: bool) -> tuple[str, Sequence[Call]]:
    """How a run is timed, and the runs: on a GPU without copies, as CUDA graphs where all of them can be recorded."""
    plain = [partial(runner, inputs) for runner in runners]
    if not on_gpu:
        return PLAIN, plain
    if not all(hasattr(runner, "bound") for runner in runners):
        return COPIED, plain
    try:
        return REPLAYED, [runner.bound(inputs, replayed=True) for runner in runners]
    except RuntimeFailure:
        return BOUND, [runner.bound(inputs) for runner in runners]
