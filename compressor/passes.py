"""Which targets' moments are gathered together: all of a large model's do not fit into memory at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from compressor.methods.base import Moment
from compressor.targets import Target

SHARE = 0.5  # of the memory that is free: the rest is for activations, their gradients and copies
FLOAT32 = 4  # bytes


def in_passes(targets: Sequence[Target], needs: Collection[Moment], free: float) -> list[list[str]]:
    """Names of targets in their order, as many together as have moments that fit; one that never does stands alone.

    Args:
        targets: in the order of the model.
        needs: the moments that are gathered.
        free: bytes of memory.
    """
    passes: list[list[str]] = [[]]
    taken = 0
    for target in targets:
        size = _bytes(target, needs)
        if passes[-1] and taken + size > SHARE * free:
            passes.append([])
            taken = 0
        passes[-1].append(target.name)
        taken += size
    return passes


def _bytes(target: Target, needs: Collection[Moment]) -> int:
    """Of a target's moments; an input that it shares is counted as its own, since the pass has yet to tell."""
    sides = {Moment.INPUT: target.in_features, Moment.GRADIENT: target.out_features}
    return FLOAT32 * sum(sides[moment] ** 2 for moment in needs)
