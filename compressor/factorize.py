"""On any module: decompose its targets, plan their ranks, factorize_ for training, fold_ for deployment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from compressor import planning, structure
from compressor.allocation import Layout, Spectrum, break_even
from compressor.errors import ModelError
from compressor.forms import form_of, is_dense, matrix
from compressor.layers import LAYOUTS, CoreLinear, KeptLinear
from compressor.methods.base import Method, Moments, Subspace
from compressor.planning import Plan
from compressor.progress import track
from compressor.targets import Target, dense_layer, find_targets, head_parameters, replace_module

FROZEN = "_frozen_before"  # under which a module in training holds which of its own parameters were frozen before


def decompose(
    model: nn.Module,
    method: Method,
    moments: Mapping[str, Moments],
    *,
    targets: str | Sequence[str] | None = None,
    layout: Layout = "two-factor",
) -> dict[str, Subspace]:
    """The subspace of every target, up to its break-even rank; the expensive part, to be done once.

    Args:
        model: the dense model.
        method: what the subspaces are made by.
        moments: statistics from `calibrate`, by target.
        targets: as for `find_targets`; by default those that the moments are of, or "auto" where there are none.
        layout: of the deployed layers, which says where break-even is.

    Returns:
        By name, for `plan` and `factorize_`.

    Raises:
        InputError: a moment that the method weighs by was not gathered.
        ModelError: see `find_targets`; or weights are not in memory.
    """
    found = find_targets(model, (list(moments) or "auto") if targets is None else targets)
    return _decompose(model, method, moments, found, layout)


def _decompose(
    model: nn.Module,
    method: Method,
    moments: Mapping[str, Moments],
    targets: tuple[Target, ...],
    layout: Layout,
) -> dict[str, Subspace]:
    structure.require_loaded(model, [target.name for target in targets])
    subspaces = dict[str, Subspace]()
    known = [moments.get(target.name, Moments()) for target in targets]
    last = {id(moment): place for place, pair in enumerate(known) for moment in (pair.input, pair.gradient)}
    for place, target in enumerate(track(targets, "decomposing")):
        limit = break_even(target.out_features, target.in_features, layout) - 1
        weight, pair = matrix(dense_layer(model, target.name)).detach(), known[place]
        subspaces[target.name] = method.subspace(_beside(pair, weight), pair, limit)
        for moment in (pair.input, pair.gradient):
            if moment is not None and last[id(moment)] == place:
                moment.forget()  # no later target shares it, and all of a language model's fill gigabytes
    return subspaces


def _beside(moments: Moments, weight: Tensor) -> Tensor:
    """The weight where its moments are: `calibrate` gathers them on the model's device and leaves them on the CPU."""
    known = moments.input or moments.gradient
    return weight if known is None else weight.to(known.matrix.device)


def spectra(model: nn.Module, subspaces: Mapping[str, Subspace]) -> list[Spectrum]:
    """What the plan needs to know of each target."""
    return [
        Spectrum(name, *structure.shape(dense_layer(model, name)), subspace.gains.tolist(), subspace.total)
        for name, subspace in subspaces.items()
    ]


def plan(
    model: nn.Module,
    method: Method,
    moments: Mapping[str, Moments],
    *,
    keep: float = 0.5,
    strategy: Literal["gain", "energy", "uniform"] = "gain",
    multiple_of: int = 8,
    layout: Layout = "two-factor",
    targets: str | Sequence[str] | None = None,
    subspaces: Mapping[str, Subspace] | None = None,
) -> Plan:
    """Choose ranks so that the targets keep the share `keep` of their weights.

    Args:
        model: the dense model.
        method: what the subspaces are made by.
        moments: statistics from `calibrate`, by target.
        keep: share of the targets' weights that is kept.
        strategy: what the ranks are chosen by.
        multiple_of: ranks are multiples of this.
        layout: of the deployed layers.
        targets: as for `find_targets`; by default those that the moments are of, or "auto" where there are none.
        subspaces: from `decompose`, whose targets these are then; to be handed to `factorize_` too.

    Raises:
        BudgetError: not even the smallest ranks fit.
        InputError: `keep`, `strategy`, `multiple_of` or `layout` cannot be; or see `decompose`.
        ModelError: see `find_targets`.
    """
    planning.require_sensible(keep, strategy, multiple_of, layout)
    if subspaces is None:
        subspaces = decompose(model, method, moments, targets=targets, layout=layout)
    return planning.allocate(
        spectra(model, subspaces), budget=keep, strategy=strategy, multiple_of=multiple_of, layout=layout
    )


def factorize_(
    model: nn.Module,
    method: Method,
    moments: Mapping[str, Moments],
    plan: Plan,
    *,
    subspaces: Mapping[str, Subspace] | None = None,
    lean: bool = True,
) -> nn.Module:
    """Replace the planned targets by CoreLinear in place; only cores, thin updates and the head require gradients.

    Args:
        model: the dense model.
        method: what the subspaces and cores are made by.
        moments: statistics from `calibrate`, by target.
        plan: the ranks; targets without one stay dense, frozen but for the method's thin updates.
        subspaces: decompositions that are already there.
        lean: hold little for the backward pass. False where a loss holds gradients, and so differentiates twice.

    Raises:
        ModelError: the plan names a layer that the model lacks, or one of another shape, or a rank that cannot be or
            that the method has no directions for.
    """
    structure.require_unwrapped(model)
    targets = planned(model, plan)
    if subspaces is None:
        subspaces = _decompose(model, method, moments, targets, plan.layout)
    _require_directions(subspaces, plan)
    _freeze_(model)
    dense_targets = {f"{layer.name}.{key}" for layer in plan.layers for key in ("weight", "bias")}
    for name, parameter in head_parameters(model).items():
        parameter.requires_grad_(name not in dense_targets)  # where targets were named outside of repeated blocks
    for name, rank in plan.ranks.items():
        subspace, dense = subspaces[name].truncate(rank), dense_layer(model, name)
        core, form = method.core(subspace), form_of(dense)
        dtype = torch.promote_types(dense.weight.dtype, torch.float32)
        layer = CoreLinear(subspace.left, core, subspace.right, dense.bias, method.updates, form, plan.layout, dtype)
        _train_in_place(model, name, _like(dense, layer), lean)
    for name in plan.kept:
        dense = dense_layer(model, name)
        kept = KeptLinear(dense, method.updates) if method.updates else dense  # a linear layer where it was transposed
        _train_in_place(model, name, _like(dense, kept), lean)
    structure.leave_fast_paths_(model)
    return model


def _freeze_(model: nn.Module) -> None:
    """All of it, with a note on every module of what was so before: any part of a model may be folded by itself."""
    for module in model.modules():
        own = module.named_parameters(recurse=False)
        setattr(module, FROZEN, frozenset(key for key, one in own if not one.requires_grad))
    model.requires_grad_(False)


def _train_in_place(model: nn.Module, name: str, layer: nn.Module, lean: bool) -> None:
    if isinstance(layer, CoreLinear | KeptLinear):
        layer.lean = lean
    setattr(layer, FROZEN, getattr(model.get_submodule(name), FROZEN))
    replace_module(model, name, layer)


def _like(dense: nn.Module, layer: nn.Module) -> nn.Module:
    """The layer on the dense one's device, in its type."""
    weight = dense.get_parameter("weight")
    return layer.to(weight.device, weight.dtype)


def planned(model: nn.Module, plan: Plan) -> tuple[Target, ...]:
    """The targets that a plan gives a rank.

    Raises:
        ModelError: the plan names a layer that the model lacks, or one of another shape, or a rank that cannot be.
    """
    shapes = {name: structure.shape(module) for name, module in model.named_modules() if is_dense(module)}
    faults = planning.faults(plan)
    for layer in plan.layers:
        found, planned = shapes.get(layer.name), (layer.out_features, layer.in_features)
        if found != planned:
            faults.append(f"layer '{layer.name}' is {planned} in the plan, {found or 'no linear layer'} in the model")
    if faults:
        raise ModelError("The plan does not fit the model:\n" + "\n".join(f"  {fault}" for fault in faults))
    return tuple(
        Target(layer.name, layer.out_features, layer.in_features) for layer in plan.layers if layer.rank is not None
    )


def _require_directions(subspaces: Mapping[str, Subspace], plan: Plan) -> None:
    available = {name: len(subspaces[name].gains) if name in subspaces else 0 for name in plan.ranks}
    short = [
        f"layer '{name}' has rank {rank} in the plan, the method offers {available[name]} directions"
        for name, rank in plan.ranks.items()
        if rank > available[name]
    ]
    if short:
        raise ModelError("The plan does not fit the method or its targets:\n" + "\n".join(f"  {row}" for row in short))


def fold_(model: nn.Module, layout: Layout | None = None) -> nn.Module:
    """Replace every CoreLinear (and KeptLinear) by its deployed layer in place: the same function.

    What was frozen before `factorize_` is frozen again, all else can be trained.

    Args:
        model: from `factorize_`.
        layout: of the deployed layers; None: the plan's, whose ranks it was chosen for.

    Raises:
        ModelError: the model is compiled or parallel; it says what to give instead.
    """
    structure.require_unwrapped(model)
    trained = {name: module for name, module in model.named_modules() if isinstance(module, CoreLinear | KeptLinear)}
    for name, layer in trained.items():
        deployed, frozen = layer.folded(layout), getattr(layer, FROZEN)
        for key, parameter in deployed.named_parameters():
            parameter.requires_grad_(key.rpartition(".")[2] not in frozen)  # both factors as the weight was
        replace_module(model, name, deployed)
    for module in model.modules():
        if FROZEN in module.__dict__:
            frozen = module.__dict__.pop(FROZEN)
            for key, own in module.named_parameters(recurse=False):
                own.requires_grad_(key not in frozen)
    return model


def restructure_(model: nn.Module, plan: Plan) -> nn.Module:
    """Give a dense model the empty deployed layers of a plan, ready for the folded weights."""
    planned(model, plan)
    for layer in plan.layers:
        dense = dense_layer(model, layer.name)
        deployed: nn.Module = dense
        if layer.rank is not None:
            bias, form, kind = dense.bias is not None, form_of(dense), LAYOUTS[plan.layout]
            deployed = _like(dense, kind(layer.in_features, layer.rank, layer.out_features, bias=bias, form=form))
        replace_module(model, layer.name, deployed)
    structure.leave_fast_paths_(model)
    return model
