"""Which rank every target gets under one global budget; the plan is a file that a person can edit and replay.

Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from compressor.errors import ArtifactError, fields
from compressor.market import Layout as Layout
from compressor.market import Market, cost
from compressor.market import Resource as Resource
from compressor.market import Spectrum as Spectrum
from compressor.market import Strategy as Strategy
from compressor.market import break_even as break_even
from compressor.market import flat as flat

STRICT = {"extra": "forbid"}  # of a plan in a file: an edited one has no keys of its own


@dataclass(frozen=True)
class PlanLayer:
    """One target's row. `rank` None means that it stays dense, and is charged as dense."""

    __pydantic_config__: ClassVar = STRICT
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

    __pydantic_config__: ClassVar = STRICT
    strategy: Strategy
    budget: float  # share of the targets' parameters, or of what `quantity` says of the dense model
    layout: Layout
    multiple_of: int
    layers: tuple[PlanLayer, ...]
    schema_version: Literal[1] = 1
    quantity: Resource = "parameters"
    predicted: float | None = None  # of latency and memory: the ratio to dense fp32 that the layers' sum foretells
    measured: float | None = None  # and the one that was measured, untrained

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
        plan, ranks = _parsed(path)
        faults = [
            *_repeated(plan.layers),
            *(_fault(*pair, plan.layout) for pair in zip(plan.layers, ranks, strict=True)),
        ]
        if any(faults):
            raise ArtifactError("\n".join(f"{path}: {fault}" for fault in faults if fault))
        layers = (replace(layer, rank=rank) for layer, rank in zip(plan.layers, ranks, strict=True))
        return replace(plan, layers=tuple(_charged(layer, plan.layout) for layer in layers))


def _parsed(path: Path) -> tuple[Plan, list[Any]]:
    """The plan in a file without its ranks, and these, which may be anything."""
    import pydantic

    try:
        data = json.loads(path.read_text())
        ranks = [row["rank"] for row in data["layers"]]
        bare = data | {"layers": [row | {"rank": None} for row in data["layers"]]}
        plan = pydantic.TypeAdapter(Plan).validate_json(json.dumps(bare), strict=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        said = "".join(f"\n{line}" for line in fields(error)) if isinstance(error, pydantic.ValidationError) else error
        raise ArtifactError(
            f"{path} is not a plan: {said}. `python -m compressor plan RECIPE --out DIR` writes one."
        ) from error
    return plan, ranks


def _repeated(layers: Sequence[PlanLayer]) -> Iterator[str]:
    names = [layer.name for layer in layers]
    return (f"layer '{name}' stands there {names.count(name)} times" for name in set(names) if names.count(name) > 1)


def _fault(layer: PlanLayer, rank: Any, layout: Layout) -> str:
    limit = break_even(layer.out_features, layer.in_features, layout)
    whole = type(rank) is int  # neither 8.5 nor "8" nor true
    if rank is None or (whole and 1 <= rank < limit):
        return ""
    allowed = f"1 to {limit - 1} (below break-even), or null to keep it dense"
    return f"layer '{layer.name}' has rank {rank!r}; allowed are {allowed}"


def _charged(layer: PlanLayer, layout: Layout) -> PlanLayer:
    m, n = layer.out_features, layer.in_features
    parameters = m * n if layer.rank is None else cost(m, n, layer.rank, layout)
    return replace(layer, parameters=parameters, break_even=break_even(m, n, layout))


def allocate(
    spectra: Sequence[Spectrum],
    *,
    budget: float,
    strategy: Strategy = "gain",
    multiple_of: int = 1,
    layout: Layout = "two-factor",
) -> Plan:
    """Spend the budget greedily, direction by direction.

    All strategies start every target at the smallest rank and then take the step that comes first: by gain per weight
    (`gain`: a separable concave problem, so greedy is optimal up to the last step), by gain per unit of a measured
    `price` (`measured`: the same problem, over the prices' least concave majorant), by the energy kept so far
    (`energy`: the same as one threshold for all layers, bisected to the budget), or by rank as a share of break-even
    (`uniform`). A target whose next step reaches break-even goes back to dense and is charged as dense. A step that
    does not fit is passed over for cheaper ones, so what is left over is less than any further step costs.

    The budget is a share of the dense targets' weights; `of_market` keeps to other prices.

    Raises:
        BudgetError: not even the smallest ranks fit.
    """
    return of_market(Market(spectra, strategy, multiple_of, layout), budget)


def of_market(market: Market, budget: float) -> Plan:
    """The plan of what a budget buys; raises BudgetError as `Market.spend` does."""
    ranks = market.spend(budget)
    layers = tuple(_layer(spectrum, ranks[spectrum.name], market.layout) for spectrum in market.spectra)
    return Plan(market.strategy, budget, market.layout, market.multiple_of, layers)


def _layer(spectrum: Spectrum, rank: int | None, layout: Layout) -> PlanLayer:
    kept = 1.0 if rank is None else sum(spectrum.gains[:rank]) / (spectrum.total or 1.0)
    layer = PlanLayer(spectrum.name, spectrum.out_features, spectrum.in_features, rank, 0, 0, round(kept, 6))
    return _charged(layer, layout)
