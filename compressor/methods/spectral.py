"""Truncated SVD in a metric: plain SVD, SVD-LLM, GFWSVD and their diagonal relatives; the core may be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from compressor.methods.base import WEIGHED, MetricName, Moment, Moments, Subspace, method, metrics, scaled

if TYPE_CHECKING:
    from torch import Tensor, nn


@method
class Spectral:
    """Truncated SVD of the whitened weight R_A W R_B^T, mapped back.

    | metric | diagonal | power | published as |
    |---|---|---|---|
    | plain | | | SVD |
    | input | no | 1 | SVD-LLM (arXiv 2403.07378): activations' second moment |
    | both | no | 1 | GFWSVD (arXiv 2505.17974), OBD-LLM (arXiv 2604.00821): Kronecker-factored Fisher |
    | output | yes | 1 | FWSVD (arXiv 2207.00112), its row sums of the Fisher taken as diag E[gg^T] |
    | input | yes | 0.5 | ASVD (arXiv 2312.05821), its mean absolute activation taken as the root mean square |
    """

    metric: Annotated[MetricName, Field(description="which moments weigh the approximation error")] = "plain"
    diagonal: Annotated[bool, Field(description="use the moments' diagonals only")] = False
    power: Annotated[float, Field(gt=0, le=2, description="exponent of the moments")] = 1.0
    ridge: Annotated[float, Field(ge=0, description="damping, as a share of a moment's mean diagonal")] = 0.01
    train: Annotated[Literal["core", "none"], Field(description="train the core, or freeze it")] = "core"
    updates: Annotated[
        int, Field(ge=0, description="rank of the trained updates of both bases (LoRA on the factors)")
    ] = 0

    def needs(self) -> frozenset[Moment]:
        """The moments that the metric is made of."""
        return WEIGHED[self.metric]

    def subspace(self, weight: Tensor, moments: Moments, limit: int) -> Subspace:
        """Eckart-Young in the metric; the gain of a direction is its squared singular value."""
        import torch

        from compressor import linalg

        output, input = metrics(
            weight, moments, self.metric, ridge=self.ridge, power=self.power, diagonal=self.diagonal
        )
        left, s, right, energy = linalg.leading_svd(weight, output, input, limit)
        loss_change = self.metric == "both" and self.power == 1
        gains, total = scaled(s.square(), energy, of=moments if loss_change else None)
        return Subspace(left, torch.diag(s), right, gains, total)

    def core(self, subspace: Subspace) -> nn.Module:
        """A free core, or a frozen one."""
        from compressor.cores import FreeCore

        return FreeCore(subspace.core, free=len(subspace.core) if self.train == "core" else 0)
