"""The Pareto front of options in accuracy, size, latency and memory, and the best of those on it.

One option beats another in a quantity when the interval of their difference leaves out zero, and dominates it when it
beats it somewhere and is beaten nowhere. Of the sound options that nothing dominates, the best is the one with the
least geometric mean of size, latency and memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from compressor.tasks.base import QUALITIES
from validators.intervals import difference_margins
from validators.options import COSTS, Option, common

MATERIAL = 0.02  # costs that differ by less than 2% are nothing to choose by: one machine's noise from day to day
APART = 0.05  # of two runtimes 5%: their exports were measured one after the other, not side by side


def beats(one: Option, other: Option, quantity: str) -> bool:
    """Whether `one` is clearly better than `other`: by more than noise, and for costs by more than 2% (5% elsewhere).

    By the margins of their difference, see `validators.intervals.difference_margins`: two intervals that overlap a
    little are apart all the same.
    """
    mine, theirs = one.costs[quantity], other.costs[quantity]
    least = MATERIAL if one.runtime == other.runtime else APART
    material = quantity in QUALITIES or mine.value < theirs.value * (1 - least)
    return material and mine.value + difference_margins(mine, theirs)[1] < theirs.value


def dominates(one: Option, other: Option, quantities: Sequence[str]) -> bool:
    """Whether `one` is clearly better somewhere and clearly worse nowhere."""
    better = any(beats(one, other, quantity) for quantity in quantities)
    return better and not any(beats(other, one, quantity) for quantity in quantities)


def front(found: Sequence[Option]) -> list[Option]:
    """The sound options that no other one dominates."""
    sound = [option for option in found if option.sound]
    quantities = (*common(sound, QUALITIES), *common(sound, COSTS))
    return [one for one in sound if not any(dominates(other, one, quantities) for other in sound)]


def shared_costs(found: Sequence[Option]) -> list[str]:
    """Those of COSTS that were measured for all sound options: what there is to choose by."""
    return common([option for option in found if option.sound], COSTS)


def best(found: Sequence[Option]) -> Option | None:
    """Of the front the option that costs least; None where none is sound, or no cost was measured for all of them."""
    shared, sound = shared_costs(found), [option for option in found if option.sound]
    if not shared or not sound:
        return None
    return min(front(sound) or sound, key=lambda option: mean_cost(option, shared))


def mean_cost(option: Option, costs: Sequence[str]) -> float:
    """Geometric mean of the ratios to dense."""
    return math.exp(sum(math.log(option.costs[cost].value) for cost in costs) / len(costs))
