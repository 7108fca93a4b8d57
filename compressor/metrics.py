"""Second moments of a target's inputs and output gradients, and the metrics that they make.

A metric stands for a positive definite matrix A and a root R of it, R^T R = A, so that ||R_A E R_B^T||_F^2 =
tr(A E B E^T) weighs an error E by output metric A and input metric B (the K-FAC form of the loss change,
tr(E[gg^T] E E[xx^T] E^T) / 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from compressor.leading import exact, leading

FLOOR = 1e-12  # smallest eigenvalue of a metric against its largest: a singular one could not be undone


class Metric(Protocol):
    """What weighs: products with a positive definite matrix A (d, d) and with a root R of it."""

    def whiten(self, columns: Tensor) -> Tensor:
        """R @ columns, (d, k) -> (d, k)."""
        ...

    def unwhiten(self, columns: Tensor) -> Tensor:
        """R^-1 @ columns, (d, k) -> (d, k)."""
        ...

    def apply(self, columns: Tensor) -> Tensor:
        """A @ columns, (d, k) -> (d, k)."""
        ...


class SecondMoment:
    """An uncentered second moment E[z z^T] (d, d), decomposed at most once however many layers share it."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self._damped: dict[float, CholeskyMetric] = {}

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (d,) in descending order and eigenvectors (d, d) in columns, float64."""
        return exact(self.matrix, len(self.matrix))

    def forget(self) -> None:
        """Give the decompositions' memory back; they are made again where they are asked for."""
        self.__dict__.pop("eigen", None)
        self._damped.clear()

    def top(self, count: int) -> Tensor:
        """The leading eigenvectors (d, count); a few of many to the tolerance of `compressor.leading`."""
        if "eigen" in self.__dict__:
            return self.eigen[1][:, :count]
        return leading(self.matrix, count)[1]

    def metric(self, ridge: float, *, power: float = 1.0, diagonal: bool = False) -> Metric:
        """The metric (E[z z^T] + ridge * mean(diag) * I)^power, or the same of its diagonal.

        The ridge is relative; without one a singular moment is kept invertible by a floor at 1e-12 of its largest
        eigenvalue. A moment that is zero everywhere gives the plain metric.
        """
        spread = self.matrix.diagonal().double()
        if not spread.any():
            return SpectralMetric.plain(len(spread), spread.device)
        if ridge and power == 1 and not diagonal:
            return self._damped.setdefault(ridge, CholeskyMetric(self, ridge))
        return self.spectral(ridge, power=power, diagonal=diagonal)

    def spectral(self, ridge: float, *, power: float = 1.0, diagonal: bool = False) -> SpectralMetric:
        """The same with its root from the eigenvectors, which a singular moment has too."""
        spread = self.matrix.diagonal().double()
        values, vectors = (spread, None) if diagonal else self.eigen
        damped = values + ridge * spread.mean()
        return SpectralMetric(damped.clamp_min(FLOOR * float(damped.max())).pow(power / 2), vectors)


@dataclass(frozen=True, eq=False)
class SpectralMetric:
    """The root R = diag(scale) vectors^T of a metric A = R^T R; without vectors A is diagonal."""

    scale: Tensor  # (d,) float64, positive
    vectors: Tensor | None  # (d, d) orthogonal, float64

    @classmethod
    def plain(cls, size: int, device: torch.device | None = None) -> SpectralMetric:
        """The identity."""
        return cls(torch.ones(size, dtype=torch.float64, device=device), None)

    def whiten(self, columns: Tensor) -> Tensor:
        """R @ columns, (d, k) -> (d, k)."""
        rotated = columns if self.vectors is None else self.vectors.mT @ columns
        return self.scale[:, None] * rotated

    def unwhiten(self, columns: Tensor) -> Tensor:
        """R^-1 @ columns, (d, k) -> (d, k)."""
        shrunk = columns / self.scale[:, None]
        return shrunk if self.vectors is None else self.vectors @ shrunk

    def apply(self, columns: Tensor) -> Tensor:
        """A @ columns, (d, k) -> (d, k)."""
        scaled = self.scale[:, None] * self.whiten(columns)
        return scaled if self.vectors is None else self.vectors @ scaled


@dataclass(frozen=True, eq=False)
class CholeskyMetric:
    """The metric A = E[z z^T] + ridge * mean(diag) * I, whose root is the Cholesky factor, made where it is needed.

    Where only `apply` is asked, nothing is factorized at all.
    """

    moment: SecondMoment
    ridge: float

    @property
    def shift(self) -> float:
        """What is added to the diagonal."""
        return self.ridge * float(self.moment.matrix.diagonal().double().mean())

    @cached_property
    def factor(self) -> Tensor | None:
        """R (d, d) upper triangular, float64; None where rounding made the moment more indefinite than the ridge."""
        matrix = self.moment.matrix.double()
        damped = (matrix + matrix.mT) / 2
        damped.diagonal().add_(self.shift)
        factor, failed = torch.linalg.cholesky_ex(damped, upper=True)
        return None if failed else factor

    @cached_property
    def spare(self) -> SpectralMetric:
        """What stands in where there is no factor."""
        return self.moment.spectral(self.ridge)

    def whiten(self, columns: Tensor) -> Tensor:
        """R @ columns, (d, k) -> (d, k)."""
        return self.spare.whiten(columns) if self.factor is None else self.factor @ columns

    def unwhiten(self, columns: Tensor) -> Tensor:
        """R^-1 @ columns, (d, k) -> (d, k)."""
        if self.factor is None:
            return self.spare.unwhiten(columns)
        return torch.linalg.solve_triangular(self.factor, columns, upper=True)

    def apply(self, columns: Tensor) -> Tensor:
        """A @ columns, (d, k) -> (d, k), multiplied in the moment's own precision: it is not known better."""
        matrix = self.moment.matrix
        return (matrix @ columns.to(matrix.dtype)).double() + self.shift * columns
