"""CERSA: cumulative energy-retaining subspace adaptation (arXiv 2605.08174)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from compressor.methods.base import Moment, Moments, Subspace, method, metrics

if TYPE_CHECKING:
    from torch import Tensor, nn


@method
class Cersa:
    """Plain SVD; the components up to a share `alpha` of the spectral energy are kept, those up to `beta` trained.

    Published with alpha 0.90 to 0.95 and no global budget; give the plan a budget of 1 and strategy `energy` for that.
    """

    alpha: Annotated[float, Field(gt=0, le=1, description="share of each layer's spectral energy that may be kept")] = (
        0.95
    )
    beta: Annotated[
        float,
        Field(gt=0, le=1, description="share of the layer's energy whose components are trained; the rest is frozen"),
    ] = 1.0
    updates: Annotated[int, Field(ge=0, description="rank of the trained updates of both bases; 0 as published")] = 0

    def needs(self) -> frozenset[Moment]:
        """None: the subspace is the weight's own."""
        return frozenset()

    def subspace(self, weight: Tensor, moments: Moments, limit: int) -> Subspace:
        """No more directions than reach alpha: r = min{k : sum_{i<=k} s_i^2 >= alpha sum s_i^2}."""
        import torch

        from compressor import linalg

        plain = metrics(weight, moments)
        u, s, vt = linalg.whitened_svd(weight, *plain)
        energy = s.square() / (s.square().sum() or 1.0)  # a weight of zeros has none
        rank = min(limit, 1 + int((energy.cumsum(0) < self.alpha - 1e-12).sum()))
        return Subspace(u[:, :rank], torch.diag(s[:rank]), vt[:rank], energy[:rank], 1.0)

    def core(self, subspace: Subspace) -> nn.Module:
        """S (k, k) trained from diag(s_1..s_k), then the frozen singular values k+1..r."""
        from compressor.cores import FreeCore

        energy = subspace.gains / subspace.total
        free = 1 + int((energy.cumsum(0) < self.beta - 1e-12).sum())
        return FreeCore(subspace.core, free=min(free, len(energy)))
