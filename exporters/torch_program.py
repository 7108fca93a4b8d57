"""Tracing by torch.export: the program that torch's own runtimes start from. Imports torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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


class _Lowered(nn.Module):
    """A copy of a traced module that computes in another float type, from and to fp32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.lowered, self.dtype = copy.deepcopy(module), dtype
        for tensor in self.lowered.state_dict(keep_vars=True).values():  # not rotary tables, which no checkpoint has
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)

    def forward(self, *values: Tensor) -> Tensor:
        given = (value.to(self.dtype) if value.is_floating_point() else value for value in values)
        logits: Tensor = self.lowered(*given)
        return logits.float()


def lowered(tracing: Tracing, dtype: torch.dtype) -> Tracing:
    """What is traced, computed in another float type: inputs and logits stay fp32, as do buffers that are not saved."""
    return replace(tracing, module=_Lowered(tracing.module, dtype))


def _inner(module: nn.Module) -> nn.Module:
    inside = getattr(module, "lowered", module)
    return getattr(inside, "model", inside)


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
