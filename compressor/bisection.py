"""Which budgets a search tries, as a function of what the tried ones gave. Nothing here imports torch.

Gates on quality ask for a larger budget where they do not hold, gates on cost for a smaller one. What has to hold
together is one alternative: all exports of a recipe, or with `export: auto` each low-rank export by itself. For each
alternative the least budget that holds lies in an interval, and the widest interval is halved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Want = Literal["more", "less"]

FIRST = 0.5  # tried first
TRIALS = 6  # at most
STEP = 1 / 64  # of the grid
NARROW = 0.032  # two steps, rounded up: a narrower interval is not halved again


@dataclass(frozen=True)
class Trial:
    """A budget that was tried: by alternative, what its failed gates ask for; nothing where all hold."""

    budget: float
    wants: Mapping[str, frozenset[Want]]

    @property
    def holds(self) -> bool:
        """Whether an alternative holds all its gates."""
        return any(not wants for wants in self.wants.values())


@dataclass(frozen=True)
class Interval:
    """Where an alternative's least budget that holds may lie, and what to try there."""

    width: float
    budget: float


def grid() -> tuple[float, ...]:
    """All budgets that may be tried: multiples of 1/64 below 1, rounded so that a person can type them."""
    return tuple(round(number * STEP, 3) for number in range(1, round(1 / STEP)))


def next_budget(budgets: Sequence[float], trials: Sequence[Trial]) -> float | None:
    """What to try next of ascending budgets, or None where the search is over."""
    if not trials:
        return min(budgets, key=lambda budget: abs(budget - FIRST))
    if len(trials) >= TRIALS:
        return None
    names = dict.fromkeys(name for trial in trials for name in trial.wants)
    found = [interval for name in names if (interval := _interval(name, budgets, trials))]
    return max(found, key=lambda interval: interval.width).budget if found else None


def chosen(trials: Sequence[Trial]) -> Trial | None:
    """The smallest budget of those tried that holds."""
    return min((trial for trial in trials if trial.holds), key=lambda trial: trial.budget, default=None)


def _interval(name: str, budgets: Sequence[float], trials: Sequence[Trial]) -> Interval | None:
    """What is left of an alternative; None where a smaller budget cannot hold, or not by a noticeable amount."""
    known = [(trial.budget, trial.wants[name]) for trial in trials if name in trial.wants]
    low = max((budget for budget, wants in known if "more" in wants), default=budgets[0] - STEP)
    held = [trial.budget for trial in trials if trial.holds]  # only smaller ones are of interest
    cheap = max((budget for budget, wants in known if "less" not in wants), default=0.0)
    ends = held + [budget for budget, wants in known if "less" in wants and budget > cheap]  # below that it was noise
    high = min(ends, default=budgets[-1] + STEP)
    tried = {trial.budget for trial in trials}
    inside = [budget for budget in budgets if low < budget < high and budget not in tried]
    if not inside or (high - low <= NARROW and high in held):
        return None
    middle = (low + high) / 2 if ends else high  # nothing was ever enough: whether the largest is, comes first
    return Interval(high - low, min(inside, key=lambda budget: abs(budget - middle)))
