"""What every method is, and the subspace that it finds for one weight.

Methods import torch inside their functions, so that recipes can be checked and listed without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as pydantic_dataclass

from compressor.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.metrics import Metric, SecondMoment


T = TypeVar("T")
MetricName = Literal["plain", "input", "output", "both"]  # which moments weigh the approximation error


class Moment(StrEnum):
    """What calibration gathers for a target, both uncentered."""

    INPUT = "input_moment"  # E[x x^T] (n, n), per row
    GRADIENT = "gradient_moment"  # E[g g^T] (m, m), g = dL/dy; summed over the rows of a loss term, per term


WEIGHED: Mapping[MetricName, frozenset[Moment]] = {
    "plain": frozenset(),
    "input": frozenset({Moment.INPUT}),
    "output": frozenset({Moment.GRADIENT}),
    "both": frozenset(Moment),
}


@dataclass(frozen=True, eq=False)
class Moments:
    """The second moments of one target; targets that read the same input share the object, and its decomposition."""

    input: SecondMoment | None = None
    gradient: SecondMoment | None = None


@dataclass(frozen=True, eq=False)
class Subspace:
    """A weight written as left @ core @ right, best direction first; every prefix is an approximation of that rank."""

    left: Tensor  # (m, k) independent columns
    core: Tensor  # (k, k) diagonal for spectral methods
    right: Tensor  # (k, n) independent rows
    gains: Tensor  # (k,) non-increasing: loss (or energy) removed by each direction
    total: float  # the sum of the gains of all directions there are, those beyond k included
    turned: bool = False  # how it is truncated: the bases have unit moments, and are turned to their principal axes

    def truncate(self, rank: int) -> Subspace:
        """The first `rank` directions, with orthonormal bases, and a diagonal core unless they are turned; float64."""
        from compressor import linalg

        axes, first = linalg.principal if self.turned else linalg.canonical, self.first(rank)
        return Subspace(*axes(first.left, first.core, first.right), first.gains, self.total)

    def first(self, rank: int) -> Subspace:
        """The first `rank` directions as they are."""
        left, core, right = self.left[:, :rank], self.core[:rank, :rank], self.right[:rank]
        return Subspace(left, core, right, self.gains[:rank], self.total, self.turned)


class Method(Protocol):
    """One method: how the subspace of a weight is found, and what of its core is trained."""

    @property
    def updates(self) -> int:
        """Rank of the thin trained updates of both bases; 0: the core alone is trained."""
        ...

    def needs(self) -> frozenset[Moment]:
        """Which moments calibration must gather."""
        ...

    def subspace(self, weight: Tensor, moments: Moments, limit: int) -> Subspace:
        """The best `limit` directions, or all there are, of a weight (m, n); expensive, once per target."""
        ...

    def core(self, subspace: Subspace) -> nn.Module:
        """A module () -> (r, r) that starts at the truncated subspace's core; its parameters are what is trained."""
        ...


@dataclass_transform(frozen_default=True)
def method(cls: type[T]) -> type[T]:
    """Make a method's dataclass: frozen, its knobs checked whether they come from a recipe or from Python."""
    checked: Any = pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
    return checked(cls)


def metrics(
    weight: Tensor,
    moments: Moments,
    name: MetricName = "plain",
    *,
    ridge: float = 0,
    power: float = 1,
    diagonal: bool = False,
) -> tuple[Metric, Metric]:
    """The output metric of E[g g^T] and the input metric of E[x x^T], or the plain one of what does not weigh.

    Raises:
        InputError: one that is asked for was not gathered.
    """
    from compressor.metrics import SpectralMetric

    def one(moment: SecondMoment | None, wanted: bool, size: int) -> Metric:
        if not wanted:
            return SpectralMetric.plain(size, weight.device)
        if moment is None:
            raise InputError(
                "The method weighs by a moment that was not gathered: calibrate with `method.needs()`, and give all of "
                "the statistics."
            )
        return moment.metric(ridge, power=power, diagonal=diagonal)

    rows, columns = weight.shape
    weighed = WEIGHED[name]
    return (
        one(moments.gradient, Moment.GRADIENT in weighed, rows),
        one(moments.input, Moment.INPUT in weighed, columns),
    )


def scaled(gains: Tensor, total: float, *, of: Moments | None) -> tuple[Tensor, float]:
    """Gains that can be compared between layers: half the weighted energy when that is a loss change, else its share.

    Without both moments the energies of two layers have no common scale (layers differ in their norms by orders of
    magnitude), so each is divided by its layer's total. A weight of zeros gains nothing.

    Args:
        gains: energy of each direction.
        total: energy of all directions.
        of: the moments that make the energy a loss change; None where one of them is not in the metric. A layer whose
            inputs or gradients are zero (the loss does not depend on it) gains nothing, whatever its weight.
    """
    if of is None:
        return gains / (total or 1.0), 1.0
    felt = all(one is not None and bool(one.matrix.any()) for one in (of.input, of.gradient))
    return (gains / 2, total / 2) if felt else (gains * 0, 0.0)
