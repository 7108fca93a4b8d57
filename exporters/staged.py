"""An export in stages: the fp32 graph, held against torch, and what a smaller precision makes of it."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.base import EXPORT_FILE, Runner

if TYPE_CHECKING:
    import torch

Write = Callable[[Path], None]


def made(
    model: torch.nn.Module,
    example: Mapping[str, torch.Tensor],
    folder: Path,
    *,
    trace: Write,
    stage: Callable[[Path, Path], None] | None,
    load: Callable[[Path], Runner],
    tolerance: float,
    limit: float = math.inf,
    traced: Path | None = None,
) -> dict[str, Any]:
    """Put a graph into `folder`; returns how far it is from the model.

    Args:
        model: what is traced and held against.
        example: its inputs, on its device.
        folder: where the graph goes.
        trace: writes the fp32 graph into a folder.
        stage: from a folder with the fp32 graph, the smaller one in another; None for fp32 itself.
        load: a runner for a folder.
        tolerance: largest difference of the fp32 graph.
        limit: largest difference of what the stage makes; how much a precision may cost is for the parity and accuracy
            gates to say, so that must only run and stay finite.
        traced: a folder that has the fp32 graph already.

    Raises:
        ExportError: a stage fails, or a graph computes something else than the model.
    """
    from exporters import verify

    inputs = verify.trials(model, example)
    if stage is None:
        trace(folder)
        return {"parity": verify.compare(model, load(folder), inputs, tolerance)}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        source = traced or Path(temporary)
        if traced is None:
            trace(source)
        before = verify.compare(model, load(source), inputs, tolerance)
        stage(source, folder)
    after = verify.compare(model, load(folder), inputs, limit)
    return {"parity": after, "parity_fp32": before}


def fits(sibling: Path, files: Sequence[str], facts: Mapping[str, Any], inputs: Sequence[str]) -> bool:
    """Whether the sibling is a whole export with these facts and first inputs, so that its graph can be taken."""
    if not all((sibling / name).is_file() for name in (EXPORT_FILE, *files)):
        return False
    try:
        told = json.loads((sibling / EXPORT_FILE).read_text())
    except json.JSONDecodeError:  # not the export that we wrote
        return False
    names = [value["name"] for value in told.get("inputs", [])][: len(inputs)]
    return names == list(inputs) and all(told.get(key) == value for key, value in facts.items())


def save_config(model: torch.nn.Module, folder: Path) -> bool:
    """The config beside the graph, where optimum's and transformers' loaders look for it; whether there is one."""
    save = getattr(getattr(model, "config", None), "save_pretrained", None)
    if callable(save):
        save(folder)
    return callable(save)
