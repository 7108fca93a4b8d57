"""What is trained between two bases: a core (r, r), free or a rotation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor import linalg


class FreeCore(nn.Module):
    """A core (r, r) whose leading `free` x `free` block is trained; the rest keeps its initial values.

    `free = r` is a dense trained core (JACTUS), `free < r` is CERSA's split into trained and frozen components, and
    `free = 0` a core that is not trained at all.
    """

    frozen: Tensor

    def __init__(self, initial: Tensor, free: int) -> None:
        super().__init__()
        self.free = free
        self.register_buffer("frozen", initial.clone())
        self.block = nn.Parameter(initial[:free, :free].clone()) if free else None

    @torch.no_grad()
    def restart_(self, initial: Tensor) -> None:
        """Another initial core (r, r); as much of it is trained as before."""
        self.frozen.copy_(initial)
        if self.block is not None:
            self.block.copy_(initial[: self.free, : self.free])

    def forward(self) -> Tensor:
        """The core (r, r)."""
        if self.block is None:
            return self.frozen
        if self.free == len(self.frozen):
            return self.block
        top = torch.cat([self.block, self.frozen[: self.free, self.free :]], dim=1)
        return torch.cat([top, self.frozen[self.free :]], dim=0)


class OrthogonalCore(nn.Module):
    """initial @ diag(beta) R diag(alpha) with a Cayley rotation R of a trained skew-symmetric matrix (PSOFT, eq. 8).

    In torch's layout the weight is the transpose of the paper's, so that alpha scales the input side and beta the
    output side of R. r (r - 1) / 2 trained numbers, and 2 r more for the scaling vectors (`strict` leaves them out,
    which keeps the angles between the weight's rows in the subspace).
    """

    initial: Tensor
    lower: Tensor

    def __init__(self, initial: Tensor, *, strict: bool) -> None:
        super().__init__()
        rank = len(initial)
        self.register_buffer("initial", initial.clone())
        self.register_buffer("lower", torch.tril_indices(rank, rank, -1), persistent=False)
        self.skew = nn.Parameter(initial.new_zeros(rank * (rank - 1) // 2))
        self.alpha = None if strict else nn.Parameter(initial.new_ones(rank))
        self.beta = None if strict else nn.Parameter(initial.new_ones(rank))

    @torch.no_grad()
    def restart_(self, initial: Tensor) -> None:
        """Another initial core (r, r), not rotated and not scaled."""
        self.initial.copy_(initial)
        self.skew.zero_()
        for scale in (self.alpha, self.beta):
            if scale is not None:
                scale.fill_(1)

    def rotation(self) -> Tensor:
        """R (r, r), orthogonal."""
        rank = len(self.initial)
        skew = self.skew.to(torch.promote_types(self.skew.dtype, torch.float32))  # halves solve no equations
        lower = skew.new_zeros(rank, rank).index_put((self.lower[0], self.lower[1]), skew)
        return linalg.cayley(lower - lower.mT).to(self.skew.dtype)

    def forward(self) -> Tensor:
        """The core (r, r)."""
        rotation = self.rotation()
        if self.alpha is not None and self.beta is not None:
            rotation = self.beta[:, None] * rotation * self.alpha
        return self.initial @ rotation
