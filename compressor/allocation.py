"""What ranks cost and what they are worth, and the greedy allocation that spends a budget on them. No torch here."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Literal

from compressor.concave import concave_slopes
from compressor.errors import BudgetError

Strategy = Literal["gain", "energy", "uniform", "measured"]
Resource = Literal["parameters", "latency", "memory"]  # what a budget is a share of
Layout = Literal["two-factor", "pivoted"]


def cost(out_features: int, in_features: int, rank: int, layout: Layout = "two-factor") -> int:
    """Weights of a deployed layer of this rank: r (m + n), less r^2 in the pivoted layout."""
    return rank * (out_features + in_features) - (rank * rank if layout == "pivoted" else 0)


def break_even(out_features: int, in_features: int, layout: Layout = "two-factor") -> int:
    """The smallest rank that costs at least as much as the dense layer: ceil(mn / (m + n)); min(m, n) when pivoted."""
    if layout == "pivoted":
        return min(out_features, in_features)
    return -(-out_features * in_features // (out_features + in_features))


@dataclass(frozen=True)
class Spectrum:
    """What the plan needs to know of one target: its shape and what each direction is worth."""

    name: str
    out_features: int
    in_features: int
    gains: Sequence[float]  # (k,) non-increasing
    total: float  # the gain of all directions, those beyond k included

    @property
    def dense(self) -> int:
        """Weights of the dense layer."""
        return self.out_features * self.in_features


Price = Callable[[Spectrum, int | None], float]  # what a target costs at a rank, never less at a higher; None: dense


def weights(layout: Layout = "two-factor") -> Price:
    """Deployed weights, biases aside: the price where nothing is measured."""

    def price(spectrum: Spectrum, rank: int | None) -> int:
        if rank is None:
            return spectrum.dense
        return cost(spectrum.out_features, spectrum.in_features, rank, layout)

    return price


def flat(name: str, out_features: int, in_features: int) -> Spectrum:
    """A target of which only the shape is known: every direction is worth the same."""
    count = min(out_features, in_features)
    return Spectrum(name, out_features, in_features, [1.0] * count, float(count))


@dataclass(frozen=True)
class Step:
    """One choice: a target goes from its rank to a higher one (None: back to dense)."""

    rank: int | None
    price: float  # more than before; what the gain is held against
    charge: float  # more than before, in the budget's unit
    gain: float


@dataclass(frozen=True)
class Allocator:
    """The ranks that targets can have, what each costs and is worth, and the greedy choice among them.

    Attributes:
        spectra: the targets.
        strategy: what is chosen next.
        multiple_of: of which ranks are multiples.
        layout: of the deployed layers.
        price: what `gain` and `measured` hold a gain against; weights by default.
        charge: what the budget is a share of; weights by default.
    """

    spectra: Sequence[Spectrum]
    strategy: Strategy = "gain"
    multiple_of: int = 1
    layout: Layout = "two-factor"
    price: Price | None = None
    charge: Price | None = None

    @cached_property
    def ladders(self) -> Mapping[str, list[Step]]:
        """By name, the ranks that a target can have."""
        return {spectrum.name: self._ladder(spectrum) for spectrum in self.spectra}

    @cached_property
    def dense(self) -> float:
        """What all targets are charged where they stay dense."""
        charge = self.charge or weights(self.layout)
        return sum(charge(spectrum, None) for spectrum in self.spectra)

    @property
    def least(self) -> float:
        """What the smallest ranks are charged, as a share of dense."""
        return sum(ladder[0].charge for ladder in self.ladders.values()) / self.dense

    def load(self, ranks: Mapping[str, int]) -> float:
        """What targets are charged at these ranks, as a share of dense; those without one are dense."""
        charge = self.charge or weights(self.layout)
        return sum(charge(spectrum, ranks.get(spectrum.name)) for spectrum in self.spectra) / self.dense

    def spend(self, budget: float) -> dict[str, int | None]:
        """The ranks that a budget buys, a share of `dense`; see `compressor.planning.allocate`.

        Raises:
            BudgetError: not even the smallest ranks fit.
        """
        limit = budget * self.dense + 1e-6
        ranks = {name: ladder[0].rank for name, ladder in self.ladders.items()}
        spent = sum(ladder[0].charge for ladder in self.ladders.values())
        if spent > limit:
            raise self._refused(budget, spent)
        keys = {s.name: _keys(s, self.ladders[s.name], self.strategy) for s in self.spectra}
        heap = [(keys[name][1], name, 1) for name, ladder in self.ladders.items() if len(ladder) > 1]
        heapq.heapify(heap)
        while heap:
            _, name, number = heapq.heappop(heap)
            step = self.ladders[name][number]
            if spent + step.charge > limit:
                continue
            ranks[name], spent = step.rank, spent + step.charge
            if number + 1 < len(self.ladders[name]):
                heapq.heappush(heap, (keys[name][number + 1], name, number + 1))
        return ranks

    def _refused(self, budget: float, spent: float) -> BudgetError:
        least = math.ceil(10_000 * spent / self.dense) / 10_000  # up: it must suffice
        slow = sum(ladder[0].rank is None for ladder in self.ladders.values()) if self.price else 0
        kept = f"; {slow} stay dense, since none of their ranks is faster" if slow else ""
        return BudgetError(
            f"The budget of {budget:.4g} of the targets' parameters ({int(budget * self.dense):,}) cannot be met: with "
            f"the smallest rank, {self.multiple_of}, the targets take {spent:,.0f} ({least:.4f}){kept}. Raise "
            f"plan.budget.parameters to at least {least:.4f} or lower plan.multiple_of."
        )

    def _ladder(self, spectrum: Spectrum) -> list[Step]:
        """The ranks that a target can have, lowest first, each with its price and gain over the one before.

        One that costs as much as dense, or as a higher one, is left out.
        """
        price, charge = (given or weights(self.layout) for given in (self.price, self.charge))
        whole = price(spectrum, None), charge(spectrum, None)
        captured = [0.0, *accumulate(spectrum.gains)]
        ranks, exhausted = self._ranks(spectrum)
        rows = [(rank, price(spectrum, rank), charge(spectrum, rank), captured[rank]) for rank in ranks]
        worth = [row for row in rows if row[1] < whole[0] and row[2] < whole[1]]
        offered: list[tuple[int | None, float, float, float]] = [
            row for row, above in pairwise([*worth, (None, *whole, spectrum.total)]) if row[1:3] != above[1:3]
        ]
        if not exhausted or len(worth) < len(rows):
            offered.append((None, *whole, spectrum.total))
        steps = pairwise([(0, 0.0, 0.0, 0.0), *offered])
        return [Step(row[0], row[1] - old[1], row[2] - old[2], row[3] - old[3]) for old, row in steps]

    def _ranks(self, spectrum: Spectrum) -> tuple[list[int], bool]:
        """Ranks below break-even, and whether the method has no more directions, so that dense is not the next step."""
        top = break_even(spectrum.out_features, spectrum.in_features, self.layout)
        available = len(spectrum.gains)
        ranks = list(range(self.multiple_of, min(available + 1, top), self.multiple_of))
        exhausted = available < top - 1
        if exhausted and (not ranks or ranks[-1] < available):
            ranks.append(available)
        return ranks, exhausted


def _keys(spectrum: Spectrum, ladder: Sequence[Step], strategy: str) -> list[float]:
    """A sort key for each step, ascending along the ladder; the lowest key of all targets is bought first."""
    prices, gains = [step.price for step in ladder], [step.gain for step in ladder]
    if strategy in ("gain", "measured"):  # the first step is bought already, whatever a call costs at any rank with it
        return [-math.inf, *(-slope for slope in concave_slopes(gains[1:], prices[1:]))]
    before = accumulate(prices[:-1] if strategy == "uniform" else gains[:-1], initial=0.0)
    whole = spectrum.dense if strategy == "uniform" else spectrum.total or 1.0
    return [value / whole for value in before]
