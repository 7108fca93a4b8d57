"""Allocation by a measured price: near the best choice there is, and no layer is factorized to be slower."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from compressor.allocation import Allocator, Price, Spectrum, break_even, weights
from compressor.concave import concave_slopes
from compressor.errors import BudgetError
from compressor.planning import plan_of

Costs = dict[str, dict[int | None, float]]


def an_allocator(seed: int, count: int = 3) -> tuple[list[Spectrum], Costs]:
    """Falling gains, and costs that rise with the rank in uneven steps from a first one that is not small."""
    rng = np.random.default_rng(seed)
    spectra, costs = [], {}
    for number in range(count):
        m, n = (int(size) for size in rng.integers(8, 20, 2))
        top = break_even(m, n) - 1
        gains = np.sort(rng.exponential(size=top))[::-1]
        name = f"layer.{number}"
        spectra.append(Spectrum(name, m, n, gains.tolist(), float(gains.sum() + rng.exponential())))
        rising = np.cumsum(rng.exponential(size=top + 1)) + rng.uniform(0, 5)
        costs[name] = {None: float(rising[-1])} | {rank + 1: float(rising[rank]) for rank in range(top)}
    return spectra, costs


def price_of(costs: Costs) -> Price:
    return lambda spectrum, rank: costs[spectrum.name][rank]


def gain_of(spectrum: Spectrum, rank: int | None) -> float:
    return spectrum.total if rank is None else sum(spectrum.gains[:rank])


@pytest.mark.parametrize("budget", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("seed", range(12))
def test_greedy_over_measured_costs_is_within_one_purchase_of_the_best_choice(seed: int, budget: float) -> None:
    spectra, costs = an_allocator(seed)
    limit = budget * sum(costs[s.name][None] for s in spectra)
    try:
        plan = plan_of(Allocator(spectra, "measured", price=price_of(costs), charge=price_of(costs)), budget)
    except BudgetError:
        assert sum(costs[s.name][1] for s in spectra) > limit
        return
    ranks = {s.name: plan.ranks.get(s.name) for s in spectra}
    assert sum(costs[name][rank] for name, rank in ranks.items()) <= limit + 1e-6
    every = product(*(costs[s.name] for s in spectra))
    best = max(
        sum(gain_of(s, rank) for s, rank in zip(spectra, choice, strict=True))
        for choice in every
        if sum(costs[s.name][rank] for s, rank in zip(spectra, choice, strict=True)) <= limit
    )
    largest = 0.0  # piece of a concave majorant: what greedy may at most leave undone
    for s in spectra:
        ladder = [*sorted(rank for rank in costs[s.name] if rank), None]
        values, prices = [gain_of(s, rank) for rank in ladder], [costs[s.name][rank] for rank in ladder]
        slopes = concave_slopes(np.diff(values).tolist(), np.diff(prices).tolist())
        for slope in set(slopes):
            largest = max(largest, sum(np.diff(values)[[one == slope for one in slopes]]))
    assert best - sum(gain_of(s, ranks[s.name]) for s in spectra) <= largest + 1e-9


def test_a_layer_whose_factors_are_slower_stays_dense() -> None:
    slow, fast = Spectrum("slow", 20, 20, [1.0] * 9, 9.5), Spectrum("fast", 20, 20, [1.0] * 9, 9.5)

    def price(spectrum: Spectrum, rank: int | None) -> float:
        return 10.0 if rank is None else (12.0 if spectrum.name == "slow" else 1.0 + rank / 2)

    plan = plan_of(Allocator([slow, fast], "measured", price=price, charge=price), 0.7)
    assert plan.kept == ("slow",)
    assert plan.ranks == {"fast": 6}  # 10 + 1 + 6 / 2 of 20
    assert Allocator([slow, fast], "measured", charge=price, price=price).least == pytest.approx(11.5 / 20)


def test_ranks_that_are_slower_than_dense_are_never_bought() -> None:
    one = Spectrum("one", 40, 40, [1.0] * 19, 20.0)

    def price(_: Spectrum, rank: int | None) -> float:
        return 10.0 if rank is None else float(rank)  # from rank 10 on, factors take as long

    for budget in np.linspace(0.1, 1.0, 19):
        plan = plan_of(Allocator([one], "measured", price=price, charge=price), budget)
        assert plan.ranks.get("one", 0) < 10
    assert plan.kept == ("one",)


def test_a_method_without_more_directions_goes_dense_only_where_that_is_faster() -> None:
    few = Spectrum("few", 40, 40, [1.0] * 8, 8.0)  # break-even is 20, and CERSA's alpha wants no more than 8

    def linear(_: Spectrum, rank: int | None) -> float:
        return 20.0 if rank is None else float(rank)

    def early(_: Spectrum, rank: int | None) -> float:
        return 5.0 if rank is None else float(rank)

    assert plan_of(Allocator([few], "measured", price=linear, charge=linear), 1.0).ranks == {"few": 8}
    assert plan_of(Allocator([few], "measured", price=early, charge=early), 1.0).kept == ("few",)


def test_of_ranks_that_take_the_same_time_the_highest_is_bought() -> None:
    one = Spectrum("one", 40, 40, [1.0] * 19, 19.0)

    def stairs(_: Spectrum, rank: int | None) -> float:
        return 5.0 if rank is None else 1.0 + (rank - 1) // 8

    plan = plan_of(Allocator([one], "measured", price=stairs, charge=stairs), 0.2)
    assert plan.ranks == {"one": 8}


def test_a_strategy_says_what_is_bought_and_a_budget_how_much() -> None:
    """Equal weights and gains, unequal times: time decides between the layers, weights when to stop."""
    spectra = [Spectrum(name, 40, 40, [1.0] * 19, 20.0) for name in ("quick", "slow")]

    def price(spectrum: Spectrum, rank: int | None) -> float:
        return (1 if spectrum.name == "quick" else 3) * (40.0 if rank is None else float(rank))

    plan = plan_of(Allocator(spectra, "measured", price=price), 0.5)
    assert plan.parameters <= 0.5 * plan.dense_parameters
    assert plan.ranks == {"quick": 19, "slow": 1}
    by_weight = plan_of(Allocator(spectra, charge=price), 0.5)
    assert Allocator(spectra, charge=price).load(by_weight.ranks) <= 0.5
    assert by_weight.ranks.keys() == {"slow"}  # the first by name goes dense, by weight alike


def test_layers_that_stay_dense_are_named_where_they_fill_the_budget() -> None:
    spectra = [Spectrum(name, 40, 40, [1.0] * 19, 20.0) for name in ("quick", "slow")]

    def price(spectrum: Spectrum, rank: int | None) -> float:
        return 10.0 if rank is None else (20.0 if spectrum.name == "slow" else 1.0)

    with pytest.raises(BudgetError, match=r"take 1,680 \(0\.5250\); 1 stay dense, since none of their ranks is faster"):
        plan_of(Allocator(spectra, "measured", price=price), 0.4)


def test_loads_are_shares_of_the_dense_targets() -> None:
    spectra = [Spectrum("a", 10, 10, [1.0] * 4, 5.0), Spectrum("b", 20, 10, [1.0] * 6, 7.0)]
    allocator = Allocator(spectra)
    assert allocator.dense == 300
    assert allocator.load({"a": 2}) == pytest.approx((2 * 20 + 200) / 300)
    assert allocator.least == pytest.approx((20 + 30) / 300)
    assert weights("pivoted")(spectra[1], 3) == 3 * 30 - 9
