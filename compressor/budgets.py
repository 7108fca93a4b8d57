"""Budgets that only the whole model can tell, such as latency: plan, measure, correct. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from compressor import progress
from compressor.allocation import Allocator, Resource
from compressor.errors import BudgetError
from compressor.planning import Plan, plan_of

TOLERANCE = 0.05  # of the asked ratio: within it, no further round is measured
ROUNDS = 4


@dataclass(frozen=True)
class Round:
    """A plan that was measured as a whole model."""

    load: float  # what it is charged, as a share of the dense targets
    ratio: float  # measured, to dense fp32


@dataclass(frozen=True)
class DenseCost:
    """What is known before any plan is measured.

    Attributes:
        ratio: of the dense model in the export's precision to dense fp32.
        slope: by how much the ratio falls with the load, as the sum of what layers save foretells.
    """

    ratio: float
    slope: float

    def predicted(self, load: float) -> float:
        """The ratio that the layers' sum foretells."""
        return self.ratio - self.slope * (1 - load)


@dataclass(frozen=True)
class Fitting:
    """Looks for the plan whose measured ratio is the asked one.

    Attributes:
        allocator: what makes a plan of a budget.
        quantity: what is measured.
        asked: the ratio to dense fp32 that is wanted.
        dense: the model without a plan.
        where: for messages: "onnx int8", say.
    """

    allocator: Allocator
    quantity: Resource
    asked: float
    dense: DenseCost
    where: str

    def run(self, measure: Callable[[Plan], float]) -> tuple[Plan, tuple[Round, ...]]:
        """The plan, and every round that was measured; `measure` gives a plan's ratio to dense fp32.

        Raises:
            BudgetError: even the smallest ranks take more.
        """
        if self.dense.ratio <= self.asked:
            return self._everything(), ()
        found: list[tuple[Plan, Round]] = []
        while len(found) < ROUNDS and not (found and self._near(found[-1][1])):
            plan = self._next(found)
            if plan is None:
                break
            load, ratio = self.allocator.load(plan.ranks), measure(plan)
            found.append((plan, Round(load, ratio)))
            self._tell(len(found), *found[-1])
            self._require_reachable(*found[-1])
        plan, last = min(filter(self._held, found), key=lambda pair: abs(pair[1].ratio - self.asked))
        if not self._near(last):
            progress.note(f"{last.ratio:.3f} is the nearest to {self.asked:g} of the plans tried that hold the budget.")
        return self._told(plan, last.ratio), tuple(one for _, one in found)

    def _next(self, found: Sequence[tuple[Plan, Round]]) -> Plan | None:
        """The plan to measure next; None where no other lies between those measured."""
        least = self.allocator.least
        load = _aim([Round(1.0, self.dense.ratio), *(one for _, one in found)], self.asked, self.dense.slope, least)
        loads = [load] if any(map(self._held, found)) else [load, least]
        plans = (plan_of(self.allocator, min(max(load, least), 1.0)) for load in loads)
        return next((plan for plan in plans if all(plan.ranks != known.ranks for known, _ in found)), None)

    def _held(self, pair: tuple[Plan, Round]) -> bool:
        return pair[1].ratio <= self.asked * (1 + TOLERANCE)

    def _tell(self, number: int, plan: Plan, one: Round) -> None:
        progress.note(
            f"  round {number}: {plan.parameters / plan.dense_parameters:.1%} of the targets' parameters, "
            f"{self.quantity} predicted {self.dense.predicted(one.load):.3f}, measured {one.ratio:.3f} of dense fp32"
        )

    def _everything(self) -> Plan:
        progress.note(
            f"The dense model in {self.where} takes {self.dense.ratio:.3f} of the {self.quantity} of dense fp32, and "
            f"{self.asked:g} was asked: nothing needs compressing, all that the budget allows is kept."
        )
        return self._told(plan_of(self.allocator, 1.0), self.dense.ratio)

    def _near(self, one: Round) -> bool:
        return abs(one.ratio / self.asked - 1) <= TOLERANCE

    def _require_reachable(self, plan: Plan, one: Round) -> None:
        smallest = one.load <= self.allocator.least * (1 + 1e-9)
        if smallest and one.ratio > self.asked * (1 + TOLERANCE):
            enough = math.ceil(100 * one.ratio) / 100
            raising = f"Raise plan.budget.{self.quantity} to at least {enough:.2f}, lower"
            advice = raising if enough <= 1 else "Low-rank is not the answer here, where no budget of it helps: lower"
            raise BudgetError(
                f"The budget of {self.asked:g} of the {self.quantity} of dense fp32 cannot be met in {self.where}: "
                f"with the smallest ranks, which keep {plan.parameters / plan.dense_parameters:.1%} of the targets' "
                f"parameters, {one.ratio:.3f} was measured, the least that was reached. {advice} "
                "plan.multiple_of, or put an export of a smaller precision first."
            )

    def _told(self, plan: Plan, ratio: float) -> Plan:
        predicted = self.dense.predicted(self.allocator.load(plan.ranks))
        return replace(
            plan, quantity=self.quantity, budget=self.asked, predicted=round(predicted, 4), measured=round(ratio, 4)
        )


def _aim(rounds: Sequence[Round], asked: float, slope: float, least: float) -> float:
    """The load to try next; the first round is the dense model, over what is asked.

    By the slope foretold, then by the line from the dense model through what was measured; where that is not enough
    either, the least load of all. Once there is a round on either side: by the line through the two rounds next to
    what is asked, or between the sides where that line leads out of them.
    """
    over = min((one for one in rounds if one.ratio > asked), key=lambda one: one.load)
    under = max((one for one in rounds if one.ratio <= asked), key=lambda one: one.load, default=None)
    if under is not None:
        near = sorted(rounds, key=lambda one: abs(one.ratio - asked))[:2]
        found = _line(near[0], near[1], asked)
        return found if under.load < found < over.load else _line(under, over, asked)
    if len(rounds) == 2:
        slope = (rounds[0].ratio - over.ratio) / (1 - over.load) if over.load < 1 else 0.0
    return over.load - (over.ratio - asked) / slope if len(rounds) <= 2 and slope > 0 else least


def _line(one: Round, other: Round, asked: float) -> float:
    """The load at which the line through two rounds has the asked ratio; that of the first where it is level."""
    rise = other.ratio - one.ratio
    return one.load + (asked - one.ratio) / rise * (other.load - one.load) if rise else one.load
