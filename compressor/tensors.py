"""Tensors in and out of safetensors files."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor.errors import ArtifactError, first_line, some
from compressor.failures import exhausted

PART = 64_000_000  # bytes of a file that are mapped into memory at once


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's tensors by name, those that are tied once."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            kept[name] = tensor
    return kept


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, note: tuple[str, str] = ("format", "pt")) -> None:
    """Write as safetensors, with one note in its header: two would stand there in any order."""
    from safetensors.torch import save_file

    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(found, path, metadata=dict([note]))


def read_noted(path: Path, kind: str, again: str) -> tuple[dict[str, Any], Any]:
    """A file's tensors and the note of that kind, in JSON, that `save_tensors` wrote; pages come when they are used.

    Raises:
        ArtifactError: the file is missing or damaged; it says what is to be done `again`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads(file.metadata()[kind])
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:  # metadata is None in other files
        raise ArtifactError(f"{path} cannot be read as {kind}: {error}. {again}") from error


def load_tensors_(model: nn.Module, path: Path, *, strict: bool = True) -> nn.Module:
    """Fill a model from a safetensors file.

    Raises:
        ArtifactError: the file is missing or damaged, or its tensors are not the model's.
    """
    from safetensors import SafetensorError

    found, unexpected = set[str](), list[str]()
    try:
        for part in _parts(path):
            unexpected += model.load_state_dict(part, strict=False).unexpected_keys
            found |= part.keys()
    except (OSError, SafetensorError, RuntimeError) as error:
        if exhausted(error):
            raise
        raise ArtifactError(
            f"{path} cannot be read: {first_line(error)}. It is missing, truncated or damaged."
        ) from error
    lost = _lost(model, found) if strict else []
    if unexpected or lost:
        less, more = (some(names) or "nothing" for names in (lost, unexpected))
        raise ArtifactError(f"{path} does not fit the model: it lacks {less} and has {more} too many.")
    return model


def _lost(model: nn.Module, found: Collection[str]) -> list[str]:
    """The tensors that a file has by none of their names; those that are tied have several."""
    state = model.state_dict()
    filled = {tensor.data_ptr() for name, tensor in state.items() if name in found and tensor.numel()}
    return [name for name, tensor in state.items() if name not in found and tensor.data_ptr() not in filled]


def _parts(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """A file's tensors, some at a time: each part is mapped anew, so that what was copied is let go."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    while names:
        part: dict[str, torch.Tensor] = {}
        with safe_open(path, framework="pt") as file:
            while names and sum(tensor.nbytes for tensor in part.values()) < PART:
                name = names.pop(0)
                part[name] = file.get_tensor(name)
        yield part


def stored_parameters(path: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (not a dict)
