"""Trained layers hold little for the backward pass: their gradients are autograd's, and what they hold is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from compressor import lean
from compressor.cores import FreeCore
from compressor.layers import CoreLinear, KeptLinear

Layer = CoreLinear | KeptLinear
Trained = TypeVar("Trained", CoreLinear, KeptLinear)
N, M, RANK = 7, 5, 3  # in, out


def core_layer(updates: int = 2, *, bias: bool = True, free: int = RANK) -> CoreLinear:
    core = FreeCore(torch.randn(RANK, RANK), free)
    layer = CoreLinear(torch.randn(M, RANK), core, torch.randn(RANK, N), torch.randn(M) if bias else None, updates)
    return moved(layer)


def kept_layer(updates: int = 2, *, bias: bool = True) -> KeptLinear:
    return moved(KeptLinear(nn.Linear(N, M, bias=bias), updates))


def moved(layer: Trained) -> Trained:
    """In float64, what is trained anywhere but where it starts."""
    layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return layer


def gradients(layer: Layer, x: Tensor, into: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[Tensor | None]]:
    """What a layer gives of `into(x)`, and the gradients of a random sum: x's, then those of what is trained."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(into(x))
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return y.detach(), [x.grad, *(parameter.grad for parameter in layer.parameters() if parameter.requires_grad)]


def both(
    layer: Layer, x: Tensor, into: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Tensor, Tensor]]:
    """Output and gradients, as they are and as autograd makes them of the plain forward."""
    y, found = gradients(layer, x, into)
    found = [None if one is None else one.clone() for one in found]
    with monkeypatch.context() as patch:
        patch.setattr(lean, "applies", lambda _x: False)
        plain, wanted = gradients(layer, x, into)
    yield y, plain
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert other is not None
        yield one, other


def same(x: Tensor) -> Tensor:
    return x


LAYERS = [
    pytest.param(core_layer, id="core and updates"),
    pytest.param(lambda: core_layer(0), id="core alone"),
    pytest.param(lambda: core_layer(free=0), id="updates alone"),
    pytest.param(lambda: core_layer(free=1, bias=False), id="part of the core"),
    pytest.param(kept_layer, id="kept"),
    pytest.param(lambda: kept_layer(bias=False), id="kept without a bias"),
]


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("shape", [(N,), (4, N), (2, 4, N)])
def test_outputs_and_gradients_are_those_of_the_plain_forward(
    make: Callable[[], Layer], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for one, other in both(make(), torch.randn(shape, dtype=torch.float64), same, monkeypatch):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_gradients_are_the_differences_of_the_outputs() -> None:
    shapes = [(4, N), (M, RANK), (RANK, RANK), (RANK, N), (M,), (M, 2), (2, RANK), (RANK, 2), (2, N)]
    frozen = {1, 3, 4}
    parts = [torch.randn(s, dtype=torch.float64, requires_grad=i not in frozen) for i, s in enumerate(shapes)]
    assert torch.autograd.gradcheck(lean.core_product, parts)
    shapes = [(4, N), (M, N), (M,), (M, 2), (2, N)]
    parts = [torch.randn(s, dtype=torch.float64, requires_grad=i not in {1, 2}) for i, s in enumerate(shapes)]
    assert torch.autograd.gradcheck(lean.updated_product, parts)


@pytest.mark.parametrize("make", [core_layer, kept_layer])
def test_a_bias_that_is_made_trainable_learns(make: Callable[[], Layer], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make()
    layer.get_parameter("bias").requires_grad_(True)
    for one, other in both(layer, torch.randn(3, 4, N, dtype=torch.float64), same, monkeypatch):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [core_layer, kept_layer])
@pytest.mark.parametrize("shape", [(4, N), (2, 3, N)])
def test_what_a_layer_gives_may_be_changed_in_place(make: Callable[[], Layer], shape: tuple[int, ...]) -> None:
    layer, x = make(), torch.randn(shape, dtype=torch.float64)
    found = []
    for relu in (functional.relu_, functional.relu):
        layer.zero_grad()
        relu(layer(x)).square().sum().backward()
        found.append([parameter.grad for parameter in layer.parameters() if parameter.requires_grad])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("make", LAYERS)
def test_no_rows_are_no_fault(make: Callable[[], Layer], monkeypatch: pytest.MonkeyPatch) -> None:
    for one, other in both(make(), torch.randn(0, N, dtype=torch.float64), same, monkeypatch):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("make", [core_layer, kept_layer])
def test_inputs_without_a_gradient_get_none(make: Callable[[], Layer]) -> None:
    layer, x = make(), torch.randn(4, N, dtype=torch.float64)
    layer(x).sum().backward()
    assert x.grad is None
    assert all(parameter.grad is not None for parameter in layer.parameters() if parameter.requires_grad)


# ---- what is held ----


class Frozen(nn.Module):
    """A norm that is not trained, as the models around the trained layers have it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm.double().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y


class RootMeanSquare(nn.Module):
    """As the Llama family of transformers writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(N))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def layer_norm() -> nn.Module:
    norm = nn.LayerNorm(N)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


STEPS = [
    pytest.param(lambda: functional.gelu, id="gelu"),
    pytest.param(lambda: nn.GELU("tanh"), id="gelu by tanh"),
    pytest.param(lambda: functional.silu, id="silu"),
    pytest.param(lambda: lambda x: functional.silu(x) * (2 * x).sin(), id="gate"),
    pytest.param(lambda: Frozen(layer_norm()), id="layer norm"),
    pytest.param(lambda: Frozen(RootMeanSquare()), id="root mean square norm"),
]


@pytest.mark.parametrize("make", [core_layer, kept_layer])
@pytest.mark.parametrize("step", STEPS)
def test_what_a_step_gave_is_made_again_and_not_held(
    make: Callable[[], Layer],
    step: Callable[[], Callable[[Tensor], Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, into, x = make(), step(), torch.randn(2, 4, N, dtype=torch.float64)
    for one, other in both(layer, x, into, monkeypatch):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    made = into(x.requires_grad_())
    assert made.data_ptr() not in {one.data_ptr() for one in held_by(layer(made))}
    changed = made + 1.0  # no step that is known
    assert changed.data_ptr() in {one.data_ptr() for one in held_by(layer(changed))}


def held_by(y: Tensor) -> tuple[Tensor, ...]:
    saved: tuple[Tensor, ...] = y.grad_fn.saved_tensors  # type: ignore[union-attr]
    return tuple(one for one in saved if one is not None)


def test_a_core_layer_holds_its_rank_beside_its_input() -> None:
    layer, x = core_layer(), torch.randn(11, N, dtype=torch.float64, requires_grad=True)
    rows = [one for one in held_by(layer(x)) if len(one) == 11]
    assert sorted(one.shape[1] for one in rows) == [RANK, N]
    assert [one.shape[1] for one in held_by(core_layer(0)(x)) if len(one) == 11] == [RANK]


def test_an_activation_that_is_a_factor_is_not_held_either() -> None:
    layer, x = core_layer(), torch.randn(4, N, dtype=torch.float64, requires_grad=True)
    factor = functional.silu(x)
    gated: Any = factor * torch.sin(x)
    assert gated.grad_fn._saved_self.data_ptr() == factor.data_ptr()
    (layer(gated) + layer(gated)).sum().backward(retain_graph=True)  # the second finds it released
    found = gated.grad_fn._saved_self
    assert found.data_ptr() != factor.data_ptr()
    assert torch.equal(found, factor)


@pytest.mark.parametrize("make", [core_layer, kept_layer])
def test_gradient_checkpointing_still_works(make: Callable[[], Layer]) -> None:
    layer, x = make(), torch.randn(4, N, dtype=torch.float64, requires_grad=True)
    gated = nn.Sequential(nn.Linear(N, N).double(), nn.SiLU(), layer)
    learned = [x, *(parameter for parameter in gated.parameters() if parameter.requires_grad)]
    wanted = torch.autograd.grad(gated(x).square().sum(), learned)
    found = torch.autograd.grad(checkpoint(gated, x, use_reentrant=False).square().sum(), learned)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_second_backward_pass_finds_what_the_first_did() -> None:
    layer, x = core_layer(), torch.randn(4, N, dtype=torch.float64, requires_grad=True)
    loss = layer(functional.gelu(x)).square().sum()
    first = torch.autograd.grad(loss, [x], retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(loss, [x])[0])


def test_a_mixed_precision_context_takes_the_plain_forward() -> None:
    layer, x = core_layer().float(), torch.randn(4, N, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    layer(x).sum().backward()
    assert x.grad is not None
