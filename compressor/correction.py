"""Layers decomposed anew in the order in which the model calls them, each for what it reads behind compressed ones.

A truncation weighs its errors by the inputs x that a layer reads in the dense model. Once the layers before it are
compressed it reads other inputs x', and the weight that gives the dense outputs from those, in least squares, is

    W' = (W E[x x'^T] + l W) (E[x' x'^T] + l I)^-1,    l = RIDGE times the mean diagonal of E[x' x'^T]

(the thought of SVD-LLM's update, arXiv 2403.07378, taken before the truncation). W' is truncated in W's place, for x'.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from compressor import memory, progress
from compressor.calibration import Batch
from compressor.devices import beside, fork_rng
from compressor.errors import DataError, ModelError, some
from compressor.forms import Dense, matrix
from compressor.layers import CoreLinear
from compressor.methods.base import Method, Moments
from compressor.metrics import SecondMoment
from compressor.passes import SHARE
from compressor.planning import Plan, PlanLayer
from compressor.running import Calls, Chain, Run, settled, size_of
from compressor.targets import dense_layer
from compressor.tasks.base import inputs_of

RIDGE = 0.01
AGREEMENT = 0.5  # least cosine between what a layer reads in two models: of rows that belong together


def _forward(model: nn.Module, batch: Batch) -> Any:
    return model(**inputs_of(batch))


def correct_(
    model: nn.Module,
    dense: nn.Module,
    method: Method,
    moments: Mapping[str, Moments],
    plan: Plan,
    batches: Iterable[Batch],
    *,
    loss: Run = _forward,
) -> nn.Module:
    """Decompose the planned targets of an untrained factorized model anew, in order; those kept dense change as well.

    Both models are run in evaluation mode. A target stays as it is where nothing can be compared: the first batch does
    not reach it, it sees zeros alone or other rows in the two models (experts that other tokens go to), its core has no
    `restart_`, or the method finds fewer directions than its rank.

    Args:
        model: from `factorize_`, on the device of `dense`.
        dense: what it was made of.
        method: what it was made by.
        moments: from `calibrate`, by target; those of the gradients weigh the new truncation as they did the old one.
        plan: its ranks.
        batches: the calibration's; as many of them are read as fit, beside two models' hidden states, into half of the
            free memory.
        loss: (model, batch) -> anything, by which a model is run: what `calibrate` got, or by default the model on what
            of a batch is no label. Random numbers that it draws are the same for both models.

    Raises:
        DataError: no batch.
        ModelError: a target of the plan is not factorized yet, or folded already.
    """
    odd = [name for name in plan.ranks if not isinstance(model.get_submodule(name), CoreLinear)]
    if odd:
        raise ModelError(
            f"Not to be corrected: {some(odd)} of the plan have no trained "
            "core. Call correct_ between factorize_ and fold_."
        )
    layers = {layer.name: layer for layer in plan.layers}
    with fork_rng(dense), settled(dense), settled(model):
        rest = iter(batches)
        first = next(rest, None)
        if first is None:
            raise DataError("There is no batch to correct the layers by: give at least one.")
        calls = Calls.of(dense, list(layers), beside(dense, first), loss)
        each = calls.bytes / size_of(first)  # of a byte of a batch
        sample = _affordable(dense, batches if isinstance(batches, Sequence) else chain([first], rest), each)
        if isinstance(batches, Sized) and len(sample) < len(batches):
            progress.note(f"Correcting by {len(sample)} of {len(batches)} batches: no more fit into the free memory.")
        with Chain(dense, calls, sample, loss).kept() as theirs, Chain(model, calls, sample, loss).kept() as ours:
            for group in progress.track(calls.groups, "correcting"):
                seen = _Seen.of(theirs.inputs(group), ours.inputs(group))
                if seen is None:
                    continue
                for name in group:
                    _put_(model, dense_layer(dense, name), method, moments.get(name, Moments()), layers[name], seen)
    return model


def _affordable(model: nn.Module, batches: Iterable[Batch], each: float) -> list[Batch]:
    """As many batches as fit into memory, beside the model, where one takes `each` times its bytes; at least one.

    Of a sequence, which may begin with the shortest texts, they are from all over it.
    """
    most, found = SHARE * memory.free(next(model.parameters()).device), list[Batch]()
    if isinstance(batches, Sequence):
        fitting = most / (each * size_of(batches[len(batches) // 2]))
        stride = min(len(batches), math.ceil(len(batches) / max(1.0, fitting)))
        batches = map(batches.__getitem__, range(stride // 2, len(batches), stride))
    for batch in batches:
        most -= each * size_of(batch)
        if found and most < 0:
            break
        found.append(beside(model, batch))
    return found


def _put_(model: nn.Module, dense: Dense, method: Method, pair: Moments, layer: PlanLayer, seen: _Seen) -> None:
    """A target's new weight: whole where the plan keeps it dense, else truncated."""
    target: Any = model.get_submodule(layer.name)
    corrected = seen.corrected(matrix(dense).cpu().double())  # (m, n)
    if layer.rank is None:
        target.weight.copy_(corrected.reshape(target.weight.shape))
    elif hasattr(target.core, "restart_"):
        found = method.subspace(corrected.float(), Moments(seen.input, pair.gradient), layer.break_even - 1)
        if pair.gradient is not None:
            pair.gradient.forget()
        if len(found.gains) >= layer.rank:
            kept = found.truncate(layer.rank)
            target.restart_(kept.left, kept.core, kept.right)


@dataclass(frozen=True)
class _Seen:
    """What layers read on the same rows in the dense model, x, and in the compressed one, x'; float64, on the CPU."""

    crossed: Tensor  # E[x x'^T] (n, n)
    moment: Tensor  # E[x' x'^T] (n, n)

    @classmethod
    def of(cls, theirs: Iterable[Tensor], ours: Iterable[Tensor]) -> _Seen | None:
        """From rows (N, n), batch by batch; None where the two models see different rows, none, or nothing but zeros.

        That rows are different is told by their number, or by how little they agree.
        """
        sums, size, count = list[Tensor](), 0.0, 0
        for x, y in zip(theirs, ours, strict=True):
            if x.shape != y.shape:
                return None
            if not len(x):
                continue
            found = x.mT @ y, y.mT @ y
            sums = [total + one for total, one in zip(sums, found, strict=True)] if sums else list(found)
            size += float(x.square().sum())
            count += len(x)
        if not count:
            return None
        crossed, moment = (total.cpu().double() for total in sums)
        alike = crossed.trace() > AGREEMENT * (size * moment.trace()) ** 0.5  # not where anything is not finite, too
        return cls(crossed / count, moment / count) if alike else None

    @cached_property
    def input(self) -> SecondMoment:
        """E[x' x'^T] as methods take it; one object, so that the layers of a group share its decomposition."""
        return SecondMoment(self.moment.float())

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """The damped moment's LU factors, once for a group."""
        return torch.linalg.lu_factor(self.moment + self._damping * torch.eye(len(self.moment), dtype=torch.float64))

    @property
    def _damping(self) -> Tensor:
        return RIDGE * self.moment.diagonal().mean()

    def corrected(self, weight: Tensor) -> Tensor:
        """W' (m, n) of a weight (m, n)."""
        return torch.linalg.lu_solve(*self._factors, (weight @ self.crossed + self._damping * weight).mT).mT
