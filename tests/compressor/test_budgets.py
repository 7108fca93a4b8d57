"""Budgets that whole models are measured for: the loop converges, keeps what is allowed, and tells what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest

from compressor import progress
from compressor.allocation import Allocator, Spectrum, break_even
from compressor.budgets import ROUNDS, TOLERANCE, DenseCost, Fitting
from compressor.errors import BudgetError
from compressor.planning import Plan


def an_allocator(size: int = 96, layers: int = 6, multiple_of: int = 1) -> Allocator:
    rng = np.random.default_rng(0)
    found = []
    for number in range(layers):
        gains = np.sort(rng.exponential(size=break_even(size, 2 * size) - 1))[::-1]
        found.append(Spectrum(f"layer.{number}", size, 2 * size, gains.tolist(), float(gains.sum()) + 1))
    return Allocator(found, multiple_of=multiple_of)


class Measurer:
    """A fake: the ratio is some function of the load, and every call is counted."""

    def __init__(self, allocator: Allocator, truth: Callable[[float], float], noise: float = 0.0) -> None:
        self.allocator, self.truth, self.noise = allocator, truth, noise
        self.calls, self.rng = 0, np.random.default_rng(1)

    def __call__(self, plan: Plan) -> float:
        self.calls += 1
        return self.truth(self.allocator.load(plan.ranks)) * (1 + self.noise * float(self.rng.uniform(-1, 1)))


TRUTHS: dict[str, Callable[[float], float]] = {
    "as foretold": lambda load: 0.2 + 0.8 * load,
    "half as steep": lambda load: 0.6 + 0.4 * load,
    "bent up": lambda load: 0.1 + 0.9 * load**2,
    "bent down": lambda load: 0.1 + 0.9 * load**0.5,
    "with a step from dense": lambda load: 1.0 if load > 0.999 else 0.1 + 0.65 * load,
}


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("asked", [0.65, 0.8])
@pytest.mark.parametrize("name", TRUTHS)
def test_the_measured_ratio_is_within_the_tolerance_of_what_is_asked(name: str, asked: float, noise: float) -> None:
    allocator = an_allocator()
    measure = Measurer(allocator, TRUTHS[name], noise)
    plan, rounds = Fitting(allocator, "latency", asked, DenseCost(1.0, 0.8), "onnx fp32").run(measure)
    assert 1 <= measure.calls == len(rounds) <= ROUNDS
    if name == "with a step from dense" and asked == 0.8:  # between 0.75 and 1 there is nothing
        held = max(one.ratio for one in rounds if one.ratio <= asked * (1 + TOLERANCE))
        assert plan.measured == pytest.approx(held, abs=1e-4)
        return
    assert plan.measured == pytest.approx(asked, rel=TOLERANCE)
    assert TRUTHS[name](allocator.load(plan.ranks)) == pytest.approx(asked, rel=TOLERANCE + noise)


def test_a_right_forecast_needs_one_round() -> None:
    allocator = an_allocator()
    measure = Measurer(allocator, TRUTHS["as foretold"])
    plan, _ = Fitting(allocator, "latency", 0.6, DenseCost(1.0, 0.8), "onnx fp32").run(measure)
    assert measure.calls == 1
    assert (plan.quantity, plan.budget) == ("latency", 0.6)
    assert plan.predicted == pytest.approx(plan.measured, abs=1e-4)


def test_the_forecast_is_told_as_it_was_made() -> None:
    allocator = an_allocator()
    measure = Measurer(allocator, lambda x: 0.4 + x / 2)
    plan, _ = Fitting(allocator, "memory", 0.7, DenseCost(0.9, 0.5), "onnx int8").run(measure)
    assert plan.predicted == pytest.approx(0.9 - 0.5 * (1 - allocator.load(plan.ranks)), abs=1e-4)


@pytest.mark.parametrize("asked", [0.1, 0.55])
def test_a_budget_out_of_reach_says_the_least_that_was_reached(asked: float) -> None:
    allocator = an_allocator()
    measure = Measurer(allocator, lambda load: 0.6 + 0.4 * load)
    with pytest.raises(BudgetError) as caught:
        Fitting(allocator, "latency", asked, DenseCost(1.0, 0.8), "onnx int8").run(measure)
    least = 0.6 + 0.4 * allocator.least
    said = str(caught.value)
    assert f"The budget of {asked:g} of the latency of dense fp32 cannot be met in onnx int8" in said
    assert f"{least:.3f} was measured" in said
    assert "Raise plan.budget.latency to at least 0.61" in said
    assert measure.calls <= 3


def test_the_ratio_that_is_named_as_enough_is_enough() -> None:
    allocator = an_allocator()
    measure = Measurer(allocator, lambda load: 0.6 + 0.4 * load)
    plan, _ = Fitting(allocator, "latency", 0.61, DenseCost(1.0, 0.8), "onnx int8").run(measure)
    assert plan.measured is not None
    assert plan.measured <= 0.61 * (1 + TOLERANCE)


def test_where_dense_meets_it_nothing_is_measured_and_all_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    allocator = an_allocator()
    measure = Measurer(allocator, lambda load: load)
    progress.set_level("normal")
    try:
        plan, rounds = Fitting(allocator, "memory", 0.6, DenseCost(0.45, 0.2), "onnx int8").run(measure)
    finally:
        progress.set_level("off")
    assert (measure.calls, rounds, plan.ranks, plan.measured) == (0, (), {}, 0.45)
    assert "nothing needs compressing" in capsys.readouterr().err


def test_where_ranks_come_in_coarse_steps_the_nearest_that_holds_is_taken() -> None:
    allocator = an_allocator(size=20, layers=1, multiple_of=6)  # break-even 14: ranks 6, 12, dense
    loads = {rank: rank * 60 / 800 for rank in (6, 12)}
    measure = Measurer(allocator, lambda load: load)
    plan, _ = Fitting(allocator, "latency", 0.7, DenseCost(1.0, 1.0), "onnx fp32").run(measure)
    assert plan.ranks == {"layer.0": 6}
    assert plan.measured == pytest.approx(loads[6], abs=1e-4)


def test_a_measurement_that_never_settles_still_ends() -> None:
    allocator = an_allocator()
    wild = count()
    ratios = (0.9, 0.2, 0.95, 0.3)
    plan, rounds = Fitting(allocator, "latency", 0.6, DenseCost(1.0, 0.8), "onnx fp32").run(
        lambda _: ratios[next(wild)]
    )
    assert len(rounds) == ROUNDS
    assert plan.measured in (0.2, 0.3)


def test_where_no_budget_helps_none_is_advised() -> None:
    measure = Measurer(an_allocator(), lambda load: 1.1 + load)
    with pytest.raises(
        BudgetError, match=r"1\.\d+ was measured.* Low-rank is not the answer here.* lower plan"
    ) as caught:
        Fitting(an_allocator(), "latency", 0.5, DenseCost(1.0, 0.8), "onnx fp32").run(measure)
    assert "Raise" not in str(caught.value)
