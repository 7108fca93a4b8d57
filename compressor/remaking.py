"""What a tensor was made of, where the graph holds that anyway and the tensor is a few elementwise steps away from it.

A layer after an activation function, a gate or a normalization needs its input again in the backward pass. Autograd
holds what that step read, for the step's own gradient, so the layer need not hold what the step gave.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Held(NamedTuple):
    """What is held in a tensor's place."""

    tensors: tuple[Tensor, ...]
    remake: Callable[..., Tensor]  # (*tensors) -> the tensor


def held(x: Tensor) -> Held:
    """What to hold of `x (...)`: what it was made of, or itself where no way back to it is known.

    Where hooks pack what is saved (gradient checkpointing, offloading), it is itself: to look at a saved tensor would
    unpack it.
    """
    step: Any = x.grad_fn
    packed = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    found = None if step is None or packed else _way(step)
    return found or Held((x,), _as_it_is)


def _way(step: Any) -> Held | None:
    known = WAYS.get(step.name())
    return known(step) if known else None


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _gelu(step: Any) -> Held:
    return Held((step._saved_self,), partial(functional.gelu, approximate=step._saved_approximate))


def _silu(step: Any) -> Held:
    return Held((step._saved_self,), functional.silu)


def _product(step: Any) -> Held | None:
    """Of two factors, one of which may be an activation that need not be held either (see `_release`).

    Autograd holds each factor where the other needs a gradient; one that it does not hold is remade itself.
    """
    first, second = _factor(step, 0), _factor(step, 1)
    if first is None or second is None:
        return None
    split = len(first.tensors)

    def remake(*tensors: Tensor) -> Tensor:
        return first.remake(*tensors[:split]) * second.remake(*tensors[split:])

    return Held(first.tensors + second.tensors, remake)


def _factor(step: Any, place: int) -> Held | None:
    earlier, _ = step.next_functions[place]
    found = None if earlier is None else _way(earlier)
    factor = getattr(step, f"_saved_{SIDES[place]}")
    if factor is None:
        return found
    if found is None or earlier.name() not in ACTIVATIONS:
        return Held((factor,), _as_it_is)
    _release(step, SIDES[place], found)
    return found


def _release(step: Any, side: str, found: Held) -> None:
    """Let a product hold, in the place of a factor, how to make it again."""
    if side not in step.metadata:
        step.metadata[side] = RELEASED
        tensors = tuple(one.detach() for one in found.tensors)
        getattr(step, f"_raw_saved_{side}").register_hooks(lambda _: tensors, lambda held: found.remake(*held))


def _layer_norm(step: Any) -> Held | None:
    parts = step._saved_input, step._saved_result1, step._saved_result2, step._saved_weight, step._saved_bias
    return None if any(part is None for part in parts) else Held(parts, _normalized)


def _normalized(x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The kernel's sum: its epsilon is not held, but `scale`, 1 / sqrt(variance + epsilon), is; both in float32."""
    return torch.addcmul(bias, (x - mean).mul_(scale), weight).to(x.dtype)


SIDES = ("self", "other")  # as torch calls the factors
RELEASED = "made again"
ACTIVATIONS = ("GeluBackward0", "SiluBackward0")
WAYS: dict[str, Callable[[Any], Held | None]] = {
    "GeluBackward0": _gelu,
    "SiluBackward0": _silu,
    "MulBackward0": _product,
    "NativeLayerNormBackward0": _layer_norm,
}
