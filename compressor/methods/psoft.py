"""PSOFT, first published as MOFT: orthogonal adaptation in the principal subspace (arXiv 2505.11235)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from compressor.methods.base import Moment, Moments, Subspace, method

if TYPE_CHECKING:
    from torch import Tensor, nn


@method
class Psoft:
    """Plain SVD with a rotated core diag(s) diag(beta) R diag(alpha); the residual is dropped: the compression.

    The asymmetric split of the paper's eq. (6), all singular values on one side of R, is what makes a strict R keep the
    angles between neurons (its theorem 4.1).
    """

    strict: Annotated[bool, Field(description="train the rotation alone, without the two scaling vectors")] = False
    updates: Annotated[int, Field(ge=0, description="rank of the trained updates of both bases; 0 as published")] = 0

    def needs(self) -> frozenset[Moment]:
        """None: the subspace is the weight's own."""
        return frozenset()

    def subspace(self, weight: Tensor, moments: Moments, limit: int) -> Subspace:
        """The leading singular triplets."""
        from compressor.methods.spectral import Spectral

        return Spectral().subspace(weight, moments, limit)

    def core(self, subspace: Subspace) -> nn.Module:
        """A Cayley core that starts at the singular values."""
        from compressor.cores import OrthogonalCore

        return OrthogonalCore(subspace.core, strict=self.strict)
