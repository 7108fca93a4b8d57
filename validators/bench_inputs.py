"""What `bench` runs exports on: synthetic inputs that all of them take, or those of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import InputError, first_line
from exporters.feed import PAST, POSITIONS
from exporters.record import EXPORT_FILE
from validators.entrants import Entrant


def synthetic_inputs(entrants: Sequence[Entrant], rows: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Made-up inputs of one shape for all exports: tokens that all of them know, full masks, normal numbers.

    All rows have the same tokens: BART wants as many ends in each. Axes that none of them fixes are `rows` where they
    come first, else `length`; caches are left out, so that runners start with none.

    Raises:
        InputError: no export lists its inputs.
    """
    tokens = min(entrant.tokens for entrant in entrants)
    generator = np.random.default_rng(seed)
    values = dict[str, Mapping[str, Any]]()
    for value in (value for entrant in entrants for value in entrant.facts["inputs"]):
        values[value["name"]] = _agreed(values.get(value["name"], value), value)
    if not values:
        raise InputError(f"{EXPORT_FILE} of {entrants[0].folder} does not list its inputs: give some by --inputs.")
    cached = any(name.startswith(PAST) for name in values)
    return {
        name: _made(name, value, (rows, length), tokens, generator)
        for name, value in sorted(values.items())
        if not name.startswith(PAST) and not (cached and name == POSITIONS)
    }


def _agreed(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """An input of two exports: each axis as long as the first of them says that fixes it."""
    if len(one["axes"]) != len(other["axes"]):
        return one
    pairs = zip(one["axes"], other["axes"], strict=True)
    return {**one, "axes": [mine if _fixed(mine) or not _fixed(theirs) else theirs for mine, theirs in pairs]}


def _fixed(axis: Any) -> bool:
    return isinstance(axis, int) and axis > 0


def _made(
    name: str, value: Mapping[str, Any], free: tuple[int, int], tokens: int, generator: np.random.Generator
) -> np.ndarray:
    axes = enumerate(value["axes"])
    shape = [axis if _fixed(axis) else free[min(place, 1)] for place, axis in axes]
    dtype = np.dtype(value["dtype"])
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape), dtype)
    if dtype.kind == "b" or "mask" in name:
        return np.ones(shape, dtype)
    if name == POSITIONS:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    row = generator.integers(0, 1 if "type" in name else tokens, shape[1:])
    return np.broadcast_to(row, shape).astype(dtype)


def read_inputs(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file.

    Raises:
        InputError: it cannot be read, or holds objects, which would run code when they are read.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            found = dict(archive)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file} cannot be read as an .npz file of arrays: {first_line(error)}") from error
    if not found:
        raise InputError(f"{file} is empty: it must hold the exports' inputs by name.")
    return found
