"""A target on its way: CoreLinear (trained) -> FactorizedLinear or PivotedLinear (deployed).

A target that the plan keeps dense goes KeptLinear (trained) -> a plain dense layer (deployed). All of them are linear
maps of rows or, with the form of a convolution, of patches; shapes below are those of rows, `compressor.forms` has the
others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compressor import lean, linalg
from compressor.devices import wide
from compressor.forms import ROWS, Dense, Form, Rows, form_of, matrix


class Asked(NamedTuple):
    """What a model may ask of the weight of a factorized layer, which is nowhere as one tensor."""

    dtype: torch.dtype
    device: torch.device


class Factors(nn.Module):
    """What every layer in the place of a dense one says of itself, as that one did."""

    def __init__(self, form: Form, in_features: int, out_features: int) -> None:
        super().__init__()
        self.form, self.in_features, self.out_features = form, in_features, out_features
        for name, value in form.attributes(in_features, out_features).items():
            setattr(self, name, value)


class CoreLinear(Factors):
    """y = left @ core() @ right @ x + bias with frozen bases, a trained core and thin trained updates of the bases.

    The updates are `left + left_a @ left_b` and `right + right_a @ right_b` of rank `updates`; they start at zero, fold
    away and cost nothing when deployed. `updates = 0` trains the core alone, as JACTUS and CERSA are published. Where
    it is `lean` (`compressor.lean`), gradients cannot be differentiated once more.
    """

    left: Tensor
    right: Tensor
    lean = True

    def __init__(
        self,
        left: Tensor,
        core: nn.Module,
        right: Tensor,
        bias: Tensor | None,
        updates: int = 0,
        form: Form = ROWS,
        layout: str = "two-factor",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        left, right = left.to(dtype), right.to(dtype)
        out_features, rank = left.shape
        in_features = right.shape[1]
        super().__init__(form, in_features, out_features)
        self.rank, self.updates, self.layout = rank, updates, layout
        self.register_buffer("left", left.contiguous())
        self.register_buffer("right", right.contiguous())
        self.core = core.to(dtype)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        if updates:
            self.left_a = nn.Parameter(left.new_zeros(out_features, updates))
            self.left_b = nn.Parameter(_spread(updates, rank).to(left))
            self.right_a = nn.Parameter(left.new_zeros(rank, updates))
            self.right_b = nn.Parameter(_spread(updates, in_features).to(left))

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if self.lean and isinstance(self.form, Rows) and lean.applies(input):
            return self._lean(input)
        apply, mix = self.form.apply, self.form.mix
        z = apply(input, self.right)  # (..., r)
        if self.updates:
            z = z + mix(apply(input, self.right_b), self.right_a)
        z = mix(z, self.core())  # (..., r)
        y = mix(z, self.left, self.bias)  # (..., m)
        if self.updates:
            y = y + mix(mix(z, self.left_b), self.left_a)
        return y

    def _lean(self, x: Tensor) -> Tensor:
        updates = (self.left_a, self.left_b, self.right_a, self.right_b) if self.updates else (None,) * 4
        return lean.core_product(x, self.left, self.core(), self.right, self.bias, *updates)

    @torch.no_grad()
    def restart_(self, left: Tensor, core: Tensor, right: Tensor) -> None:
        """Other bases (m, r) and (r, n) and another initial core (r, r); what is trained stays what it was."""
        trained: Any = self.core
        self.left.copy_(left)
        self.right.copy_(right)
        trained.restart_(core)

    @property
    def weight(self) -> Asked:
        """Its type and device."""
        return Asked(self.left.dtype, self.left.device)

    def folded(self, layout: str | None = None) -> nn.Module:
        """The deployed layer of a layout, by default its own: the same function, in float64 until the last rounding."""
        sizes = self.in_features, self.rank, self.out_features
        layer = LAYOUTS[layout or self.layout](*sizes, bias=self.bias is not None, form=self.form)
        return layer.to(self.left.device, self.left.dtype).fill_(*self.factors(), self.bias)

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor]:
        """Balanced down (r, in_features) and up (out_features, r) of the trained weight, float64."""
        left, right = wide(self.left), wide(self.right)
        if self.updates:
            left = left + wide(self.left_a) @ wide(self.left_b)
            right = right + wide(self.right_a) @ wide(self.right_b)
        return linalg.balance(left, wide(self.core()), right)

    def extra_repr(self) -> str:
        """Shape and ranks."""
        return f"{self.in_features} -> {self.rank} -> {self.out_features}, updates={self.updates}"


class KeptLinear(Factors):
    """y = (weight + a @ b) @ x + bias: a target that stays dense, frozen but for a thin trained update.

    The layers that a plan keeps dense are those that the task needs most; frozen whole they would be the only targets
    that cannot adapt.
    """

    weight: Tensor
    lean = True

    def __init__(self, dense: Dense, updates: int) -> None:
        weight = matrix(dense).detach()
        out_features, in_features = weight.shape
        super().__init__(form_of(dense), in_features, out_features)
        self.register_buffer("weight", weight.clone())
        self.bias = None if dense.bias is None else nn.Parameter(dense.bias.detach().clone(), requires_grad=False)
        self.a = nn.Parameter(weight.new_zeros(out_features, updates))
        self.b = nn.Parameter(_spread(updates, in_features).to(weight))

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if self.lean and isinstance(self.form, Rows) and lean.applies(input):
            return lean.updated_product(input, self.weight, self.bias, self.a, self.b)
        update = self.form.mix(self.form.apply(input, self.b), self.a)  # (..., m)
        return self.form.apply(input, self.weight, self.bias) + update

    @torch.no_grad()
    def folded(self, layout: str | None = None) -> nn.Module:
        """A plain dense layer, whatever the layout of the others."""
        layer = self.form.layer(self.in_features, self.out_features, bias=self.bias is not None)
        layer = layer.to(self.weight.device, self.weight.dtype)
        _fill_(layer, wide(self.weight) + wide(self.a) @ wide(self.b), self.bias)
        return layer


def _spread(rows: int, columns: int) -> Tensor:
    """LoRA's start for its inner factor (rows, columns): uniform within 1 / sqrt(columns)."""
    return (2 * torch.rand(rows, columns) - 1) / columns**0.5


def _fill_(layer: Dense, weight: Tensor, bias: Tensor | None = None) -> None:
    """Take over a matrix (m, n), in the layer's own shape, and a bias (m,)."""
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    if bias is not None and layer.bias is not None:
        layer.bias.copy_(bias)


class FactorizedLinear(Factors):
    """up(down(x)): two plain nn.Linear, or a convolution and one of size one after it; r (m + n) weights."""

    def __init__(self, in_features: int, rank: int, out_features: int, *, bias: bool, form: Form = ROWS) -> None:
        super().__init__(form, in_features, out_features)
        self.down = form.layer(in_features, rank, bias=False)
        self.up = form.mixer(rank, out_features, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        y: Tensor = self.up(self.down(input))
        return y

    @property
    def weight(self) -> Asked:
        """Its type and device."""
        return Asked(self.down.weight.dtype, self.down.weight.device)

    @torch.no_grad()
    def fill_(self, down: Tensor, up: Tensor, bias: Tensor | None) -> FactorizedLinear:
        """Take over down (r, in_features) and up (out_features, r)."""
        _fill_(self.down, down)
        _fill_(self.up, up, bias)
        return self


class PivotedLinear(Factors):
    """r rows of the weight as they are, the others as combinations of them: r (m + n) - r^2 weights, no loss.

    `kept` computes the pivot rows' outputs, `mixed` the others from those; `order` puts them back in place.
    """

    order: Tensor

    def __init__(self, in_features: int, rank: int, out_features: int, *, bias: bool, form: Form = ROWS) -> None:
        super().__init__(form, in_features, out_features)
        self.kept = form.layer(in_features, rank, bias=False)
        self.mixed = form.mixer(rank, out_features - rank, bias=False)
        self.register_buffer("order", torch.arange(out_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        kept, axis = self.kept(input), self.form.axis  # (..., r)
        y = torch.cat([kept, self.mixed(kept)], dim=axis).index_select(axis, self.order)
        return y if self.bias is None else self.form.shift(y, self.bias)

    @property
    def weight(self) -> Asked:
        """Its type and device."""
        return Asked(self.kept.weight.dtype, self.kept.weight.device)

    @torch.no_grad()
    def fill_(self, down: Tensor, up: Tensor, bias: Tensor | None) -> PivotedLinear:
        """Take over down (r, in_features) and up (out_features, r) in the pivoted gauge."""
        pivots, kept, coefficients = linalg.pivot(up, down)
        _fill_(self.kept, kept)
        _fill_(self.mixed, coefficients)
        self.order.copy_(pivots.argsort())
        if bias is not None and self.bias is not None:
            self.bias.copy_(bias)
        return self


LAYOUTS: dict[str, type[FactorizedLinear] | type[PivotedLinear]] = {
    "two-factor": FactorizedLinear,
    "pivoted": PivotedLinear,
}
