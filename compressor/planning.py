"""Which rank every target gets under one global budget; the plan is a file that a person can edit and replay.

Nothing here imports torch.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Literal, get_args

from compressor.concave import concave_slopes
from compressor.errors import ArtifactError, BudgetError

Strategy = Literal["gain", "energy", "uniform", "replay"]
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


def flat(name: str, out_features: int, in_features: int) -> Spectrum:
    """A target of which only the shape is known: every direction is worth the same."""
    count = min(out_features, in_features)
    return Spectrum(name, out_features, in_features, [1.0] * count, float(count))


@dataclass(frozen=True)
class PlanLayer:
    """One target's row. `rank` None means that it stays dense, and is charged as dense."""

    name: str
    out_features: int
    in_features: int
    rank: int | None
    break_even: int
    parameters: int  # deployed weights, biases aside
    energy: float  # share of the layer's total gain that the rank keeps


@dataclass(frozen=True)
class Plan:
    """The ranks of all targets and how they were chosen."""

    strategy: Strategy
    budget: float  # share of the targets' parameters
    layout: Layout
    multiple_of: int
    layers: tuple[PlanLayer, ...]
    schema_version: int = field(default=1)

    @property
    def parameters(self) -> int:
        """Deployed weights of all targets."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def dense_parameters(self) -> int:
        """Dense weights of all targets."""
        return sum(layer.out_features * layer.in_features for layer in self.layers)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank by name of the targets that are factorized."""
        return {layer.name: layer.rank for layer in self.layers if layer.rank is not None}

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the targets that stay dense."""
        return tuple(layer.name for layer in self.layers if layer.rank is None)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan, edited or not; only the ranks of the layers are believed, the rest is worked out again.

        Raises:
            ArtifactError: no plan file, or rows with ranks that cannot be; all of them are listed.
        """
        try:
            data = json.loads(path.read_text())
            layers = [PlanLayer(**row) for row in data.pop("layers")]
            plan = cls(**data, layers=())
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(
                f"{path} is not a plan: {error}. `compressor plan RECIPE --out DIR` writes one."
            ) from error
        if plan.layout not in get_args(Layout):
            raise ArtifactError(f"{path}: layout is {plan.layout!r}; allowed are {', '.join(get_args(Layout))}.")
        faults = [f"{path}: {fault}" for layer in layers for fault in _faults(layer, plan.layout)]
        if faults:
            raise ArtifactError("\n".join(faults))
        return replace(plan, layers=tuple(_charged(layer, plan.layout) for layer in layers))


def _faults(layer: PlanLayer, layout: Layout) -> Iterator[str]:
    limit = break_even(layer.out_features, layer.in_features, layout)
    whole = type(layer.rank) is int  # neither 8.5 nor "8" nor true
    if layer.rank is not None and not (whole and 1 <= layer.rank < limit):
        yield (
            f"layer '{layer.name}' has rank {layer.rank!r}; allowed are 1 to {limit - 1} (below break-even), "
            "or null to keep it dense"
        )


def _charged(layer: PlanLayer, layout: Layout) -> PlanLayer:
    m, n = layer.out_features, layer.in_features
    parameters = m * n if layer.rank is None else cost(m, n, layer.rank, layout)
    return replace(layer, parameters=parameters, break_even=break_even(m, n, layout))


@dataclass(frozen=True)
class Step:
    """One purchase: a target goes from its rank to a higher one (None: back to dense)."""

    rank: int | None
    price: int  # weights more than before
    gain: float


def allocate(
    spectra: Sequence[Spectrum],
    *,
    budget: float,
    strategy: Literal["gain", "energy", "uniform"] = "gain",
    multiple_of: int = 1,
    layout: Layout = "two-factor",
) -> Plan:
    """Spend the budget greedily, direction by direction.

    All strategies start every target at the smallest rank and then take the step that comes first: by gain per weight
    (`gain`: a separable concave problem, so greedy is optimal up to the last step), by the energy kept so far
    (`energy`: the same as one threshold for all layers, bisected to the budget), or by rank as a share of break-even
    (`uniform`). A target whose next step reaches break-even goes back to dense and is charged as dense. A step that
    does not fit is passed over for cheaper ones, so what is left over is less than any further step costs.

    Raises:
        BudgetError: not even the smallest ranks fit.
    """
    limit = int(budget * sum(spectrum.dense for spectrum in spectra) + 1e-6)
    ladders = {s.name: list(_ladder(s, multiple_of, layout)) for s in spectra}
    ranks: dict[str, int | None] = {}
    spent = 0
    for name, ladder in ladders.items():
        ranks[name], spent = ladder[0].rank, spent + ladder[0].price
    if spent > limit:
        least = math.ceil(10_000 * spent / sum(spectrum.dense for spectrum in spectra)) / 10_000  # up: it must suffice
        raise BudgetError(
            f"The budget of {budget:.4g} of the targets' parameters ({limit:,}) cannot be met: with the smallest rank, "
            f"{multiple_of}, the targets take {spent:,} ({least:.4f}). Raise plan.budget.parameters to at "
            f"least {least:.4f} or lower plan.multiple_of."
        )
    keys = {s.name: _keys(s, ladders[s.name], strategy) for s in spectra}
    heap = [(keys[name][1], name, 1) for name, ladder in ladders.items() if len(ladder) > 1]
    heapq.heapify(heap)
    while heap:
        _, name, number = heapq.heappop(heap)
        step = ladders[name][number]
        if spent + step.price > limit:
            continue
        ranks[name], spent = step.rank, spent + step.price
        if number + 1 < len(ladders[name]):
            heapq.heappush(heap, (keys[name][number + 1], name, number + 1))
    return Plan(strategy, budget, layout, multiple_of, tuple(_layer(s, ranks[s.name], layout) for s in spectra))


def _ladder(spectrum: Spectrum, multiple_of: int, layout: Layout) -> Iterator[Step]:
    """The ranks that a target can have, lowest first, each with its price and gain over the one before."""
    m, n = spectrum.out_features, spectrum.in_features
    top, available = break_even(m, n, layout), len(spectrum.gains)
    ranks = list(range(multiple_of, min(available + 1, top), multiple_of))
    exhausted = available < top - 1  # the method offers no more directions, so dense is not the next step
    if exhausted and (not ranks or ranks[-1] < available):
        ranks.append(available)
    captured = [0.0, *accumulate(spectrum.gains)]
    spent, kept = 0, 0.0
    for rank in ranks:
        price = cost(m, n, rank, layout)
        yield Step(rank, price - spent, captured[rank] - kept)
        spent, kept = price, captured[rank]
    if not exhausted:
        yield Step(None, spectrum.dense - spent, spectrum.total - kept)


def _keys(spectrum: Spectrum, ladder: Sequence[Step], strategy: str) -> list[float]:
    """A sort key for each step, ascending along the ladder; the lowest key of all targets is bought first."""
    prices, gains = [step.price for step in ladder], [step.gain for step in ladder]
    if strategy == "gain":
        return [-slope for slope in concave_slopes(gains, prices)]
    before = accumulate(prices[:-1] if strategy == "uniform" else gains[:-1], initial=0.0)
    whole = spectrum.dense if strategy == "uniform" else spectrum.total or 1.0
    return [value / whole for value in before]


def _layer(spectrum: Spectrum, rank: int | None, layout: Layout) -> PlanLayer:
    kept = 1.0 if rank is None else sum(spectrum.gains[:rank]) / (spectrum.total or 1.0)
    layer = PlanLayer(spectrum.name, spectrum.out_features, spectrum.in_features, rank, 0, 0, round(kept, 6))
    return _charged(layer, layout)
