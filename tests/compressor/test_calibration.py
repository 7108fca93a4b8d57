"""Second moments against a computation example by example, and how often they are decomposed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

from compressor import devices, factorize
from compressor.calibration import Batch, Statistics, calibrate, own_label_loss
from compressor.errors import ArtifactError, DataError, ModelError
from compressor.methods.base import Moment
from compressor.methods.jactus import Jactus
from compressor.targets import dense_layer, find_targets
from compressor.tasks.base import IGNORED

BOTH = frozenset(Moment)


class Tagger(nn.Module):
    """Two layers that read the same input and one that is used twice, with a label for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(4, 5), "b": nn.Linear(4, 5), "c": nn.Linear(5, 5)})])
        self.head = nn.Linear(5, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 4) -> logits (B, T, 3)."""
        a, b, c = parts(self)
        return self.head(self.dropout(c(gelu(c(gelu(a(x) + b(x)))))))


def parts(model: nn.Module) -> list[Any]:
    return [dense_layer(model, f"block.0.{name}") for name in "abc"]


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch["x"]).mT, batch["labels"], ignore_index=IGNORED)


def tagged_batches(sizes: tuple[int, ...] = (3, 1, 2)) -> list[Batch]:
    """Batches of different sizes with padding, whose labels are ignored, and here and there another ignored label."""
    found: list[Batch] = []
    for number, size in enumerate(sizes):
        mask = (torch.arange(6) < torch.tensor([2 + (number + row) % 5 for row in range(size)])[:, None]).long()
        labels = torch.randint(0, 3, (size, 6)).masked_fill(mask == 0, IGNORED)
        labels[:, 0] = IGNORED
        found.append({"x": torch.randn(size, 6, 4), "attention_mask": mask, "labels": labels})
    return found


def by_hand(model: Tagger, batches: list[Batch]) -> dict[str, tuple[Tensor, Tensor]]:
    """E[x x^T] per row and E[g g^T] per loss term of a, b and c: one example at a time, without hooks."""
    a, b, c = parts(model)
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {"a": [], "b": [], "c": []}
    terms = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
    for batch in batches:
        for x, mask, labels in zip(batch["x"], batch["attention_mask"], batch["labels"], strict=True):
            ya, yb = a(x), b(x)
            first = gelu(ya + yb)
            y1 = c(first)
            second = gelu(y1)
            y2 = c(second)
            total = cross_entropy(model.head(y2), labels, ignore_index=IGNORED, reduction="sum")
            ga, gb, g1, g2 = torch.autograd.grad(total, [ya, yb, y1, y2])
            seen = mask.bool()
            rows["a"].append((x[seen], ga[seen]))
            rows["b"].append((x[seen], gb[seen]))
            rows["c"] += [(first[seen], g1[seen]), (second[seen], g2[seen])]
    return {
        name: (squares([x for x, _ in pairs]).mean(0), squares([g for _, g in pairs]).sum(0) / terms)
        for name, pairs in rows.items()
    }


def squares(parts: list[Tensor]) -> Tensor:
    return torch.stack([torch.outer(z, z) for z in torch.cat(parts).detach().double()])


@pytest.fixture
def tagged() -> tuple[Tagger, list[Batch], Statistics]:
    model, batches = Tagger(), tagged_batches()
    return model, batches, calibrate(model, batches, BOTH, loss=mean_loss)


# ---- the numbers ----


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_moments_are_those_of_one_example_at_a_time(tagged: tuple[Tagger, list[Batch], Statistics], name: str) -> None:
    model, batches, statistics = tagged
    inputs, gradients = by_hand(model.eval(), batches)[name]
    found = statistics[f"block.0.{name}"]
    assert found.input is not None
    assert found.gradient is not None
    torch.testing.assert_close(found.input.matrix.double(), inputs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.gradient.matrix.double(), gradients, rtol=1e-4, atol=1e-8)


class Merging(nn.Module):
    """A stage that sees 16 rows of an example, and one that sees the single row that they are merged to."""

    def __init__(self) -> None:
        super().__init__()
        self.many, self.one, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:
        """(B, 16, 12) -> logits (B, 4)."""
        merged = (x + torch.tanh(self.many(x))).mean(1)
        return SimpleNamespace(logits=self.head(2 * (merged + torch.tanh(self.one(merged)))))


def test_half_the_weighted_error_is_the_change_of_the_loss_whatever_rows_a_layer_sees() -> None:
    model, x = Merging(), torch.randn(1024, 16, 12)
    layers = ["many", "one"]
    own = partial(own_label_loss, temperature=1.0)
    moments = calibrate(model, [{"x": part} for part in x.split(64)], BOTH, targets=layers, loss=own)
    before = model(x).logits.detach().log_softmax(-1)
    for name in layers:
        weight, pair = model.get_parameter(f"{name}.weight"), moments[name]
        assert pair.input is not None
        assert pair.gradient is not None
        told, seen, kept = 0.0, 0.0, weight.detach().clone()
        for _ in range(20):
            error = 0.03 * torch.randn(12, 12)
            told += float(torch.trace(pair.gradient.matrix @ error @ pair.input.matrix @ error.mT)) / 2
            weight.data = kept + error
            after = model(x).logits.detach().log_softmax(-1)
            seen += float((before.exp() * (before - after)).sum(-1).mean())
        weight.data = kept
        assert 0.6 < seen / told < 1.7, name  # per row it would be 16 for the first


def test_a_loss_that_hangs_on_no_target_is_refused() -> None:
    model = Tagger()
    nn.init.zeros_(model.head.weight)
    with pytest.raises(ModelError, match=r"does not change with any target's output.*train the head"):
        calibrate(model, tagged_batches(), BOTH, loss=mean_loss)


def test_how_the_examples_are_batched_changes_nothing() -> None:
    model, batches = Tagger(), tagged_batches()
    rows = [(batch, row) for batch in batches for row in range(len(batch["x"]))]
    single = [{key: value[row : row + 1] for key, value in batch.items()} for batch, row in rows]
    together, apart = (calibrate(model, given, BOTH, loss=mean_loss) for given in (batches, single))
    assert together.samples == apart.samples == 6
    for name in together:
        for moment in ("input", "gradient"):
            one, other = getattr(together[name], moment).matrix, getattr(apart[name], moment).matrix
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_targets_of_one_input_share_its_moment(tagged: tuple[Tagger, list[Batch], Statistics]) -> None:
    statistics = tagged[2]
    assert statistics["block.0.a"].input is statistics["block.0.b"].input
    assert statistics["block.0.a"].gradient is not statistics["block.0.b"].gradient
    assert statistics["block.0.c"].input is not statistics["block.0.a"].input


def test_the_model_is_left_as_it_was() -> None:
    model = Tagger().train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    calibrate(model, tagged_batches(), BOTH, loss=mean_loss)
    assert model.training
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_only_what_is_needed_is_gathered() -> None:
    statistics = calibrate(Tagger(), tagged_batches(), {Moment.INPUT}, loss=mean_loss)
    assert {moments.gradient for moments in statistics.values()} == {None}
    assert all(moments.input is not None for moments in statistics.values())


def test_a_method_that_needs_nothing_costs_no_pass() -> None:
    def never(model: nn.Module, batch: Batch) -> Tensor:
        raise AssertionError("a batch was read")

    assert not calibrate(Tagger(), tagged_batches(), frozenset(), loss=never)


def test_a_real_encoder_gathers_one_input_for_query_key_and_value(
    tiny_bert: Callable[[], Any], token_batches: Callable[[], list[Batch]]
) -> None:
    statistics = calibrate(tiny_bert(), token_batches(), BOTH)
    attention = "bert.encoder.layer.0.attention.self"
    shared = {id(statistics[f"{attention}.{name}"].input) for name in ("query", "key", "value")}
    assert len(shared) == 1
    assert len({id(moments.input) for moments in statistics.values()}) == 2 * 4


# ---- how often they are decomposed ----


# ---- the file ----


def test_statistics_come_back_with_what_they_share(
    tagged: tuple[Tagger, list[Batch], Statistics], tmp_path: Path
) -> None:
    statistics = tagged[2]
    statistics.save(tmp_path / "statistics.safetensors")
    read = Statistics.load(tmp_path / "statistics.safetensors")
    assert (list(read), read.samples) == (list(statistics), statistics.samples)
    assert read["block.0.a"].input is read["block.0.b"].input
    for name in statistics:
        for moment in ("input", "gradient"):
            assert torch.equal(getattr(read[name], moment).matrix, getattr(statistics[name], moment).matrix)


def test_empty_statistics_come_back_empty(tmp_path: Path) -> None:
    calibrate(Tagger(), [], frozenset()).save(tmp_path / "statistics.safetensors")
    assert not Statistics.load(tmp_path / "statistics.safetensors")


@pytest.mark.parametrize("damage", ["missing", "truncated", "another file"])
def test_a_damaged_file_is_refused(tagged: tuple[Tagger, list[Batch], Statistics], tmp_path: Path, damage: str) -> None:
    path = tmp_path / "statistics.safetensors"
    if damage == "truncated":
        tagged[2].save(path)
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "another file":
        save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ArtifactError, match=r"statistics\.safetensors cannot be read.*Calibrate again"):
        Statistics.load(path)


# ---- what cannot be calibrated ----


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch")
def test_moments_gathered_on_a_gpu_are_those_of_the_cpu_and_lie_there(
    tagged: tuple[Tagger, list[Batch], Statistics],
) -> None:
    model, batches, expected = tagged
    with devices.lent(model):
        found = calibrate(model, batches, BOTH, loss=mean_loss)
    assert next(model.parameters()).device.type == "cpu"
    for name, pair in expected.items():
        for side in ("input", "gradient"):
            one, other = getattr(found[name], side).matrix, getattr(pair, side).matrix
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch")
def test_a_module_on_a_gpu_is_compressed_there(tagged: tuple[Tagger, list[Batch], Statistics]) -> None:
    model, batches, _ = tagged
    there = copy.deepcopy(model).cuda()
    moments = calibrate(there, batches, BOTH, loss=mean_loss)
    plan = factorize.plan(there, Jactus(), moments, multiple_of=1)
    factorize.factorize_(there, Jactus(), moments, plan)
    assert plan.ranks
    assert {parameter.device.type for parameter in there.parameters()} == {"cuda"}
    mean_loss(there, {name: tensor.cuda() for name, tensor in batches[0].items()}).backward()


def test_empty_data_is_refused() -> None:
    with pytest.raises(DataError, match="at least one example"):
        calibrate(Tagger(), [], BOTH, loss=mean_loss)


class Bypassed(Tagger):
    def forward(self, x: Tensor) -> Tensor:
        a, _, c = parts(self)
        return self.head(c(a(x)))


def test_a_target_that_is_never_reached_is_named() -> None:
    with pytest.raises(ModelError, match=r"1 targets were never reached.*block\.0\.b.*model\.exclude"):
        calibrate(Bypassed(), tagged_batches(), BOTH, loss=mean_loss)


def test_an_excluded_target_need_not_be_reached() -> None:
    model = Bypassed()
    names = [target.name for target in find_targets(model, exclude=["*.b"])]
    assert list(calibrate(model, tagged_batches(), BOTH, targets=names, loss=mean_loss)) == names


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_traced_to_their_layers(value: float) -> None:
    batches = tagged_batches()
    batches[1]["x"][0, 0, 0] = value
    with pytest.raises(ModelError, match=r"block\.0\.a.*not finite"):
        calibrate(Tagger(), batches, BOTH, loss=mean_loss)


def test_hooks_are_removed_even_where_calibration_fails() -> None:
    model = Bypassed().train()
    with pytest.raises(ModelError):
        calibrate(model, tagged_batches(), BOTH, loss=mean_loss)
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


def test_a_frozen_model_has_the_same_moments_and_stays_frozen() -> None:
    batches = tagged_batches()
    torch.manual_seed(3)
    model = Tagger()
    open_moments = calibrate(model, batches, BOTH, loss=mean_loss)
    frozen_moments = calibrate(model.requires_grad_(False), batches, BOTH, loss=mean_loss)
    for name, moments in open_moments.items():
        gradient, again = moments.gradient, frozen_moments[name].gradient
        assert gradient is not None
        assert again is not None
        assert torch.equal(gradient.matrix, again.matrix)
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Overwritten(nn.Module):
    """A ReLU after the target, which may put its result where the target's output was; one target is not used."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 5)])
        self.relu, self.head = nn.ReLU(inplace=inplace), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 4) -> logits (B, T, 3)."""
        self.blocks[1](x)
        return self.head(self.relu(self.blocks[0](x)))


def test_an_output_that_is_overwritten_has_the_gradient_of_what_it_was() -> None:
    batch, models = {"x": torch.randn(2, 6, 4), "labels": torch.randint(0, 3, (2, 6))}, []
    for inplace in (False, True):
        torch.manual_seed(3)
        models.append(calibrate(Overwritten(inplace=inplace), [batch], BOTH, loss=mean_loss))
    kept, overwritten = (found["blocks.0"].gradient for found in models)
    assert kept is not None
    assert overwritten is not None
    assert torch.equal(overwritten.matrix, kept.matrix)
    assert kept.matrix.any()


class Residual(nn.Module):
    """Two targets that read one tensor, which is added to in between, in place or not."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 4) -> (B, T, 4)."""
        x = x * 1.0
        for block in self.blocks:
            if self.inplace:
                x += block(x.clone() if torch.is_grad_enabled() else x)
            else:
                x = x + block(x)
        return x


def test_an_input_that_is_overwritten_is_what_it_was_when_it_was_read() -> None:
    batches = [{"x": torch.randn(2, 6, 4), "labels": torch.randint(0, 3, (2, 6))} for _ in range(2)]
    found = []
    for inplace in (False, True):
        torch.manual_seed(3)
        model = Residual(inplace=inplace)
        found.append(calibrate(model, batches, [Moment.INPUT], loss=mean_loss))
    for name in ("blocks.0", "blocks.1"):
        kept, overwritten = (one[name].input for one in found)
        assert kept is not None
        assert overwritten is not None
        torch.testing.assert_close(overwritten.matrix, kept.matrix)


def test_targets_that_run_without_gradients_are_named() -> None:
    class Frozen(Residual):
        def forward(self, x: Tensor) -> Tensor:
            """(B, T, 4) -> (B, T, 4)."""
            with torch.no_grad():
                x = self.blocks[0](x)
            return self.blocks[1](x)

    batch = {"x": torch.randn(2, 6, 4), "labels": torch.randint(0, 3, (2, 6))}
    with pytest.raises(
        ModelError, match=r"runs 1 targets without gradients \(blocks\.0\).*model\.exclude: \['blocks\.0'\]"
    ):
        calibrate(Frozen(inplace=False), [batch], BOTH, loss=mean_loss)
    assert calibrate(Frozen(inplace=False), [batch], [Moment.INPUT], loss=mean_loss).keys() == {"blocks.0", "blocks.1"}


def test_the_gradient_of_an_output_that_the_loss_does_not_see_is_zero() -> None:
    batch = {"x": torch.randn(2, 6, 4), "labels": torch.randint(0, 3, (2, 6))}
    gradient = calibrate(Overwritten(inplace=False), [batch], BOTH, loss=mean_loss)["blocks.1"].gradient
    assert gradient is not None
    assert torch.equal(gradient.matrix, torch.zeros(5, 5))


class Softmax(nn.Module):
    """One linear layer whose outputs are the logits, so that the Fisher matrix can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 3)])

    def forward(self, x: Tensor) -> Any:
        """(B, 4) -> an object with logits (B, 3)."""
        return SimpleNamespace(logits=self.blocks[0](x))


def test_own_labels_have_the_fisher_matrix_as_their_gradients_moment() -> None:
    model, temperature = Softmax(), 2.0
    x = torch.randn(1, 4).expand(40_000, 4)
    found = calibrate(model, [{"x": x}], BOTH, loss=partial(own_label_loss, temperature=temperature))
    p = (model(x[:1]).logits[0] / temperature).softmax(-1).detach()
    fisher = (torch.diag(p) - torch.outer(p, p)) / temperature**2  # of the cross entropy, with respect to the logits
    gradient = found["blocks.0"].gradient
    assert gradient is not None
    assert torch.allclose(gradient.matrix, fisher, atol=2e-3)


def test_own_labels_do_not_look_at_the_given_ones(tiny_bert: Callable[..., Any]) -> None:
    batch = {"input_ids": torch.tensor([[3, 4], [5, 6]]), "attention_mask": torch.ones(2, 2, dtype=torch.long)}
    losses = []
    for labels in ([0, 1], [2, 2]):
        torch.manual_seed(0)
        losses.append(float(own_label_loss(tiny_bert(), batch | {"labels": torch.tensor(labels)}).detach()))
    assert losses[0] == losses[1]


class Experts(nn.Module):
    """Two experts, each of which sees the rows that begin with its sign."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (x[:, 0] > 0) == bool(number)
            if rows.any():
                found = found.index_put((rows,), expert(x[rows]))
        return self.head(found)


def expert_loss(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch["x"]), batch["labels"])


def test_an_expert_need_not_be_reached_in_every_batch() -> None:
    model, x, labels = Experts(), torch.randn(12, 4), torch.arange(12) % 3
    x[:4, 0] = -x[:4, 0].abs()  # the first batch reaches one expert alone
    x[4:, 0] = torch.where(torch.arange(8) % 2 == 0, x[4:, 0].abs(), -x[4:, 0].abs())
    batches: list[Batch] = [{"x": x[:4], "labels": labels[:4]}, {"x": x[4:], "labels": labels[4:]}]
    names = ["experts.0", "experts.1"]
    found = calibrate(model, batches, BOTH, targets=names, loss=expert_loss)
    for number, name in enumerate(names):
        rows = x[(x[:, 0] > 0) == bool(number)]
        torch.testing.assert_close(found[name].input.matrix.float(), rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match=r"1 targets were never reached in calibration: experts\.1"):
        calibrate(model, batches[:1], BOTH, targets=names, loss=expert_loss)


def test_modules_that_were_in_evaluation_mode_still_are(
    tiny_bert: Callable[[], Any], token_batches: Callable[..., list[Batch]]
) -> None:
    model = tiny_bert().train()
    model.bert.encoder.layer[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    calibrate(model, token_batches(2), BOTH)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not all(before.values())
