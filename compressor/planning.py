"""Which rank every target gets under one global budget; the plan is a file that a person can edit and replay.

Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from compressor.allocation import Allocator, Layout, Resource, Spectrum, Strategy, break_even, cost
from compressor.errors import ArtifactError, InputError, did_you_mean, field_faults

if TYPE_CHECKING:
    from compressor.recipe import PlanSection

STRATEGIES = ("gain", "energy", "uniform")  # that need nothing but weights: `measured` needs prices
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

    def save(self, path: Path | str) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """Read a plan, edited or not; only the ranks of the layers are believed, what they cost is worked out again.

        What an edited rank keeps of its layer's gain takes the decompositions: `replayed`.

        Raises:
            ArtifactError: no plan file, or rows with ranks that cannot be; all of them are listed.
        """
        plan = _parsed(Path(path))
        found = [f"{path}: {fault}" for fault in faults(plan)]
        if found:
            raise ArtifactError("\n".join(found))
        layers = tuple(_charged(layer, plan.layout) for layer in plan.layers)
        edited = [layer.parameters for layer in layers] != [layer.parameters for layer in plan.layers]
        return replace(plan, layers=layers) if not edited else _as_edited(plan, layers)


def _parsed(path: Path) -> Plan:
    """The plan in a file, whose ranks may still be anything."""
    import pydantic

    try:
        data = json.loads(path.read_text())
        ranks = [row["rank"] for row in data["layers"]]
        bare = data | {"layers": [row | {"rank": None} for row in data["layers"]]}
        plan = pydantic.TypeAdapter(Plan).validate_json(json.dumps(bare), strict=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        invalid = isinstance(error, pydantic.ValidationError)
        said = "".join(f"\n{line}" for line in field_faults(error)) if invalid else error
        raise ArtifactError(
            f"{path} is not a plan: {said}. `python -m compressor plan RECIPE --out DIR` writes one."
        ) from error
    return replace(plan, layers=tuple(replace(row, rank=rank) for row, rank in zip(plan.layers, ranks, strict=True)))


def _as_edited(plan: Plan, layers: tuple[PlanLayer, ...]) -> Plan:
    """A plan of other ranks: its budget is what they take, since nothing else was asked for."""
    bare = replace(plan, layers=layers, quantity="parameters", predicted=None, measured=None)
    return replace(bare, budget=round(bare.parameters / bare.dense_parameters, 6))


def replayed(plan: Plan, spectra: Sequence[Spectrum]) -> Plan:
    """A plan's ranks for targets that are decomposed anew; those that it does not name stay dense."""
    layers = tuple(_layer(spectrum, plan.ranks.get(spectrum.name), plan.layout) for spectrum in spectra)
    whole = {layer.name for layer in plan.layers} == {layer.name for layer in layers}
    return replace(plan, layers=layers, predicted=None, measured=None) if whole else _as_edited(plan, layers)


def faults(plan: Plan) -> list[str]:
    """Rows that cannot be: layers that stand there twice, ranks that are none or not below break-even."""
    return [*_repeated(plan.layers), *(fault for layer in plan.layers for fault in _faults(layer, plan.layout))]


def _repeated(layers: Sequence[PlanLayer]) -> Iterator[str]:
    names = [layer.name for layer in layers]
    return (f"layer '{name}' stands there {names.count(name)} times" for name in set(names) if names.count(name) > 1)


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

    The budget is a share of the dense targets' weights; `plan_of` keeps to other prices.

    Raises:
        BudgetError: not even the smallest ranks fit.
        InputError: see `require_sensible`.
    """
    require_sensible(budget, strategy, multiple_of, layout)
    return plan_of(Allocator(spectra, strategy, multiple_of, layout), budget)


def by_recipe(section: PlanSection, spectra: Sequence[Spectrum], budget: float | None = None) -> Plan:
    """The plan that a recipe's section asks for; under its own budget where no other is given; see `allocate`."""
    return allocate(
        spectra,
        budget=section.share if budget is None else budget,
        strategy=section.strategy,
        multiple_of=section.multiple_of,
        layout=section.layout,
    )


def require_sensible(budget: float, strategy: str, multiple_of: int, layout: str) -> None:
    """Refuse what no plan can be asked for.

    Raises:
        InputError: all that is wrong.
    """
    wrong = []
    if not 0 < budget <= 1:
        wrong.append(f"the share that is kept is {budget!r}; it is above 0, and at most 1 (0.5 for half)")
    for word, given, allowed in (("strategy", strategy, STRATEGIES), ("layout", layout, get_args(Layout))):
        if given not in allowed:
            wrong.append(f"{word} {given!r} is none of {', '.join(allowed)}.{did_you_mean(str(given), allowed)}")
    if type(multiple_of) is not int or multiple_of < 1:
        wrong.append(f"multiple_of is {multiple_of!r}; it is a whole number, 1 or more")
    if wrong:
        raise InputError("No plan can be made: " + "; ".join(wrong))


def plan_of(allocator: Allocator, budget: float) -> Plan:
    """The plan of what a budget buys; raises BudgetError as `Allocator.spend` does."""
    ranks = allocator.spend(budget)
    layers = tuple(_layer(spectrum, ranks[spectrum.name], allocator.layout) for spectrum in allocator.spectra)
    return Plan(allocator.strategy, budget, allocator.layout, allocator.multiple_of, layers)


def _layer(spectrum: Spectrum, rank: int | None, layout: Layout) -> PlanLayer:
    kept = 1.0 if rank is None else sum(spectrum.gains[:rank]) / (spectrum.total or 1.0)
    layer = PlanLayer(spectrum.name, spectrum.out_features, spectrum.in_features, rank, 0, 0, round(kept, 6))
    return _charged(layer, layout)
