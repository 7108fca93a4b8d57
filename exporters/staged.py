"""An export in stages: what needs the model, then what a precision makes of its fp32 graph, held against torch.

Between the two the model may leave memory: its graph lies on disk, and the logits that exports are held against are
kept.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import ExportError, RuntimeFailure, first_line
from exporters.base import Runner
from exporters.record import EXPORT_FILE

if TYPE_CHECKING:
    import torch

    from exporters.verify import Reference, Spans


LAST = ("max_length",)  # what a tracing may tell of the model


@dataclass(frozen=True, eq=False)
class Traced:
    """What is left of a model once its fp32 graph is written.

    Attributes:
        folder: where the fp32 graph lies.
        references: what the model computes.
        config: of a Hugging Face model; else None.
        facts: `weights_digest`, `reused_fp32_graph` and, where the model ends there, `max_length`, for `export.json`.
    """

    folder: Path
    references: tuple[Reference, ...]
    config: Any
    facts: Mapping[str, Any]


def traced(
    model: torch.nn.Module,
    example: Mapping[str, torch.Tensor],
    folder: Path,
    *,
    trace: Callable[[Mapping[str, torch.Tensor], Path], Spans],
    sibling: Path | None,
    files: Sequence[str],
    known: Mapping[str, Any],
) -> Traced:
    """All that needs the model: its fp32 graph and what it computes.

    Args:
        model: what is traced; its modules' modes are as before when this returns, and nothing here keeps it.
        example: its inputs.
        folder: where a graph that is not there yet is written.
        trace: writes the fp32 graph of inputs that lie beside the model into a folder; returns for how many tokens it
            is sure.
        sibling: an export whose graph is taken where it is one of the same weights; None to trace anyway.
        files: what such an export consists of.
        known: what its `export.json` must say, beside the digest of the weights.

    Raises:
        ExportError: the model fails, or cannot be traced.
    """
    from compressor import devices
    from compressor.running import settled
    from compressor.storage import weights_digest
    from exporters import verify

    with settled(model), verify.unchanged(model):
        digest = {"weights_digest": weights_digest(model)}
        told = None if sibling is None else _record(sibling, files, {**known, **digest}, example)
        inputs, tried = devices.beside(model, example), list[dict[str, "torch.Tensor"]]()
        if sibling is not None and told is not None:
            taken, last = sibling, {name: told[name] for name in LAST if name in told}
        else:
            folder.mkdir(exist_ok=True)
            taken, (tried, last) = folder, verify.beyond(model, inputs, trace(inputs, folder))
        references = verify.references(model, verify.trials(model, inputs) + tried)
    config = getattr(model, "config", None)
    return Traced(taken, references, config, {**digest, "reused_fp32_graph": told is not None, **last})


def made(
    start: Traced,
    folder: Path,
    *,
    stage: Callable[[Path, Path], None] | None,
    load: Callable[[Path], Runner],
    tolerance: float,
    limit: float = math.inf,
    once: Callable[[Path], Runner] | None = None,
) -> dict[str, Any]:
    """Put a graph into `folder`; returns how far it is from the model.

    Args:
        start: the fp32 graph, and what it is held against; its folder within `folder` is removed.
        folder: where the graph goes; of fp32 itself, where it lies already.
        stage: from a folder with the fp32 graph, the smaller one in another; None for fp32 itself.
        load: a runner for a folder.
        tolerance: largest difference of the fp32 graph.
        limit: largest difference of what the stage makes; how much a precision may cost is for the parity and accuracy
            gates to say, so that must only run and stay finite.
        once: a runner for the fp32 graph that takes less memory, where there is one.

    Raises:
        ExportError: a stage fails, or a graph computes something else than the model.
    """
    from exporters import verify

    _give_back()  # the model's weights
    before = verify.held(start.references, (once or load)(start.folder), tolerance)
    if stage is None:
        return {"parity": before, **start.facts}
    _give_back()  # the session's
    stage(start.folder, folder)
    if start.folder.parent == folder:
        shutil.rmtree(start.folder)
    try:
        runner = load(folder)
    except RuntimeFailure as error:
        raise ExportError(f"What this precision makes of the graph does not load: {first_line(error)}") from error
    after = verify.held(start.references, runner, limit)
    return {"parity": after, "parity_fp32": before, **start.facts}


def _give_back() -> None:
    """Free what holds itself, as traced programs and sessions do; and what glibc keeps for later, to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # musl has none
    if trim is not None:
        trim(0)


def _record(
    sibling: Path, files: Sequence[str], facts: Mapping[str, Any], example: Mapping[str, torch.Tensor]
) -> Mapping[str, Any] | None:
    """What a sibling says of itself, where it is a whole export with these facts and inputs: its graph can be taken."""
    if not all((sibling / name).is_file() for name in (EXPORT_FILE, *files)):
        return None
    try:
        told = json.loads((sibling / EXPORT_FILE).read_text())
    except json.JSONDecodeError:  # not the export that we wrote
        return None
    inputs = told.get("inputs", [])[: len(example)]  # of a decoder, its cache's are behind them
    same = [value["name"] for value in inputs] == list(example)
    same = same and all(_holds(value["axes"], example[value["name"]].shape) for value in inputs)
    return told if same and all(told.get(key) == value for key, value in facts.items()) else None


def _holds(axes: Sequence[str | int | None], shape: Sequence[int]) -> bool:
    """Whether a shape is one of these axes, of which those that are no numbers are free."""
    pairs = list(zip(axes, shape, strict=False))
    return len(axes) == len(shape) and all(axis == size for axis, size in pairs if isinstance(axis, int))
