"""Decompositions on disk: of every planned target the directions that its rank takes.

They are written as they were found, in float64 and untruncated, so that a model made of them is the same to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from compressor.methods.base import Subspace
from compressor.planning import Plan
from compressor.tensors import read_noted, save_tensors

TENSORS = ("left", "core", "right", "gains")


def save(subspaces: Mapping[str, Subspace], plan: Plan, path: Path) -> None:
    """The first directions of each target that has a rank, as many as that; of those that were decomposed."""
    kept = {name: subspaces[name].first(rank) for name, rank in plan.ranks.items() if name in subspaces}
    tensors = {f"{name}.{field}": getattr(found, field) for name, found in kept.items() for field in TENSORS}
    others = {name: {"total": found.total, "turned": found.turned} for name, found in kept.items()}
    save_tensors(tensors, path, ("subspaces", json.dumps(others)))


def load(path: Path) -> dict[str, Subspace]:
    """What `save` wrote; pages come when they are used.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    tensors, others = read_noted(path, "subspaces", "Plan again.")
    return {
        name: Subspace(**{field: tensors[f"{name}.{field}"] for field in TENSORS} | other)
        for name, other in others.items()
    }
