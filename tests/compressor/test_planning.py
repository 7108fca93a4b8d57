"""Ranks under a budget: never over it, never a step short of it, near the best there is, and replayable."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.allocation import Spectrum, break_even, cost
from compressor.errors import ArtifactError, BudgetError
from compressor.planning import Plan, allocate, replayed

LAYOUTS: Any = ("two-factor", "pivoted")
STRATEGIES: Any = ("gain", "energy", "uniform")


def spectra(seed: int, layout: Any = "two-factor", count: int = 5) -> list[Spectrum]:
    """Random shapes and falling gains; some targets offer fewer directions than break-even, as CERSA's do."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        m, n = (int(size) for size in rng.integers(12, 60, 2))
        top = break_even(m, n, layout) - 1
        values = np.sort(rng.exponential(size=min(m, n)) ** 2)[::-1] * rng.uniform(0.1, 10)
        kept = top if rng.random() < 0.7 else int(rng.integers(1, top + 1))
        found.append(Spectrum(f"layer.{number}", m, n, values[:kept].tolist(), float(values.sum())))
    return found


def next_rank(spectrum: Spectrum, rank: int, multiple_of: int, layout: Any) -> int | None:
    """The next rank that this target can have; None: it would have to go dense."""
    top, available = break_even(spectrum.out_features, spectrum.in_features, layout), len(spectrum.gains)
    higher = rank - rank % multiple_of + multiple_of
    if higher <= available and higher < top:
        return higher
    return available if available < top - 1 and rank < available else None


def next_price(spectrum: Spectrum, plan: Plan) -> float:
    """What the target's next step costs; infinite where there is none."""
    rank, (m, n) = plan.ranks.get(spectrum.name), (spectrum.out_features, spectrum.in_features)
    if rank is None:
        return float("inf")
    higher = next_rank(spectrum, rank, plan.multiple_of, plan.layout)
    if higher is not None:
        return cost(m, n, higher, plan.layout) - cost(m, n, rank, plan.layout)
    exhausted = len(spectrum.gains) < break_even(m, n, plan.layout) - 1
    return float("inf") if exhausted else m * n - cost(m, n, rank, plan.layout)


# ---- cost and break-even ----


@pytest.mark.parametrize(("m", "n"), [(7, 5), (5, 7), (6, 6), (1, 9), (384, 1536)])
def test_break_even_is_the_first_rank_that_saves_nothing(m: int, n: int) -> None:
    first = next(rank for rank in range(1, m * n + 1) if rank * m + rank * n >= m * n)
    assert break_even(m, n) == first


@pytest.mark.parametrize(("m", "n"), [(7, 5), (5, 7), (6, 6)])
def test_a_pivoted_layer_breaks_even_at_full_rank(m: int, n: int) -> None:
    first = next(rank for rank in range(1, m * n) if rank * n + (m - rank) * rank >= m * n)
    assert break_even(m, n, "pivoted") == first == min(m, n)


# ---- the budget ----


@pytest.mark.parametrize("multiple_of", [1, 3, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", range(12))
def test_a_budget_is_kept_and_used_up_to_less_than_a_step(
    seed: int, strategy: Any, layout: Any, multiple_of: int
) -> None:
    given = spectra(seed, layout)
    for budget in (0.45, 0.6, 0.8, 1.0):
        try:
            plan = allocate(given, budget=budget, strategy=strategy, multiple_of=multiple_of, layout=layout)
        except BudgetError:
            assert multiple_of == 8
            continue
        limit = budget * sum(s.out_features * s.in_features for s in given)
        assert plan.parameters <= limit + 1e-6
        assert limit - plan.parameters < min(next_price(s, plan) for s in given) + 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", range(6))
def test_ranks_are_multiples_below_break_even(seed: int, strategy: Any, layout: Any) -> None:
    given = {s.name: s for s in spectra(seed, layout)}
    plan = allocate(list(given.values()), budget=0.7, strategy=strategy, multiple_of=4, layout=layout)
    for name, rank in plan.ranks.items():
        spectrum = given[name]
        assert rank % 4 == 0 or rank == len(spectrum.gains)
        assert rank <= len(spectrum.gains)
        assert cost(spectrum.out_features, spectrum.in_features, rank, layout) < spectrum.dense


def test_a_layer_without_a_rank_is_charged_as_dense() -> None:
    wide = Spectrum("wide", 4, 4, [1.0], 1.5)  # break-even 2
    plan = allocate([wide, Spectrum("deep", 40, 40, [1.0] * 19, 30.0)], budget=0.6, multiple_of=2)
    (layer, _) = plan.layers
    assert (layer.rank, layer.parameters, layer.energy) == (None, 16, 1.0)
    assert "wide" not in plan.ranks
    assert plan.dense_parameters == 16 + 1600


def test_the_whole_budget_keeps_everything_dense() -> None:
    full = [Spectrum(name, 20, 30, [2.0] * 11, 40.0) for name in "ab"]
    assert allocate(full, budget=1.0).ranks == {}


def test_a_budget_that_cannot_be_met_says_which_one_can() -> None:
    for seed in range(10):
        given = spectra(seed)
        with pytest.raises(BudgetError, match="cannot be met") as caught:
            allocate(given, budget=0.01, multiple_of=4)
        named = re.search(r"at least ([\d.]+) or lower plan\.multiple_of", str(caught.value))
        assert named
        enough = float(named[1])
        assert allocate(given, budget=enough, multiple_of=4).parameters > 0
        with pytest.raises(BudgetError):
            allocate(given, budget=enough - 2e-4, multiple_of=4)


# ---- the strategies ----


def exhaustive(given: Sequence[Spectrum], limit: float) -> float:
    """The most gain that any choice of ranks within the limit has."""
    choices = []
    for s in given:
        ranks = range(1, len(s.gains) + 1)
        rows = [(cost(s.out_features, s.in_features, r), sum(s.gains[:r])) for r in ranks]
        choices.append([*rows, (s.dense, s.total)])
    totals = ((sum(price for price, _ in row), sum(gain for _, gain in row)) for row in product(*choices))
    return max(gain for price, gain in totals if price <= limit)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [0.3, 0.5, 0.7])
def test_greedy_is_within_one_direction_of_the_best_choice(seed: int, budget: float) -> None:
    rng = np.random.default_rng(seed)
    given = []
    for name, (m, n) in zip("abc", [(16, 20), (24, 12), (30, 30)], strict=True):
        gains = np.sort(rng.exponential(size=break_even(m, n) - 1))[::-1] * 0.7 ** np.arange(break_even(m, n) - 1)
        given.append(Spectrum(name, m, n, gains.tolist(), float(gains.sum()) + 1e-9))
    plan = allocate(given, budget=budget)
    kept = sum(sum(s.gains[: plan.ranks[s.name]]) for s in given)
    passed_over = [s.gains[plan.ranks[s.name]] for s in given if plan.ranks[s.name] < len(s.gains)]
    assert exhaustive(given, budget * plan.dense_parameters) - kept <= max(passed_over, default=0) + 1e-8


def test_gain_prefers_the_layer_where_a_weight_buys_most() -> None:
    cheap, costly = Spectrum("cheap", 20, 20, [1.0] * 9, 10.0), Spectrum("costly", 80, 80, [2.0] * 39, 80.0)
    ranks = allocate([cheap, costly], budget=0.2).ranks
    assert ranks.get("cheap", 10) > ranks["costly"]  # half the gain for a quarter of the price


@pytest.mark.parametrize("seed", range(10))
def test_energy_is_one_threshold_for_all_layers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    given = []
    for number in range(4):
        values = np.sort(rng.exponential(size=40))[::-1] ** (number + 1)
        given.append(Spectrum(str(number), 40, 40, values[:19].tolist(), float(values.sum())))
    ranks = allocate(given, budget=0.5, strategy="energy").ranks
    kept = {s.name: np.append(0, np.cumsum(s.gains)) / s.total for s in given}
    before = max(kept[name][rank - 1] for name, rank in ranks.items() if rank > 1)
    assert before <= min(kept[name][rank] for name, rank in ranks.items())


def test_uniform_gives_every_layer_the_same_share_of_its_weights() -> None:
    given = [Spectrum(str(m), m, 2 * m, [1.0] * (break_even(m, 2 * m) - 1), 99.0) for m in (48, 96, 192)]
    plan = allocate(given, budget=0.5, strategy="uniform")
    shares = [layer.parameters / (layer.out_features * layer.in_features) for layer in plan.layers]
    step = max(1.5 / layer.out_features for layer in plan.layers)  # one rank's share of a layer
    assert max(shares) - min(shares) <= 2 * step


def test_a_target_whose_method_offers_no_more_stays_where_it_is() -> None:
    """CERSA's alpha: a layer that needs few directions takes no more, whatever the budget."""
    plan = allocate([Spectrum("short", 40, 40, [3.0, 1.0, 0.5], 4.6)], budget=1.0, multiple_of=2)
    assert plan.ranks == {"short": 3}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_spectra_give_the_same_plan_in_any_order(strategy: Any) -> None:
    given = spectra(3)
    turned = allocate(given[::-1], budget=0.5, strategy=strategy)
    assert turned.ranks == allocate(given, budget=0.5, strategy=strategy).ranks


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_targets_without_any_gain_are_planned_all_the_same(strategy: Any) -> None:
    zeros = [Spectrum(name, 20, 20, [0.0] * 9, 0.0) for name in "ab"]
    assert allocate(zeros, budget=0.5, strategy=strategy).parameters <= 400


# ---- the file ----


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Plan, Path]:
    plan = allocate(spectra(1), budget=0.5, multiple_of=2)
    plan.save(tmp_path / "plan.json")
    return plan, tmp_path / "plan.json"


def edit(path: Path, **ranks: Any) -> None:
    """Change ranks: `layer_0=7`."""
    data = json.loads(path.read_text())
    for row in data["layers"]:
        row["rank"] = ranks.get(row["name"].replace(".", "_"), row["rank"])
    path.write_text(json.dumps(data))


def test_a_plan_comes_back_as_it_was_saved(saved: tuple[Plan, Path]) -> None:
    plan, path = saved
    assert Plan.load(path) == plan


def test_an_edited_rank_is_replayed_and_its_price_worked_out_again(saved: tuple[Plan, Path]) -> None:
    plan, path = saved
    edit(path, layer_0=3, layer_1=None)
    edited = Plan.load(path)
    assert edited.ranks["layer.0"] == 3
    assert "layer.1" not in edited.ranks
    first, second = edited.layers[:2]
    assert first.parameters == 3 * (first.out_features + first.in_features)
    assert second.parameters == second.out_features * second.in_features
    assert edited.layers[2:] == plan.layers[2:]
    assert edited.budget == pytest.approx(edited.parameters / edited.dense_parameters, abs=1e-6)


def test_an_edited_rank_keeps_what_its_layers_spectrum_says(saved: tuple[Plan, Path]) -> None:
    plan, path = saved
    edit(path, layer_0=3, layer_1=None)
    found, first = replayed(Plan.load(path), spectra(1)), spectra(1)[0]
    assert found.layers[0].energy == pytest.approx(sum(first.gains[:3]) / first.total, abs=1e-6)
    assert found.layers[1].energy == 1
    assert found.layers[2:] == plan.layers[2:]


def test_a_plan_is_replayed_as_it_was_and_targets_that_it_lacks_stay_dense(saved: tuple[Plan, Path]) -> None:
    plan, path = saved
    assert replayed(Plan.load(path), spectra(1)) == plan
    fewer = replace(plan, layers=plan.layers[1:])
    found = replayed(fewer, spectra(1))
    assert [layer.rank for layer in found.layers] == [None, *(layer.rank for layer in fewer.layers)]
    assert found.budget == pytest.approx(found.parameters / found.dense_parameters, abs=1e-6)


def test_every_faulty_row_of_an_edited_plan_is_named(saved: tuple[Plan, Path]) -> None:
    _, path = saved
    edit(path, layer_0=0, layer_1=10_000, layer_2="8", layer_3=2.5, layer_4=True)
    with pytest.raises(ArtifactError) as caught:
        Plan.load(path)
    message = str(caught.value)
    for number, rank in enumerate(["0", "10000", "'8'", "2.5", "True"]):
        assert f"'layer.{number}' has rank {rank}; allowed are 1 to" in message
    assert "or null to keep it dense" in message


@pytest.mark.parametrize("text", ["", "[]", '"plan"', "{}", '{"layers": [{"name": "a"}]}', '{"layers": 3}'])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"plan\.json is not a plan"):
        Plan.load(path)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere\.json is not a plan"):
        Plan.load(tmp_path / "nowhere.json")


def test_an_unknown_layout_is_refused_with_those_there_are(saved: tuple[Plan, Path]) -> None:
    _, path = saved
    path.write_text(path.read_text().replace("two-factor", "three-factor"))
    with pytest.raises(ArtifactError, match=r"layout: Input should be 'two-factor' or 'pivoted', not 'three-factor'"):
        Plan.load(path)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            '"out_features": ',
            '"out_features": "x", "was": ',
            r"layers\.0\.out_features: Input should be a valid integer",
        ),
        ('"schema_version": 1', '"schema_version": 9', "schema_version: Input should be 1"),
        ('"strategy": "', '"strategy": "much-', "strategy: Input should be 'gain', 'energy'"),
        ('"layers": [', '"layer": 1, "layers": [', "layer: Unexpected keyword argument"),
    ],
)
def test_what_is_wrong_in_an_edited_plan_is_named(saved: tuple[Plan, Path], old: str, new: str, complaint: str) -> None:
    _, path = saved
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ArtifactError, match=complaint):
        Plan.load(path)


def test_a_layer_that_stands_twice_in_a_plan_is_named(saved: tuple[Plan, Path]) -> None:
    _, path = saved
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"layers": [*data["layers"], data["layers"][1]]}))
    with pytest.raises(ArtifactError, match=r"layer 'layer\.1' stands there 2 times"):
        Plan.load(path)
