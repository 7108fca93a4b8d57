"""correct_: every layer against an independent least-squares fit of what it reads in the two finished models."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor import correction, memory, progress, running
from compressor.allocation import break_even
from compressor.calibration import Statistics, calibrate
from compressor.cores import FreeCore, OrthogonalCore
from compressor.correction import RIDGE, correct_
from compressor.errors import DataError, ModelError
from compressor.factorize import factorize_, fold_, plan
from compressor.forms import form_of, matrix
from compressor.layers import CoreLinear
from compressor.methods.base import Moment, Moments
from compressor.methods.cersa import Cersa
from compressor.methods.jactus import Jactus
from compressor.methods.psoft import Psoft
from compressor.methods.spectral import Spectral
from compressor.metrics import SecondMoment
from compressor.planning import Plan
from compressor.targets import block_of, dense_layer

Batch = dict[str, Tensor]


class Answer:
    """What a transformers model gives back."""

    def __init__(self, logits: Tensor, labels: Tensor | None) -> None:
        self.logits = logits
        self.loss = None if labels is None else nn.functional.cross_entropy(logits, labels)


class Block(nn.Module):
    """Two layers that read one input, and one behind them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other, self.down = nn.Linear(width, 24), nn.Linear(width, 24, bias=False), nn.Linear(24, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.one(x)) * self.other(x))


class Chain(nn.Module):
    """Blocks in a row; `joined` adds what the first one gave before the last one, `again` runs through them twice."""

    def __init__(self, *, joined: bool = False, again: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.head = nn.Linear(10, 20), nn.Linear(20, 3)
        self.blocks = nn.ModuleList([Block(20) for _ in range(4)])
        self.joined, self.again = joined, again

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Answer:
        x, first = self.enter(x), None
        for _ in range(1 + self.again):
            for number, block in enumerate(self.blocks):
                x = block(x + first) if self.joined and number == 3 and first is not None else block(x)
                first = x if first is None else first
        return Answer(self.head(x), labels)


class Merged(nn.Module):
    """Blocks of two widths in one list, with a layer between them that takes one of the widths only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.merge, self.head = nn.Linear(10, 20), nn.Linear(20, 12), nn.Linear(12, 3)
        self.blocks = nn.ModuleList([Block(20), Block(12), Block(12)])

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Answer:
        x = self.merge(self.blocks[0](self.enter(x)))
        return Answer(self.head(self.blocks[2](self.blocks[1](x))), labels)


class Changed(Chain):
    """What a block gives is changed in place afterwards."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Answer:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
            x *= 0.9
        return Answer(self.head(x), labels)


class Ladder(nn.Module):
    """What each block of one list gave is added, in reverse order, inside those of another one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.head = nn.Linear(10, 20), nn.Linear(20, 3)
        self.down, self.up = (nn.ModuleList([Rung(20) for _ in range(3)]) for _ in range(2))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Answer:
        x, kept = self.enter(x), list[Tensor]()
        for block in self.down:
            x = block(x)
            kept.append(x)
        for block in self.up:
            x = block(x, kept.pop())
        return Answer(self.head(x), labels)


class Rung(Block):
    """What is added is not read by the first layers."""

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        y = torch.tanh(self.one(x)) * self.other(x)
        return x + self.down(y) if added is None else x + self.down(y + added.repeat(1, 2)[:, :24])


class Shared(Chain):
    """The last block reads what the second one has left in a dictionary, as layers that share keys and values do."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Answer:
        x, left = self.enter(x), dict[str, Tensor]()
        for number, block in enumerate(self.blocks):
            x = block(x, left, number)
        return Answer(self.head(x), labels)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Leaving(20) for _ in range(4)])


class Leaving(Block):
    """The block of `Shared`."""

    def forward(self, x: Tensor, left: dict[str, Tensor] | None = None, number: int = 0) -> Tensor:
        y = torch.tanh(self.one(x)) * self.other(x)
        if left is not None and number == 1:
            left["y"] = y
        return x + self.down(y + left["y"] if left is not None and number == 3 else y)


class Stacked(nn.Module):
    """Blocks that are nothing but layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(10, 40), *(nn.Linear(40, 40) for _ in range(3))])
        self.head = nn.Linear(40, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Answer:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return Answer(self.head(x), labels)


class Convolutions(nn.Module):
    """Residual blocks of one convolution each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(8, 8, 3, padding=1)}) for _ in range(3)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Answer:
        for block in self.blocks:
            x = x + torch.tanh(block["conv"](x))
        return Answer(self.head(x.mean((2, 3))), labels)


def rows(*shape: int, count: int = 4) -> list[Batch]:
    """Batches of random inputs (8, *shape)."""
    source = torch.Generator().manual_seed(1)
    return [
        {
            "x": torch.randn(8, *shape, generator=source),
            "labels": torch.randint(0, 3, (8,), generator=source),
        }
        for _ in range(count)
    ]


def read(model: nn.Module, name: str, batches: list[Batch]) -> Tensor:
    """All rows (N, n) that a layer reads in whole passes, padding left out; float64."""
    found: list[Tensor] = []
    layer: Any = model.get_submodule(name)
    form = layer.form if isinstance(layer, CoreLinear) else form_of(layer)
    with torch.no_grad():
        for batch in batches:
            seen: list[Tensor] = []
            handle = layer.register_forward_pre_hook(lambda _, read, seen=seen: seen.append(read[0].clone()))
            model(**{key: value for key, value in batch.items() if key != "labels"})
            handle.remove()
            mask = batch.get("attention_mask")
            for x in seen:
                x = form.inputs(x)
                found.append(x.flatten(0, -2) if mask is None else x[mask.bool()])
    return torch.cat(found).double()


def fitted(weight: Tensor, x: Tensor, y: Tensor) -> np.ndarray:
    """The weight that gives x @ weight.T from y, damped towards `weight`, by a least-squares solver on the rows."""
    damping = RIDGE * float(y.square().sum(0).mean()) / len(y)
    pull = (len(y) * damping) ** 0.5 * torch.eye(y.shape[1], dtype=torch.float64)
    inputs, outputs = torch.cat([y, pull]), torch.cat([x @ weight.mT, pull @ weight.mT])
    return np.linalg.lstsq(inputs.numpy(), outputs.numpy(), rcond=None)[0].T


def made(dense: nn.Module, batches: list[Batch], method: Any, keep: float, **options: Any) -> tuple[Any, Plan, Any]:
    """An untrained factorized copy, its plan and the moments."""
    targets = options.get("targets", "auto")
    moments = calibrate(dense, batches, frozenset(Moment), targets=targets)
    chosen = plan(dense, method, moments, keep=keep, multiple_of=2, **options)
    return factorize_(copy.deepcopy(dense), method, moments, chosen), chosen, moments


def weight_of(layer: Any) -> Tensor:
    """The matrix (m, n) that a layer applies."""
    if isinstance(layer, CoreLinear):
        return (layer.left @ layer.core() @ layer.right).detach().double()
    return (matrix(layer) if isinstance(layer, nn.Linear | nn.Conv2d) else layer.weight).detach().double()


def require_corrected(dense: Any, model: Any, method: Any, chosen: Plan, moments: Any, batches: list[Batch]) -> None:
    """Every planned layer is the truncation of its own fit, for what it reads in the finished models."""
    for layer in chosen.layers:
        x, y = read(dense, layer.name, batches), read(model, layer.name, batches)
        fit = torch.from_numpy(fitted(matrix(dense_layer(dense, layer.name)).detach().double(), x, y))
        if layer.rank is not None:
            pair = Moments(SecondMoment((y.mT @ y / len(y)).float()), moments[layer.name].gradient)
            limit = break_even(layer.out_features, layer.in_features) - 1
            kept = method.subspace(fit.float(), pair, limit).truncate(layer.rank)
            fit = (kept.left @ kept.core @ kept.right).double()
        found = weight_of(model.get_submodule(layer.name))
        assert torch.allclose(found, fit, atol=2e-3 * float(fit.abs().max())), layer.name


CASES = {
    "chain": (Chain, (10,)),
    "an early block is read late": (lambda: Chain(joined=True), (10,)),
    "another width from the second block on": (Merged, (10,)),
    "changed in place": (Changed, (10,)),
    "convolutions": (Convolutions, (8, 5, 5)),
    "another list reads every block": (Ladder, (10,)),
    "a later block reads what another left": (Shared, (10,)),
    "blocks that are layers": (Stacked, (10,)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_layer_is_fitted_to_what_it_reads_in_the_end(case: str) -> None:
    build, shape = CASES[case]
    dense, batches, method = build().eval(), rows(*shape, count=8), Jactus()
    options: Any = {"targets": ["blocks.*"]} if case == "convolutions" else {}
    model, chosen, moments = made(dense, batches, method, 0.5, **options)
    before = {layer.name: weight_of(model.get_submodule(layer.name)) for layer in chosen.layers}
    correct_(model, dense, method, moments, chosen, batches)
    require_corrected(dense, model, method, chosen, moments, batches)
    changed = [name for name, old in before.items() if not torch.allclose(weight_of(model.get_submodule(name)), old)]
    assert len(changed) >= len(chosen.layers) - 2  # the first ones read the same input in both models


@pytest.mark.parametrize(
    "method", [Jactus(), Jactus(axes="moments"), Spectral(metric="input"), Cersa(alpha=1.0), Psoft()], ids=str
)
def test_bert_with_padding_is_corrected_layer_by_layer(
    tiny_bert: Callable[[], Any], token_batches: Callable[..., list[Batch]], method: Any
) -> None:
    dense, batches = tiny_bert(), token_batches(12)
    model, chosen, moments = made(dense, batches, method, 0.6)
    correct_(model, dense, method, moments, chosen, batches)
    require_corrected(dense, model, method, chosen, moments, batches)


@pytest.mark.parametrize("again", [False, True], ids=["blocks called once", "blocks called twice"])
def test_what_the_model_says_comes_closer_to_the_dense_one(again: bool) -> None:
    dense, batches, method = Chain(again=again).eval(), rows(10, count=16), Spectral(metric="input")
    model, chosen, moments = made(dense, batches, method, 0.4)

    def apart() -> float:
        with torch.no_grad():
            return sum(float((model(one["x"]).logits - dense(one["x"]).logits).square().mean()) for one in batches)

    before = apart()
    correct_(model, dense, method, moments, chosen, batches)
    assert apart() < before


def test_nothing_is_left_behind_and_the_dense_model_is_as_it_was() -> None:
    dense, batches, method = Chain().eval(), rows(10), Jactus()
    model, chosen, moments = made(dense, batches, method, 0.5)
    before = copy.deepcopy(dense.state_dict())
    trained = {name: one.requires_grad for name, one in model.named_parameters()}
    model.train()
    assert correct_(model, dense, method, moments, chosen, batches) is model
    assert model.training
    for one in (model, dense):
        assert not [name for name, module in one.named_modules() if "forward" in vars(module)]
        assert not [name for name, module in one.named_modules() if module._forward_hooks]
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert {name: value.requires_grad for name, value in model.named_parameters()} == trained


def test_blocks_that_follow_one_another_are_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"joined": 0, "plain": 0}
    forward = Block.forward
    for case in runs:
        dense, batches, method = Chain(joined=case == "joined").eval(), rows(10), Jactus()
        model, chosen, moments = made(dense, batches, method, 0.5)

        def counted(self: Block, x: Tensor, case: str = case) -> Tensor:
            runs[case] += 1
            return forward(self, x)

        monkeypatch.setattr(Block, "forward", counted)
        correct_(model, dense, method, moments, chosen, batches)
        monkeypatch.setattr(Block, "forward", forward)
    assert runs["plain"] < 0.75 * runs["joined"]


def test_a_loss_of_ones_own_runs_both_models_on_the_same_random_numbers() -> None:
    def noisy(model: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = model(batch["x"] + 3 * torch.randn(batch["x"].shape), batch["labels"]).loss
        return loss

    dense, batches, method = Chain().eval(), rows(10), Jactus()
    model, chosen, moments = made(dense, batches, method, 0.5)
    noise = []
    for number, batch in enumerate(batches):
        torch.manual_seed(number)
        noise.append({"x": batch["x"] + 3 * torch.randn(batch["x"].shape), "labels": batch["labels"]})
    expected = correct_(copy.deepcopy(model), dense, method, moments, chosen, noise)
    state = torch.get_rng_state()
    correct_(model, dense, method, moments, chosen, batches, loss=noisy)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in expected.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-5), name


def test_experts_that_other_rows_go_to_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    class Routed(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = x + self.down(torch.tanh(self.one(x)))
            chosen = y[:, 0] > y[:, 0].median()
            return y.index_add(0, chosen.nonzero()[:, 0], self.other(y[chosen][:, :20]) @ self.down.weight.mT)

    dense, batches, method = Chain().eval(), rows(10), Jactus()
    dense.blocks = nn.ModuleList([Routed(20) for _ in range(2)]).eval()
    model, chosen, moments = made(dense, batches, method, 0.5)
    name = "blocks.1.other"
    old = weight_of(model.get_submodule(name))
    rowed = running.rows_of

    def fewer(x: Tensor, mask: Tensor | None) -> Tensor:
        found = rowed(x, mask)
        return found[: len(found) - int(len(found) == 4 and next(odd))]

    odd = iter([False, True] * 1000)  # the compressed model sends one row elsewhere
    monkeypatch.setattr(running, "rows_of", fewer)
    correct_(model, dense, method, moments, chosen, batches)
    assert torch.equal(weight_of(model.get_submodule(name)), old)


def test_a_layer_that_some_batches_do_not_reach_is_fitted_to_the_others() -> None:
    class Seldom(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.one(x))
            return x + self.down(y * self.other(x * 1) if len(x) == 8 else y)

    dense, method = Chain().eval(), Jactus()
    dense.blocks[2] = Seldom(20)
    batches = rows(10, count=6) + [{key: one[:5] for key, one in batch.items()} for batch in rows(10, count=2)]
    model, chosen, moments = made(dense, rows(10, count=6), method, 0.5)
    correct_(model, dense, method, moments, chosen, batches)
    require_corrected(dense, model, method, chosen, moments, batches)


def test_blocks_that_some_batches_do_not_reach_are_run_again() -> None:
    """Experts in a list of their own: which of them are called, and on how many rows, each batch decides."""

    class Routed(Chain):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Answer:
            y = self.enter(x)
            for number, block in enumerate(self.blocks):
                if number < 2 or len(x) != 5:
                    y = torch.cat([block(y[: len(x) // 2 if number else 0]), y[len(x) // 2 if number else 0 :]])
            return Answer(self.head(y), labels)

    dense, method = Routed().eval(), Jactus()
    batches = rows(10, count=6) + [{key: one[:5] for key, one in batch.items()} for batch in rows(10, count=2)]
    targets = ["enter", "blocks.[123].*"]
    model, chosen, moments = made(dense, batches, method, 0.5, targets=targets)
    correct_(model, dense, method, moments, chosen, batches)
    require_corrected(dense, model, method, chosen, moments, batches)


def test_torchs_own_encoder_with_padding_is_calibrated_and_corrected() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

        def forward(self, x: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Answer:
            read = self.encoder(x, src_key_padding_mask=~attention_mask.bool())
            return Answer(self.head(read[:, 0]), labels)

    dense, method = Encoder().eval(), Spectral(metric="input")
    batches = [
        one | {"attention_mask": (torch.arange(6) < 3 + torch.arange(8)[:, None] % 4).long()} for one in rows(6, 16)
    ]
    model, chosen, moments = made(dense, batches, method, 0.5, targets=["encoder.*.linear*"])
    correct_(model, dense, method, moments, chosen, batches)
    assert torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        require_corrected(dense, model, method, chosen, moments, batches)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_a_layer_that_reads_nothing_but_zeros_stays() -> None:
    dense, batches, method = Chain().eval(), rows(10), Spectral(metric="input")
    for layer in (dense.blocks[1].one, dense.blocks[1].other):
        nn.init.zeros_(layer.weight)
    nn.init.zeros_(dense.blocks[1].one.bias)
    model, chosen, moments = made(dense, batches, method, 0.5)
    old = weight_of(model.get_submodule("blocks.1.down"))
    correct_(model, dense, method, moments, chosen, batches)
    assert torch.equal(weight_of(model.get_submodule("blocks.1.down")), old)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_a_loss_may_change_its_batch() -> None:
    def taking(model: nn.Module, batch: Batch) -> Tensor:
        batch.pop("labels")
        logits: Tensor = model(**batch).logits
        return logits

    dense, batches, method = Chain().eval(), rows(10), Jactus()
    model, chosen, moments = made(dense, batches, method, 0.5)
    expected = correct_(copy.deepcopy(model), dense, method, moments, chosen, batches)
    correct_(model, dense, method, moments, chosen, batches, loss=taking)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


class Reread(nn.Module):
    """Two layers that read one tensor, which is changed in place between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.one, self.other = nn.Linear(10, 20), nn.Linear(20, 24), nn.Linear(20, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Answer:
        x = self.enter(x)
        y = self.one(x)
        x.mul_(3).add_(5)
        return Answer(self.head(y + self.other(x)), labels)


def test_layers_that_read_one_tensor_before_and_after_a_change_are_fitted_apart() -> None:
    dense, batches, method = Reread().eval(), rows(10, count=8), Spectral(metric="input")
    targets = ["enter", "one", "other"]
    moments = calibrate(dense, batches, {Moment.INPUT}, targets=targets)
    chosen = plan(dense, method, moments, keep=0.5, multiple_of=2, targets=targets)
    model = factorize_(copy.deepcopy(dense), method, moments, chosen)
    correct_(model, dense, method, moments, chosen, batches)
    require_corrected(dense, model, method, chosen, moments, batches)


def test_no_more_is_held_than_one_output_of_a_list_for_each_batch_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, batches, method = Chain().eval(), rows(10, count=24), Jactus()
    model, chosen, moments = made(dense, batches, method, 0.5)
    forward, held = Block.forward, []

    def counted(self: Block, x: Tensor) -> Tensor:
        held.append(sum(type(one) is Tensor and one.shape == (8, 20) for one in gc.get_objects()))
        return forward(self, x)

    monkeypatch.setattr(Block, "forward", counted)
    correct_(model, dense, method, moments, chosen, batches)
    assert 2 * len(batches) < max(held) < 3 * len(batches)  # with what one pass holds


def test_what_is_not_factorized_or_folded_already_is_refused() -> None:
    dense, batches, method = Chain().eval(), rows(10), Jactus()
    model, chosen, moments = made(dense, batches, method, 0.5)
    for one in (copy.deepcopy(dense), fold_(model)):
        before = copy.deepcopy(one.state_dict())
        with pytest.raises(ModelError, match="between factorize_ and fold_"):
            correct_(one, dense, method, moments, chosen, batches)
        assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


def test_what_blocks_that_are_layers_give_is_counted() -> None:
    dense, (batch, *_) = Stacked().eval(), rows(10)
    calls = running.Calls.of(dense, [f"layers.{number}" for number in range(4)], batch, lambda m, b: m(b["x"]))
    assert calls.bytes == 8 * 10 * 4 + 8 * 8 + 2 * 8 * 40 * 4  # x, labels, and an output in each of two models


def test_a_core_that_cannot_start_again_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FreeCore, "restart_")
    dense, batches, method = Chain().eval(), rows(10), Jactus()
    model, chosen, moments = made(dense, batches, method, 0.3)
    before = {name: weight_of(model.get_submodule(name)) for name in chosen.ranks}
    correct_(model, dense, method, moments, chosen, batches)
    assert all(torch.equal(weight_of(model.get_submodule(name)), old) for name, old in before.items())


def test_a_weight_with_too_few_directions_stays() -> None:
    dense, batches, method = Chain().eval(), rows(10), Cersa(alpha=0.5)
    moments: Statistics = calibrate(dense, batches, frozenset(Moment))
    chosen = plan(dense, Cersa(alpha=1.0), moments, keep=0.8, strategy="energy", multiple_of=1)
    model = factorize_(copy.deepcopy(dense), Cersa(alpha=1.0), moments, chosen)
    before = {name: weight_of(model.get_submodule(name)) for name in chosen.ranks}
    correct_(model, dense, method, moments, chosen, batches)
    assert all(torch.equal(weight_of(model.get_submodule(name)), old) for name, old in before.items())


def test_as_many_batches_are_read_as_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dense, batches, method = Chain().eval(), rows(10), Jactus()
    model, chosen, moments = made(dense, batches, method, 0.5)
    first = correct_(copy.deepcopy(model), dense, method, moments, chosen, batches[1::2])
    most = 8 * 10 * 4 + 8 * 8 + 2 * 8 * 20 * 4  # bytes of a batch, and of what a block gives in two models
    monkeypatch.setattr(progress, "_level", "normal")
    monkeypatch.setattr(memory, "free", lambda device: 2.5 * most / correction.SHARE)
    correct_(model, dense, method, moments, chosen, batches)
    assert "Correcting by 2 of 4 batches" in capsys.readouterr().err
    for name, value in model.state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), name


def test_batches_that_can_be_read_only_once_are_all_read() -> None:
    dense, batches, method = Chain().eval(), rows(10), Jactus()
    model, chosen, moments = made(dense, batches, method, 0.5)
    once = correct_(copy.deepcopy(model), dense, method, moments, chosen, iter(batches))
    correct_(model, dense, method, moments, chosen, batches)
    for name, value in model.state_dict().items():
        assert torch.equal(value, once.state_dict()[name]), name


def test_no_batch_is_an_error_that_leaves_the_model() -> None:
    dense, batches, method = Chain().eval(), rows(10), Jactus()
    model, chosen, moments = made(dense, batches, method, 0.5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match="no batch to correct"):
        correct_(model, dense, method, moments, chosen, [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("free", [0, 2, 5])
def test_a_free_core_starts_again_with_as_much_trained(free: int) -> None:
    core, other = FreeCore(torch.randn(5, 5), free), torch.randn(5, 5)
    core.restart_(other)
    assert torch.equal(core(), other)
    assert sum(one.numel() for one in core.parameters()) == free * free


@pytest.mark.parametrize("strict", [False, True])
def test_an_orthogonal_core_starts_again_unrotated(strict: bool) -> None:
    core, other = OrthogonalCore(torch.randn(5, 5), strict=strict), torch.randn(5, 5)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.3)
    core.restart_(other)
    assert torch.allclose(core(), other, atol=1e-6)


def test_the_outermost_block_is_found(tiny_bert: Callable[[], Any]) -> None:
    model = tiny_bert()
    assert block_of(model, "bert.encoder.layer.1.output.dense") == "bert.encoder.layer.1"
    assert block_of(model, "classifier") == ""
    nested = nn.ModuleDict({"stages": nn.ModuleList([nn.ModuleList([nn.Linear(2, 2)])])})
    assert block_of(nested, "stages.0.0") == "stages.0.0"  # a list of layers is called by nobody
