"""Tracing by torch.export: the program that torch's own runtimes start from. Imports torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor import devices
from compressor.errors import ExportError, RuntimeFailure, first_line
from compressor.files import write_json
from compressor.running import settled
from compressor.storage import weights_digest
from exporters import verify
from exporters.base import Exported, Exporter, Runner
from exporters.folder import facts, new_folder, save_config
from exporters.record import EXPORT_FILE
from exporters.tracing import Tracing, free_sizes, require_free
from exporters.verify import Spans


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


def export(
    exporter: Exporter,
    model: nn.Module,
    example: Mapping[str, Tensor],
    path: Path,
    *,
    file: str,
    write: Callable[[Mapping[str, Tensor], Path], tuple[dict[str, Any], Spans]],
    load: Callable[[Path], Runner],
    tolerance: float,
) -> Exported:
    """Write a model as a new folder `path`: a program, `export.json` and the model's config.

    Args:
        exporter: whose program it is.
        model: what is traced.
        example: its inputs.
        path: the folder.
        file: the program's name.
        write: traces the model with inputs that lie beside it into a file; returns the program's own facts, and for
            how many tokens it is sure.
        load: a runner for the folder.
        tolerance: largest difference of a logit that the fp32 program may have from the torch model.

    Raises:
        ExportError: `path` exists, the model cannot be traced, or the program computes something else.
        ResourceError: the disk refuses the files.
    """
    with new_folder(path) as scratch, settled(model), verify.unchanged(model):
        inputs = devices.beside(model, example)
        program, spans = write(inputs, scratch / file)
        beyond, last = verify.beyond(model, inputs, spans)
        told = facts(exporter, scratch, [file], _versions(exporter.packages))
        told |= {"weights_digest": weights_digest(model), **program, **last}
        write_json(scratch / EXPORT_FILE, told)  # read by load
        limit = tolerance if exporter.precision == "fp32" else math.inf  # gates say what a precision may cost
        runner = _read_back(load, scratch, model)
        told["parity"] = verify.compare(model, runner, verify.trials(model, inputs) + beyond, limit)
        save_config(getattr(model, "config", None), scratch)
        write_json(scratch / EXPORT_FILE, told)
    return Exported(path, (file,), told)


def _read_back(load: Callable[[Path], Runner], folder: Path, model: nn.Module) -> Runner:
    try:
        return load(folder)
    except RuntimeFailure as error:
        raise ExportError(f"What was written of {type(model).__name__} cannot be read back: {error}") from error


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Of what is installed, by the names of imports: `executorch` of `executorch.runtime`."""
    return {root: version(root) for root in (name.partition(".")[0] for name in packages)}


def inputs(tracing: Tracing) -> list[dict[str, Any]]:
    """The facts of each input: its name, its dtype, and each axis' size or the name of its free size."""
    return [_value(name, tracing) for name in tracing.inputs]


class _Lowered(nn.Module):
    """A copy of a traced module that computes in another float type, from and to fp32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.lowered, self.dtype = copy.deepcopy(module), dtype
        saved = {id(tensor) for tensor in self.lowered.state_dict(keep_vars=True).values()}
        for tensor in [*self.lowered.parameters(), *self.lowered.buffers()]:
            if tensor.is_floating_point() and (id(tensor) in saved or tensor.ndim > 1):
                tensor.data = tensor.data.to(dtype)

    def forward(self, *values: Tensor) -> Tensor:
        given = (value.to(self.dtype) if value.is_floating_point() else value for value in values)
        logits: Tensor = self.lowered(*given)
        return logits.float()


def lowered(tracing: Tracing, dtype: torch.dtype) -> Tracing:
    """What is traced, computed in another float type.

    Inputs and logits stay fp32, as do vectors that no checkpoint has, such as the frequencies of rotary positions.
    """
    return replace(tracing, module=_Lowered(tracing.module, dtype))


def _inner(module: nn.Module) -> nn.Module:
    inside = getattr(module, "lowered", module)
    return getattr(inside, "model", inside)


def _check_axes(program: torch.export.ExportedProgram, tracing: Tracing) -> None:
    """torch.export quietly fixes an axis that the model turns into a number; that program would serve one size only."""
    fixed = [
        f"{size} of {name} to {given}"
        for name, _, size, given in free_sizes(program, tracing)
        if str(given).isdecimal()  # a SymInt that can be but one number
    ]
    require_free(fixed)


def _value(name: str, tracing: Tracing) -> dict[str, Any]:
    tensor, free = tracing.inputs[name], tracing.axes[name]
    axes = [free.get(axis, size) for axis, size in enumerate(tensor.shape)]
    return {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "axes": axes}
