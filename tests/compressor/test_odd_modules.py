"""Modules that people really have: called by keyword, in float64, partly frozen, with whole numbers, odd names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import compressor as cz
from compressor.errors import InputError, ModelError
from compressor.layers import CoreLinear, KeptLinear
from compressor.methods.base import Method
from compressor.methods.jactus import Jactus
from compressor.methods.psoft import Psoft
from compressor.methods.spectral import Spectral

SIZE, NAMES = 12, ["blocks.0.fc", "blocks.1.fc"]
Batch = dict[str, Tensor]


class Block(nn.Module):
    """A residual one; `call` is how it calls its layer."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.call = nn.Linear(SIZE, SIZE), call

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.call(self.fc, x))


def by_place(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)


def by_name(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(input=x)


class Tower(nn.Module):
    """Two blocks and a head, with positions that are whole numbers."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor] = by_place) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.arange(SIZE), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(SIZE))
        self.blocks = nn.ModuleList(Block(call) for _ in range(2))
        self.head = nn.Linear(SIZE, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale + self.steps / SIZE
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def tower(call: Callable[[nn.Module, Tensor], Tensor] = by_place, dtype: torch.dtype = torch.float32) -> Tower:
    torch.manual_seed(0)
    return Tower(call).to(dtype)


def batches(dtype: torch.dtype = torch.float32) -> list[Batch]:
    random = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(16, SIZE, generator=random).to(dtype), "labels": torch.arange(16) % 3} for _ in range(3)]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["labels"])


def trained(model: nn.Module, method: Method | None = None, **options: Any) -> nn.Module:
    """Factorized, and one step taken."""
    method = method or Jactus(updates=2)
    moments = cz.calibrate(model, batches(next(model.parameters()).dtype), method.needs(), loss=loss)
    model = cz.factorize_(model, method, moments, cz.plan(model, method, moments, keep=0.7, multiple_of=1), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return model


# ---- how layers are called ----


@pytest.mark.parametrize("layout", ["two-factor", "pivoted"])
def test_layers_that_are_called_by_keyword_are_as_those_that_are_not(layout: Any) -> None:
    found, expected = (cz.fold_(trained(tower(call)), layout)(batches()[0]["x"]) for call in (by_name, by_place))
    torch.testing.assert_close(found, expected)


def test_a_batch_may_begin_with_a_single_number() -> None:
    with_scale = [{"temperature": torch.tensor(2.0), **batch} for batch in batches()]
    assert cz.calibrate(tower(), with_scale, Jactus().needs(), loss=loss).samples == 48


# ---- types ----


@pytest.mark.parametrize("method", [Jactus(updates=2), Psoft()], ids=str)
def test_a_model_in_float64_stays_exact(method: Method) -> None:
    model, x = trained(tower(dtype=torch.float64), method), batches(torch.float64)[0]["x"]
    assert {one.dtype for one in model.state_dict().values() if one.is_floating_point()} == {torch.float64}
    before = model(x)
    torch.testing.assert_close(cz.fold_(model)(x), before, rtol=0, atol=1e-12)


def test_what_stays_dense_in_float64_is_not_rounded() -> None:
    model, method = tower(dtype=torch.float64), Spectral("plain", updates=2)
    weight = model.blocks[0].fc.weight.detach().clone()
    whole = cz.plan(model, method, {}, keep=1.0)
    assert whole.kept == tuple(NAMES)
    folded = cz.fold_(cz.factorize_(model, method, {}, whole))
    assert torch.equal(folded.get_parameter("blocks.0.fc.weight"), weight)


# ---- what was frozen ----


def frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_parameters_that_are_whole_numbers_stay_as_they_are() -> None:
    assert frozen(cz.fold_(trained(tower()))) == {"steps"}


def test_a_frozen_weight_is_folded_to_frozen_factors() -> None:
    model = tower()
    model.blocks[0].fc.weight.requires_grad_(False)
    model.blocks[1].fc.bias.requires_grad_(False)
    folded = cz.fold_(trained(model))
    assert isinstance(folded.get_submodule("blocks.0.fc.down"), nn.Linear)
    assert frozen(folded) == {"steps", "blocks.0.fc.down.weight", "blocks.0.fc.up.weight", "blocks.1.fc.up.bias"}


def test_a_wrapper_and_a_part_are_folded_as_the_whole_is() -> None:
    model = nn.Sequential(tower())
    model[0].scale.requires_grad_(False)
    trained(model[0])
    cz.fold_(model[0].blocks)
    assert isinstance(model.get_submodule("0.blocks.0.fc.down"), nn.Linear)
    assert frozen(model[0].blocks) == set()
    assert frozen(cz.fold_(model)) == {"0.steps", "0.scale"}


# ---- gradients of gradients, and torch.func ----


def penalty(model: nn.Module, x: Tensor) -> Tensor:
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return slope.square().sum()


def test_layers_that_are_not_lean_are_differentiated_twice() -> None:
    model, x = trained(tower(), lean=False), batches()[0]["x"].double()
    assert {one.lean for one in model.modules() if isinstance(one, CoreLinear | KeptLinear)} == {False}
    assert torch.autograd.gradcheck(lambda y: penalty(model.double(), y), x.clone().requires_grad_())


def test_torch_func_sees_the_layers_as_it_sees_dense_ones() -> None:
    model, batch = trained(tower()), batches()[0]
    values = {name: one.detach() for name, one in model.named_parameters() if one.requires_grad}

    def of_one(given: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, given, (x,)), label)

    found = vmap(grad(of_one), in_dims=(None, 0, 0))(values, batch["x"], batch["labels"])
    loss(model, batch).backward()
    for name, one in found.items():
        torch.testing.assert_close(one.mean(0), model.get_parameter(name).grad)


# ---- which layers ----


class OwnLayer(nn.TransformerEncoderLayer):
    """One of a user's own, whose forward is torch's."""


def test_subclasses_of_torchs_encoder_layer_are_compressed_and_run() -> None:
    model = nn.TransformerEncoder(OwnLayer(8, 2, 16, batch_first=True), 2).eval()
    names = [target.name for target in cz.find_targets(model)]
    assert names == [f"layers.{block}.linear{number}" for block in range(2) for number in (1, 2)]
    method, x = Spectral("plain", updates=0), torch.randn(2, 5, 8)
    plan = cz.plan(model, method, {}, keep=0.5, multiple_of=1)
    folded = cz.fold_(cz.factorize_(model, method, {}, plan)).eval()
    with torch.no_grad():
        fast = folded(x)
    torch.testing.assert_close(fast, folded(x))


class Table(nn.Module):
    """A weight that is a parameter of the model's own too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(SIZE, SIZE))
        self.blocks = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(2))
        self.blocks[0].weight = self.table


def test_a_weight_that_is_another_parameter_too_is_tied() -> None:
    reasons = {row.name: row.reason for row in cz.consider(Table())}
    assert reasons["blocks.0"] == "its weight is tied to a parameter of the model itself"
    assert reasons["blocks.1"] == "in a repeated block"


def test_names_with_brackets_are_names() -> None:
    layers = nn.ModuleDict({"[a]": nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(2))})
    assert [target.name for target in cz.find_targets(layers, ["[a].0"])] == ["[a].0"]
    assert cz.plan(layers, Spectral("plain"), {}, targets=["[a].0"], multiple_of=1).ranks.keys() == {"[a].0"}


def test_one_name_or_glob_needs_no_list() -> None:
    assert [target.name for target in cz.find_targets(tower(), "blocks.*.fc", "blocks.0.*")] == ["blocks.1.fc"]
    assert set(cz.calibrate(tower(), batches(), Jactus().needs(), exclude="blocks.0.*", loss=loss)) == {"blocks.1.fc"}


def test_weights_that_are_not_in_memory_are_named() -> None:
    model = tower().to("meta")
    with pytest.raises(ModelError, match=r"2 layers \(blocks.0.fc, blocks.1.fc\) of Tower have no weights in memory"):
        cz.calibrate(model, batches(), Jactus().needs(), loss=loss)
    with pytest.raises(ModelError, match="without a device_map that offloads"):
        cz.plan(model, Spectral("plain"), {})


# ---- what cannot be asked for ----


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"strategy": "gains"}, r"strategy 'gains' is none of gain, energy, uniform. Did you mean 'gain'\?"),
        ({"layout": "pivotted"}, r"layout 'pivotted' is none of two-factor, pivoted. Did you mean 'pivoted'\?"),
        ({"keep": 50}, r"the share that is kept is 50; it is above 0, and at most 1"),
        ({"keep": float("nan")}, "the share that is kept is nan"),
        ({"multiple_of": 0}, "multiple_of is 0; it is a whole number, 1 or more"),
        ({"keep": 0, "strategy": "measured"}, r"kept is 0;.*; strategy 'measured' is none"),
    ],
)
def test_what_no_plan_can_be_asked_for_is_said_at_once(asked: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        cz.plan(tower(), Spectral("plain"), {}, **asked)


def test_methods_have_their_names_alone() -> None:
    assert cz.methods.Jactus is Jactus
    with pytest.raises(AttributeError, match="no method 'JACTUS'"):
        _ = cz.methods.JACTUS
