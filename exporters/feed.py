"""What a graph is fed: every input that it takes, in its dtypes, with an empty cache where the caller brings none.

Imports no runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import ArtifactError, RuntimeFailure
from exporters import record
from exporters.base import Arrays
from exporters.record import EXPORT_FILE

PAST, PRESENT, POSITIONS = "past_key_values", "present", "position_ids"  # of a decoder's cache, as optimum names them


@dataclass(frozen=True)
class Feed:
    """The inputs of the graph in `path`: their dtypes by name, and heads and size of each past key and value."""

    path: Path
    dtypes: Mapping[str, np.dtype[Any]]
    cache: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """All inputs in the graph's order and dtypes; what the graph does not take is left out.

        Raises:
            RuntimeFailure: an input is missing.
        """
        given = self._completed(inputs) if self.cache else inputs
        missing = sorted(self.dtypes.keys() - given.keys())
        if missing:
            raise RuntimeFailure(f"{self.path} needs the inputs {', '.join(missing)} too; got {', '.join(inputs)}.")
        return {
            name: np.ascontiguousarray(np.asarray(given[name]).astype(dtype, copy=False))
            for name, dtype in self.dtypes.items()
        }

    def _completed(self, inputs: Arrays) -> Arrays:
        """With an empty cache, and positions counted along the mask, where the caller starts from nothing."""
        if "input_ids" not in inputs:
            return inputs
        rows, length = inputs["input_ids"].shape
        empty = {name: np.zeros((rows, heads, 0, size)) for name, (heads, size) in self.cache.items()}
        positions = {}
        if "attention_mask" in inputs:
            counted = np.asarray(inputs["attention_mask"]).cumsum(axis=1) - 1  # (B, P + T)
            positions[POSITIONS] = counted[:, -length:].clip(min=0)  # (B, T)
        return {**empty, **positions, **inputs}


def told(folder: Path, program: str) -> dict[str, np.dtype[Any]]:
    """The inputs of a program that does not name them itself: their dtypes by name, in its order.

    Raises:
        ArtifactError: the program or `export.json` is missing, or that does not name the inputs.
    """
    missing = [str(one) for one in (folder / program, folder / EXPORT_FILE) if not one.is_file()]
    if missing:
        raise ArtifactError(f"{' and '.join(missing)} missing: {folder} is no whole export. Export the model again.")
    inputs = record.read(folder).inputs
    try:
        found = {value["name"]: np.dtype(value["dtype"]) for value in inputs}
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / EXPORT_FILE} has an input of no type ({error!r}): export again.") from error
    if not found:
        raise ArtifactError(f"{folder / EXPORT_FILE} does not name the program's inputs: export the model again.")
    return found


def shapes(feed: Arrays) -> str:
    """`input_ids (2, 7), attention_mask (2, 7)`, for error messages."""
    return ", ".join(f"{name} {array.shape}" for name, array in feed.items())
