"""The products of trained layers, holding little for the backward pass; for rows (..., n), not for patches.

Autograd holds the input of every matrix that is trained: x (n numbers a row), what the core reads and what it gives
(r each), and what each thin update has between its two halves. Here the thin updates are added to the matrices first,
and r numbers a row are held, with x or what it can be remade of (`compressor.remaking`). The other gradients are
products of matrices with a thin side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from compressor.remaking import held


def applies(x: Tensor) -> bool:
    """Whether gradients are wanted, in one precision, by autograd itself."""
    mixed = torch.is_autocast_enabled(x.device.type)
    transformed = torch._C._are_functorch_transforms_active()  # by torch.func, which takes autograd's place
    return torch.is_grad_enabled() and not (mixed or transformed or torch.compiler.is_compiling())


def updated(matrix: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
    """matrix + a @ b, (m, n)."""
    return matrix if a is None or b is None else torch.addmm(matrix, a, b)


class UpdatedProduct(torch.autograd.Function):
    """x (..., n) -> x @ (weight + a @ b).T + bias, (..., m); weight and bias are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        parts = held(x)
        ctx.remake = parts.remake
        ctx.save_for_backward(weight, a, b, *parts.tensors)
        return _whole(x, updated(weight, a, b), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, a, b, *parts = ctx.saved_tensors
        x, g = _rows(ctx.remake(*parts)), _rows(gradient)
        into_x = gradient @ updated(weight, a, b) if ctx.needs_input_grad[0] else None
        into_bias = g.sum(0) if ctx.needs_input_grad[2] else None
        return into_x, None, into_bias, g.mT @ (x @ b.mT), (g @ a).mT @ x


class CoreProduct(torch.autograd.Function):
    """x (..., n) -> x @ (left' core right').T + bias, (..., m), with left' = left + left_a @ left_b, right' alike.

    left (m, r), core (r, r), right (r, n); left, right and bias are frozen, updates may be None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        left: Tensor,
        core: Tensor,
        right: Tensor,
        bias: Tensor | None,
        left_a: Tensor | None,
        left_b: Tensor | None,
        right_a: Tensor | None,
        right_b: Tensor | None,
    ) -> Tensor:
        z = linear(x, updated(right, right_a, right_b))  # (..., r)
        parts = held(x) if right_b is not None else None
        ctx.remake = parts.remake if parts else None
        ctx.save_for_backward(z, left, core, right, left_a, left_b, right_a, right_b, *(parts.tensors if parts else ()))
        return _whole(linear(z, core), updated(left, left_a, left_b), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, left, core, right, left_a, left_b, right_a, right_b, *parts = ctx.saved_tensors
        z, g = _rows(z), _rows(gradient)
        given = g @ updated(left, left_a, left_b)  # (N, r), of what the core gives
        read = given @ core  # (N, r), of what it reads
        into_x = None
        if ctx.needs_input_grad[0]:
            into_x = (read @ updated(right, right_a, right_b)).reshape(*gradient.shape[:-1], right.shape[1])
        into_core = given.mT @ z if ctx.needs_input_grad[2] else None
        into_bias = g.sum(0) if ctx.needs_input_grad[4] else None
        if right_b is None:
            return into_x, None, into_core, None, into_bias, None, None, None, None
        x = _rows(ctx.remake(*parts))
        into_left = g.mT @ (z @ (left_b @ core).mT), ((g @ left_a).mT @ z) @ core.mT
        into_right = read.mT @ (x @ right_b.mT), (read @ right_a).mT @ x
        return into_x, None, into_core, None, into_bias, *into_left, *into_right


core_product: Callable[..., Tensor] = CoreProduct.apply
updated_product: Callable[..., Tensor] = UpdatedProduct.apply


def _whole(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., n) -> x @ weight.T + bias, (..., m), in a memory of its own: a view could not be changed in place."""
    found = x.new_empty(*x.shape[:-1], len(weight))
    rows, out = _rows(x), _rows(found)
    if bias is None:
        torch.mm(rows, weight.mT, out=out)
    else:
        torch.addmm(bias, rows, weight.mT, out=out)
    return found


def _rows(x: Tensor) -> Tensor:
    """(..., n) -> (N, n)."""
    return x.flatten(0, -2) if x.ndim != 1 else x[None]
