"""A target on its way: CoreLinear (trained) -> FactorizedLinear or PivotedLinear (deployed).

A target that the plan keeps dense goes KeptLinear (trained) -> nn.Linear (deployed).
"""

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
        self.register_buffer("frozen", initial.float().clone())
        self.block = nn.Parameter(initial[:free, :free].float().clone()) if free else None

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
        self.register_buffer("initial", initial.float().clone())
        self.register_buffer("lower", torch.tril_indices(rank, rank, -1), persistent=False)
        self.skew = nn.Parameter(torch.zeros(rank * (rank - 1) // 2))
        self.alpha = None if strict else nn.Parameter(torch.ones(rank))
        self.beta = None if strict else nn.Parameter(torch.ones(rank))

    def rotation(self) -> Tensor:
        """R (r, r), orthogonal."""
        rank = len(self.initial)
        lower = torch.zeros(rank, rank, dtype=self.skew.dtype, device=self.skew.device)
        lower = lower.index_put((self.lower[0], self.lower[1]), self.skew)
        return linalg.cayley(lower - lower.mT)

    def forward(self) -> Tensor:
        """The core (r, r)."""
        rotation = self.rotation()
        if self.alpha is not None and self.beta is not None:
            rotation = self.beta[:, None] * rotation * self.alpha
        return self.initial @ rotation


class CoreLinear(nn.Module):
    """y = left @ core() @ right @ x + bias with frozen bases, a trained core and thin trained updates of the bases.

    The updates are `left + left_a @ left_b` and `right + right_a @ right_b` of rank `updates`; they start at zero, fold
    away and cost nothing when deployed. `updates = 0` trains the core alone, as JACTUS and CERSA are published.
    """

    left: Tensor
    right: Tensor

    def __init__(self, left: Tensor, core: nn.Module, right: Tensor, bias: Tensor | None, updates: int = 0) -> None:
        super().__init__()
        out_features, rank = left.shape
        in_features = right.shape[1]
        self.out_features, self.in_features, self.rank, self.updates = out_features, in_features, rank, updates
        self.register_buffer("left", left.float().contiguous())
        self.register_buffer("right", right.float().contiguous())
        self.core = core
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        if updates:
            self.left_a = nn.Parameter(torch.zeros(out_features, updates))
            self.left_b = nn.Parameter(_spread(updates, rank))
            self.right_a = nn.Parameter(torch.zeros(rank, updates))
            self.right_b = nn.Parameter(_spread(updates, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        z = nn.functional.linear(x, self.right)  # (..., r)
        if self.updates:
            z = z + nn.functional.linear(nn.functional.linear(x, self.right_b), self.right_a)
        z = nn.functional.linear(z, self.core())  # (..., r)
        y = nn.functional.linear(z, self.left, self.bias)  # (..., m)
        if self.updates:
            y = y + nn.functional.linear(nn.functional.linear(z, self.left_b), self.left_a)
        return y

    def folded(self, layout: str) -> nn.Module:
        """The deployed layer of a layout: the same function, in float64 until the last rounding."""
        layer = LAYOUTS[layout](self.in_features, self.rank, self.out_features, bias=self.bias is not None)
        return layer.fill_(*self.factors(), self.bias).to(self.left.device)

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor]:
        """Balanced down (r, in_features) and up (out_features, r) of the trained weight, float64."""
        left, right = self.left.double(), self.right.double()
        if self.updates:
            left = left + self.left_a.double() @ self.left_b.double()
            right = right + self.right_a.double() @ self.right_b.double()
        return linalg.balance(left, self.core().double(), right)

    def extra_repr(self) -> str:
        """Shape and ranks."""
        return f"{self.in_features} -> {self.rank} -> {self.out_features}, updates={self.updates}"


class KeptLinear(nn.Module):
    """y = (weight + a @ b) @ x + bias: a target that stays dense, frozen but for a thin trained update.

    The layers that a plan keeps dense are those that the task needs most; frozen whole they would be the only targets
    that cannot adapt.
    """

    weight: Tensor

    def __init__(self, dense: nn.Linear, updates: int) -> None:
        super().__init__()
        self.register_buffer("weight", dense.weight.detach().clone())
        self.bias = None if dense.bias is None else nn.Parameter(dense.bias.detach().clone(), requires_grad=False)
        self.a = nn.Parameter(torch.zeros(dense.out_features, updates))
        self.b = nn.Parameter(_spread(updates, dense.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        update = nn.functional.linear(nn.functional.linear(x, self.b), self.a)  # (..., m)
        return nn.functional.linear(x, self.weight, self.bias) + update

    @torch.no_grad()
    def folded(self, layout: str) -> nn.Module:
        """A plain dense layer, whatever the layout of the others."""
        rows, columns = self.weight.shape
        layer = nn.Linear(columns, rows, bias=self.bias is not None, device=self.weight.device)
        layer.weight.copy_(self.weight.double() + self.a.double() @ self.b.double())
        if self.bias is not None:
            layer.bias.copy_(self.bias)
        return layer


def _spread(rows: int, columns: int) -> Tensor:
    """LoRA's start for its inner factor (rows, columns): uniform within 1 / sqrt(columns)."""
    return (2 * torch.rand(rows, columns) - 1) / columns**0.5


class FactorizedLinear(nn.Module):
    """up(down(x)): two plain nn.Linear, r (m + n) weights."""

    def __init__(self, in_features: int, rank: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        y: Tensor = self.up(self.down(x))
        return y

    @torch.no_grad()
    def fill_(self, down: Tensor, up: Tensor, bias: Tensor | None) -> FactorizedLinear:
        """Take over down (r, in_features) and up (out_features, r)."""
        self.down.weight.copy_(down)
        self.up.weight.copy_(up)
        if bias is not None:
            self.up.bias.copy_(bias)
        return self


class PivotedLinear(nn.Module):
    """r rows of the weight as they are, the others as combinations of them: r (m + n) - r^2 weights, no loss.

    `kept` computes the pivot rows' outputs, `mixed` the others from those; `order` puts them back in place.
    """

    order: Tensor

    def __init__(self, in_features: int, rank: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.kept = nn.Linear(in_features, rank, bias=False)
        self.mixed = nn.Linear(rank, out_features - rank, bias=False)
        self.register_buffer("order", torch.arange(out_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        kept = self.kept(x)  # (..., r)
        y = torch.cat([kept, self.mixed(kept)], dim=-1).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def fill_(self, down: Tensor, up: Tensor, bias: Tensor | None) -> PivotedLinear:
        """Take over down (r, in_features) and up (out_features, r) in the pivoted gauge."""
        pivots, kept, coefficients = linalg.pivot(up, down)
        self.kept.weight.copy_(kept)
        self.mixed.weight.copy_(coefficients)
        self.order.copy_(pivots.argsort())
        if bias is not None and self.bias is not None:
            self.bias.copy_(bias)
        return self


LAYOUTS: dict[str, type[FactorizedLinear] | type[PivotedLinear]] = {
    "two-factor": FactorizedLinear,
    "pivoted": PivotedLinear,
}
