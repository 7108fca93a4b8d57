"""factorize_, one training step, fold_ and back from a file, for every method on a small BERT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor import registry
from compressor.calibration import Statistics, calibrate
from compressor.errors import BudgetError, ModelError
from compressor.factorize import decompose, factorize_, fold_, plan, restructure_
from compressor.layers import LAYOUTS, CoreLinear, FactorizedLinear, KeptLinear, PivotedLinear
from compressor.methods.base import Moment
from compressor.methods.cersa import Cersa
from compressor.methods.jactus import Jactus
from compressor.methods.psoft import Psoft
from compressor.methods.spectral import Spectral
from compressor.planning import Plan, PlanLayer

Batch = dict[str, Tensor]
METHODS = [registry.load("methods", name)() for name in sorted(registry.names("methods"))]
METHODS += [Cersa(alpha=1.0, beta=0.5, updates=2), Psoft(strict=True), Spectral(train="none", updates=2)]
METHODS += [Jactus(reading="R2", updates=0), Cersa(alpha=1.0), Jactus(axes="moments")]
HEAD = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
FIRST, SECOND = "bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense"
KEPT = "bert.encoder.layer.1.attention.self.value"

methods = pytest.mark.parametrize("method", METHODS, ids=str)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(scope="module")
def batches(token_batches: Callable[[], list[Batch]]) -> list[Batch]:
    return token_batches()


@pytest.fixture(scope="module")
def statistics(tiny_bert: Callable[[], Any], batches: list[Batch]) -> Statistics:
    return calibrate(tiny_bert(), batches, frozenset(Moment))


def rows(**changes: Any) -> Plan:
    """Two layers of rank 4 and 6, one that is named and stays dense."""
    layers = (
        PlanLayer(FIRST, 32, 32, 4, 16, 0, 1.0),
        PlanLayer(SECOND, 32, 48, 6, 20, 0, 1.0),
        PlanLayer(KEPT, 32, 32, None, 16, 0, 1.0),
    )
    return replace(Plan("replay", 0.5, "two-factor", 1, layers), **changes)


def logits(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def train(model: nn.Module, batches: list[Batch], steps: int = 2) -> None:
    """Steps over all parameters, weight decay included: whatever requires no gradient must not move."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(steps):
        model(**batches[step]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def core_parameters(model: nn.Module) -> set[str]:
    return {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, CoreLinear | KeptLinear)
        for key, _ in module.named_parameters()
        if key != "bias"
    }


# ---- factorize_ ----


@methods
def test_only_cores_updates_and_the_head_are_trained_and_move(
    tiny_bert: Callable[[], Any], statistics: Statistics, batches: list[Batch], method: Any
) -> None:
    model = factorize_(tiny_bert(), method, statistics, rows())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == core_parameters(model) | HEAD
    before = snapshot(model)
    train(model, batches)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == trained


@methods
def test_layers_that_stay_dense_move_by_thin_updates_only(
    tiny_bert: Callable[[], Any], statistics: Statistics, batches: list[Batch], method: Any
) -> None:
    dense = tiny_bert()
    model = factorize_(tiny_bert(), method, statistics, rows())
    train(model, batches)
    fold_(model)
    for name, module in dense.named_modules():
        if isinstance(module, nn.Linear) and ".layer." in name and name not in (FIRST, SECOND):
            found = model.get_submodule(name)
            assert type(found) is nn.Linear
            change = np.linalg.matrix_rank((found.weight - module.weight).detach().numpy(), tol=1e-5)
            assert change == (min(method.updates, 32) if name == KEPT else 0)
    assert isinstance(model.get_submodule(FIRST), FactorizedLinear)
    assert torch.equal(model.get_parameter(f"{FIRST}.up.bias"), dense.get_parameter(f"{FIRST}.bias"))


@methods
def test_an_untrained_core_layer_is_the_truncated_subspace(
    tiny_bert: Callable[[], Any], statistics: Statistics, method: Any
) -> None:
    dense = tiny_bert()
    found = decompose(dense, method, statistics)[FIRST].truncate(4)
    layer = factorize_(tiny_bert(), method, statistics, rows()).get_submodule(FIRST)
    x = torch.randn(5, 32)
    weight = (found.left @ found.core @ found.right).float()
    expected = nn.functional.linear(x, weight, dense.get_submodule(FIRST).bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_decompositions_that_are_there_are_not_made_again(
    tiny_bert: Callable[[], Any], statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_bert()
    subspaces = decompose(model, Jactus(), statistics)
    monkeypatch.setattr(Jactus, "subspace", None)
    factorize_(model, Jactus(), statistics, rows(), subspaces=subspaces)
    assert isinstance(model.get_submodule(SECOND), CoreLinear)


# ---- plan ----


def test_a_moment_is_factorized_at_most_once_and_then_forgotten(
    tiny_bert: Callable[[], Any], batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = calibrate(tiny_bert(), batches, frozenset(Moment))
    moments = {id(moment): moment for pair in found.values() for moment in (pair.input, pair.gradient)}
    shared = sum(len({pair.input, pair.gradient}) for pair in found.values()) - len(moments)
    made: dict[str, list[int]] = {"eigh": [], "cholesky_ex": []}
    for name, sizes in made.items():
        monkeypatch.setattr(torch.linalg, name, noted(getattr(torch.linalg, name), sizes))
    decompose(tiny_bert(), Jactus(), found)
    assert shared == 4  # of both layers, k and v read what q reads
    assert made["eigh"] == [32] * 12  # one Gram matrix for each target, never the longer side's
    assert made["cholesky_ex"] == [32] * 2 * 4  # the inputs of q, k and v, of o and of fc1; the gradients of fc2
    assert not any("eigen" in vars(moment) or moment._damped for moment in moments.values())


def noted(function: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    """The function, which notes the size of the matrices that it is given."""

    def call(matrix: torch.Tensor, **options: Any) -> Any:
        sizes.append(len(matrix))
        return function(matrix, **options)

    return call


@methods
def test_a_plan_of_a_model_keeps_its_budget(tiny_bert: Callable[[], Any], statistics: Statistics, method: Any) -> None:
    found = plan(tiny_bert(), method, statistics, keep=0.4, multiple_of=2)
    assert len(found.layers) == 12
    assert found.dense_parameters == 2 * (4 * 32 * 32 + 2 * 32 * 48)
    assert found.parameters <= 0.4 * found.dense_parameters
    assert all(0 < layer.energy <= 1 for layer in found.layers)


def test_the_planned_parameters_are_those_of_the_folded_layers(
    tiny_bert: Callable[[], Any], statistics: Statistics
) -> None:
    for layout in ("two-factor", "pivoted"):
        model = tiny_bert()
        found = plan(model, Jactus(), statistics, keep=0.6, multiple_of=1, layout=layout)
        fold_(factorize_(model, Jactus(), statistics, found), found.layout)
        encoder = model.get_submodule("bert.encoder")
        weights = [p.numel() for key, p in encoder.named_parameters() if "bias" not in key and "LayerNorm" not in key]
        assert sum(weights) == found.parameters


def test_a_budget_that_is_too_small_for_a_model_is_refused(
    tiny_bert: Callable[[], Any], statistics: Statistics
) -> None:
    with pytest.raises(BudgetError, match=r"plan\.budget\.parameters"):
        plan(tiny_bert(), Jactus(), statistics, keep=0.1, multiple_of=8)


# ---- fold_ and restructure_ ----


@layouts
@methods
def test_folding_a_trained_model_keeps_its_logits(
    tiny_bert: Callable[[], Any], statistics: Statistics, batches: list[Batch], method: Any, layout: Any
) -> None:
    model = factorize_(tiny_bert(), method, statistics, rows())
    train(model, batches)
    before = logits(model, batches[0])
    fold_(model, layout)
    torch.testing.assert_close(logits(model, batches[0]), before, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, CoreLinear) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@layouts
def test_a_folded_model_comes_back_from_its_plan_and_state(
    tiny_bert: Callable[..., Any], statistics: Statistics, batches: list[Batch], layout: Any
) -> None:
    chosen = rows(layout=layout)
    model = fold_(factorize_(tiny_bert(), Jactus(), statistics, chosen), layout)
    again = restructure_(tiny_bert(seed=1), chosen)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again, batches[0]), logits(model, batches[0]))
    kinds = {"two-factor": FactorizedLinear, "pivoted": PivotedLinear}
    assert type(again.get_submodule(FIRST)) is kinds[layout]


@layouts
def test_the_plans_layout_is_what_is_folded_to(
    tiny_bert: Callable[[], Any], statistics: Statistics, batches: list[Batch], layout: Any
) -> None:
    model, chosen = tiny_bert(), plan(tiny_bert(), Jactus(), statistics, keep=0.6, multiple_of=1, layout=layout)
    folded = fold_(factorize_(model, Jactus(), statistics, chosen))
    kept = [folded.get_submodule(name) for name in chosen.ranks]
    assert {type(one) for one in kept} == {LAYOUTS[layout]}
    weights = sum(one.numel() for module in kept for name, one in module.named_parameters() if "bias" not in name)
    assert weights == sum(layer.parameters for layer in chosen.layers if layer.rank is not None)
    restructure_(tiny_bert(), chosen).load_state_dict(folded.state_dict())


def test_what_was_frozen_before_is_frozen_again(tiny_bert: Callable[[], Any], statistics: Statistics) -> None:
    model = tiny_bert()
    model.bert.embeddings.position_embeddings.requires_grad_(False)
    folded = fold_(factorize_(model, Jactus(), statistics, rows()))
    frozen = [name for name, parameter in folded.named_parameters() if not parameter.requires_grad]
    assert frozen == ["bert.embeddings.position_embeddings.weight"]


def test_empty_layers_are_of_the_models_type(tiny_bert: Callable[[], Any], batches: list[Batch]) -> None:
    model = restructure_(tiny_bert().to(torch.bfloat16), rows())
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert logits(model, batches[0]).dtype == torch.bfloat16


@pytest.mark.parametrize("method", [Jactus(), Psoft()], ids=str)
def test_a_model_in_bfloat16_stays_in_it_while_it_learns_and_folded(
    tiny_bert: Callable[[], Any], batches: list[Batch], method: Any
) -> None:
    model = tiny_bert().to(torch.bfloat16)
    expected = logits(model, batches[0])
    moments = calibrate(model, batches, method.needs())
    made = factorize_(model, method, moments, plan(model, method, moments, keep=0.9))
    train(made, batches)
    before = logits(made, batches[0])
    folded = fold_(made)
    assert {tensor.dtype for tensor in folded.state_dict().values() if tensor.is_floating_point()} == {torch.bfloat16}
    torch.testing.assert_close(logits(folded, batches[0]), before, rtol=0, atol=0.1)
    assert before.dtype == expected.dtype == torch.bfloat16


def test_a_plan_that_keeps_every_target_looks_for_no_others() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    batch = {"x": torch.randn(5, 3, 4, 4), "labels": torch.tensor([0, 1, 1, 0, 1])}
    moments = calibrate(
        model,
        [batch],
        Jactus().needs(),
        targets=["0"],
        loss=lambda m, b: nn.functional.cross_entropy(m(b["x"]), b["labels"]),
    )
    everything = plan(model, Jactus(), moments, keep=1.0)
    assert everything.ranks == {}
    factorize_(model, Jactus(), moments, everything)
    assert type(fold_(model)[0]) is nn.Conv2d


# ---- plans that do not fit ----
# ---- plans that do not fit ----


def misfits() -> Plan:
    faulty = [PlanLayer("bert.encoder.layer.9.query", 32, 32, 4, 16, 0, 1.0), PlanLayer(SECOND, 16, 48, 4, 12, 0, 1.0)]
    return rows(layers=(*rows().layers[:1], *faulty))


@pytest.mark.parametrize("act", ["factorize_", "restructure_"])
def test_a_plan_for_another_model_is_refused_with_every_misfit(
    tiny_bert: Callable[[], Any], statistics: Statistics, act: str
) -> None:
    model = tiny_bert()
    before = snapshot(model)
    with pytest.raises(ModelError) as caught:
        restructure_(model, misfits()) if act == "restructure_" else factorize_(model, Jactus(), statistics, misfits())
    assert "'bert.encoder.layer.9.query' is (32, 32) in the plan, no linear layer in the model" in str(caught.value)
    assert f"'{SECOND}' is (16, 48) in the plan, (32, 48) in the model" in str(caught.value)
    assert FIRST not in str(caught.value)
    assert snapshot(model).keys() == before.keys()


def test_a_rank_that_the_method_has_no_directions_for_is_refused(
    tiny_bert: Callable[[], Any], statistics: Statistics
) -> None:
    model = tiny_bert()
    with pytest.raises(ModelError, match=rf"'{FIRST}' has rank 4 in the plan, the method offers 1 directions"):
        factorize_(model, Cersa(alpha=0.01), statistics, rows())
    assert type(model.get_submodule(FIRST)) is nn.Linear


def test_a_planned_layer_that_is_no_target_is_refused(tiny_bert: Callable[[], Any], statistics: Statistics) -> None:
    model = tiny_bert()
    subspaces = {name: found for name, found in decompose(model, Jactus(), statistics).items() if name != SECOND}
    with pytest.raises(ModelError, match=rf"'{SECOND}' has rank 6 in the plan, the method offers 0 directions"):
        factorize_(model, Jactus(), statistics, rows(), subspaces=subspaces)
