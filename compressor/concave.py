"""The least concave majorant of a curve: what greedy allocation needs where gains do not fall by themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence


def concave_slopes(rises: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Slopes of the least concave majorant of the curve with these rises over these widths, one per piece.

    Pool adjacent violators: neighbors whose slopes ascend share their common slope, until all slopes descend. Of what
    rises over no width the slope is infinite.
    """
    blocks: list[tuple[float, float, int]] = []  # rise, width, pieces
    for rise, width in zip(rises, widths, strict=True):
        block = (rise, width, 1)
        while blocks and blocks[-1][0] * block[1] <= block[0] * blocks[-1][1]:
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1], before[2] + block[2])
        blocks.append(block)
    return [rise / width if width else math.inf for rise, width, pieces in blocks for _ in range(pieces)]
