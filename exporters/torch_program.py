"""Tracing by torch.export: the program that torch's own runtimes start from. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from compressor.errors import ExportError, first_line
from compressor.storage import weights_digest
from exporters.base import Exporter
from exporters.tracing import Tracing, require_free

SCHEMA_VERSION = 1


def traced(tracing: Tracing, sizes: Mapping[str, Any]) -> torch.export.ExportedProgram:
    """The program of a traced module.

    Args:
        tracing: the module and its inputs.
        sizes: `torch.export.Dim` of each free size, by the name that `tracing.axes` has for it.

    Raises:
        ExportError: torch cannot trace the module, or fixes an axis that was to be free.
    """
    axes = tuple({axis: sizes[size] for axis, size in free.items()} for free in tracing.axes.values())
    try:
        program = torch.export.export(tracing.module.eval(), tuple(tracing.inputs.values()), dynamic_shapes=(axes,))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError) as error:
        raise ExportError(
            f"torch.export cannot trace {type(_inner(tracing.module)).__name__}: {first_line(error)}. Look for "
            "branches on values and for what torch cannot see through."
        ) from error
    _check_axes(program, tracing)
    return program


def facts(exporter: Exporter, model: torch.nn.Module, file: Path, packages: Sequence[str]) -> dict[str, Any]:
    """What `export.json` says of every program: its exporter, its file, the versions of `packages`, its weights."""
    return {
        "schema_version": SCHEMA_VERSION,
        "runtime": exporter.name,
        "precision": exporter.precision,
        "model_files": [file.name],
        "file_bytes": {file.name: file.stat().st_size},
        "versions": {name: version(name) for name in packages},
        "weights_digest": weights_digest(model),
    }


def inputs(tracing: Tracing) -> list[dict[str, Any]]:
    """The facts of each input: its name, its dtype, and each axis' size or the name of its free size."""
    return [_value(name, tracing) for name in tracing.inputs]


def _inner(module: torch.nn.Module) -> torch.nn.Module:
    return getattr(module, "model", module)


def _check_axes(program: torch.export.ExportedProgram, tracing: Tracing) -> None:
    """torch.export quietly fixes an axis that the model turns into a number; that program would serve one size only."""
    found = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"}
    given = zip(program.graph_signature.user_inputs, tracing.axes.items(), strict=True)
    fixed = [
        f"{size} of {name} to {found[place][axis]}"
        for place, (name, free) in given
        for axis, size in free.items()
        if str(found[place][axis]).isdecimal()  # a SymInt that can be but one number
    ]
    require_free(fixed)


def _value(name: str, tracing: Tracing) -> dict[str, Any]:
    tensor, free = tracing.inputs[name], tracing.axes[name]
    axes = [free.get(axis, size) for axis, size in enumerate(tensor.shape)]
    return {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "axes": axes}
