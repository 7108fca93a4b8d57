"""The least budget that holds is found, whatever the gates: against brute force over the whole grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from compressor import bisection
from compressor.bisection import FIRST, NARROW, STEP, TRIALS, Trial, Want

GRID = bisection.grid()
Gates = Callable[[float], dict[str, frozenset[Want]]]
HOLDS: frozenset[Want] = frozenset()
MORE: frozenset[Want] = frozenset({"more"})
LESS: frozenset[Want] = frozenset({"less"})
BOTH = MORE | LESS


def search(gates: Gates, budgets: Sequence[float] = GRID) -> list[Trial]:
    """All trials of a search over gates that are known at every budget."""
    trials: list[Trial] = []
    while (budget := bisection.next_budget(budgets, trials)) is not None:
        assert budget in budgets
        assert budget not in [trial.budget for trial in trials], "tried twice"
        trials.append(Trial(budget, gates(budget)))
        assert len(trials) <= TRIALS
    return trials


def between(least: float, most: float = math.inf) -> Callable[[float], frozenset[Want]]:
    """Quality from `least` on, costs up to `most`."""
    return lambda budget: (MORE if budget < least else HOLDS) | (LESS if budget > most else HOLDS)


def test_the_grid_is_typed_as_it_stands() -> None:
    assert len(GRID) == len(set(GRID)) == 63
    assert all(abs(budget - number * STEP) <= 5.01e-4 for number, budget in enumerate(GRID, 1))
    assert all(budget == float(f"{budget:.3f}") for budget in GRID)


@pytest.mark.parametrize("seed", range(200))
def test_the_least_budget_that_holds_is_found_up_to_two_steps(seed: int) -> None:
    least = float(np.random.default_rng(seed).uniform(0, 0.98))
    trials = search(lambda budget: {"all": between(least)(budget)})
    found, oracle = bisection.chosen(trials), min(budget for budget in GRID if budget >= least)
    assert found is not None
    assert oracle <= found.budget <= oracle + NARROW


def test_half_is_tried_first_and_the_largest_where_that_is_not_enough() -> None:
    trials = search(lambda budget: {"all": between(0.7)(budget)})
    assert [trial.budget for trial in trials[:2]] == [FIRST, GRID[-1]]


@pytest.mark.parametrize("seed", range(200))
def test_gates_that_are_not_quite_monotone_give_the_smallest_of_what_was_tried(seed: int) -> None:
    """Noise moves verdicts near the limit: nothing is promised beyond it, and a budget that held is never lost."""
    rng = np.random.default_rng(seed)
    least, noise = rng.uniform(0.05, 0.9), dict(zip(GRID, rng.normal(0, 0.03, len(GRID)), strict=True))
    held = {budget: budget + noise[budget] >= least for budget in GRID}
    trials = search(lambda budget: {"all": HOLDS if held[budget] else MORE})
    found = bisection.chosen(trials)
    tried = [trial.budget for trial in trials if held[trial.budget]]
    assert (found.budget if found else None) == min(tried, default=None)
    assert found is None or abs(found.budget - least) <= 4 * 0.03 + NARROW


@pytest.mark.parametrize("seed", range(100))
def test_costs_bound_it_from_above(seed: int) -> None:
    """Quality asks for more, cost for less: a budget between them is found wherever the room is wide enough."""
    rng = np.random.default_rng(seed)
    least = rng.uniform(0.05, 0.8)
    most = least + rng.uniform(-0.2, 0.3)
    trials = search(lambda budget: {"all": between(least, most)(budget)})
    found, oracle = bisection.chosen(trials), [budget for budget in GRID if least <= budget <= most]
    if found is None:
        assert len(oracle) * STEP <= NARROW + STEP
    else:
        assert found.budget in oracle


def test_where_nothing_was_found_between_quality_and_cost_all_trials_were_made() -> None:
    for least, most in itertools.combinations_with_replacement(GRID, 2):
        trials = search(lambda budget, ends=(least, most): {"all": between(*ends)(budget)})
        assert bisection.chosen(trials) or len(trials) == TRIALS, (least, most)


@pytest.mark.parametrize("noisy", [0.25, 0.375])
def test_a_cost_that_fails_below_a_budget_where_it_held_is_noise(noisy: float) -> None:
    trials = search(lambda budget: {"all": between(0.4)(budget) | (LESS if budget == noisy else HOLDS)})
    assert noisy in [trial.budget for trial in trials]
    found = bisection.chosen(trials)
    assert found is not None
    assert 0.4 <= found.budget <= 0.4 + NARROW


def test_of_several_alternatives_one_is_enough() -> None:
    """fp32 is never small enough, int8 needs a large budget: that budget is found all the same."""
    trials = search(lambda budget: {"fp32": between(0.2, 0.1)(budget), "int8": between(0.8)(budget)})
    found = bisection.chosen(trials)
    assert found is not None
    assert 0.8 <= found.budget <= 0.9


def test_an_alternative_that_is_missing_from_a_trial_did_not_hold_there() -> None:
    trials = search(lambda budget: {"fp32": between(0.7)(budget)} | ({"int8": HOLDS} if budget > 0.4 else {}))
    found = bisection.chosen(trials)
    assert found is not None
    assert 0.4 < found.budget <= 0.5


def test_what_fails_at_the_largest_budget_too_ends_after_two_trials() -> None:
    trials = search(lambda budget: {"all": MORE})
    assert [trial.budget for trial in trials] == [FIRST, GRID[-1]]
    assert bisection.chosen(trials) is None


def test_gates_that_ask_for_more_and_for_less_at_once_end_it() -> None:
    trials = search(lambda budget: {"all": BOTH})
    assert [trial.budget for trial in trials] == [FIRST]


def test_where_everything_holds_the_least_budget_is_approached_until_little_is_left() -> None:
    for floor in (0.016, 0.1, 0.3):
        budgets = [budget for budget in GRID if budget >= floor]
        found = bisection.chosen(search(lambda budget: {"all": HOLDS}, budgets))
        assert found is not None
        assert found.budget <= budgets[0] + NARROW


def test_costs_that_never_hold_go_down_and_end() -> None:
    trials = search(lambda budget: {"all": LESS})
    assert [trial.budget for trial in trials] == sorted((trial.budget for trial in trials), reverse=True)
    assert bisection.chosen(trials) is None


@pytest.mark.parametrize("budgets", [[0.25], [0.8], [0.25, 0.8], [0.1, 0.2, 0.9]])
@pytest.mark.parametrize("least", [0.0, 0.15, 0.5, 0.85, 1.0])
def test_a_grid_of_few_plans_is_searched_too(budgets: list[float], least: float) -> None:
    found = bisection.chosen(search(lambda budget: {"all": between(least)(budget)}, budgets))
    oracle = [budget for budget in budgets if budget >= least]
    assert (found.budget if found else None) == min(oracle, default=None)
