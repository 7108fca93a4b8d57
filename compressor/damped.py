"""The metric of a damped second moment, by its Cholesky factor or by none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from compressor.linalg import Metric, SecondMoment


@dataclass(frozen=True, eq=False)
class Damped:
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
    def spare(self) -> Metric:
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
