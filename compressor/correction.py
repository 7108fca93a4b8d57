"""Layers decomposed anew in the order in which the model calls them, each for what it reads behind compressed ones.

A truncation weighs its errors by the inputs x that a layer reads in the dense model. Once the layers before it are
compressed it reads other inputs x', and the weight that gives the dense outputs from those, in least squares, is

    W' = (W E[x x'^T] + l W) (E[x' x'^T] + l I)^-1,    l = RIDGE times the mean diagonal of E[x' x'^T]

(the thought of SVD-LLM's update, arXiv 2403.07378, taken before the truncation). W' is truncated in W's place, for x'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from compressor import memory, progress
from compressor.calibration import Batch
from compressor.devices import beside
from compressor.forms import Dense, Form, form_of, matrix
from compressor.linalg import SecondMoment
from compressor.methods.base import Method, Moments
from compressor.passes import SHARE
from compressor.planning import Layout, Plan, PlanLayer, break_even
from compressor.recording import rows_of
from compressor.targets import block_of, dense_layer
from compressor.tasks.base import inputs_of

Run = Callable[[nn.Module, Batch], Any]

RIDGE = 0.01
CLOSE = 1e-3  # share of the largest input: what a layer reads may differ by it where a model is run in two ways


def _forward(model: nn.Module, batch: Batch) -> Any:
    return model(**inputs_of(batch))


@torch.no_grad()
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
    not reach it, it sees other rows in the two models (experts that other tokens go to), its core has no `restart_`, or
    the method finds fewer directions than its rank.

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
    """
    layers = {layer.name: layer for layer in plan.layers}
    trained = [(one, one.training) for one in (model, dense)]
    for one, _ in trained:
        one.eval()
    with torch.random.fork_rng():
        calls = _Calls.of(dense, list(layers), beside(dense, next(iter(batches))), loss)
        sample = [beside(dense, batch) for batch in islice(batches, calls.affordable(dense))]
        if isinstance(batches, Sized) and len(sample) < len(batches):
            progress.note(f"Correcting by {len(sample)} of {len(batches)} batches: no more fit into the free memory.")
        with _Chain(dense, calls, sample, loss).kept() as theirs, _Chain(model, calls, sample, loss).kept() as ours:
            for group in progress.track(calls.groups, "correcting"):
                seen = _Seen.of(theirs.inputs(group), ours.inputs(group))
                if seen:
                    for name in group:
                        pair = moments.get(name, Moments())
                        _put_(model, dense_layer(dense, name), method, pair, layers[name], plan.layout, seen)
    for one, training in trained:
        one.train(training)
    return model


def _put_(
    model: nn.Module, dense: Dense, method: Method, pair: Moments, layer: PlanLayer, layout: Layout, seen: _Seen
) -> None:
    """A target's new weight: whole where the plan keeps it dense, else truncated."""
    target: Any = model.get_submodule(layer.name)
    weight = matrix(dense).double().cpu()
    corrected = seen.corrected(weight)  # (m, n)
    if layer.rank is None:
        target.weight.copy_(corrected.reshape(target.weight.shape))
    elif hasattr(target.core, "restart_"):
        limit = break_even(layer.out_features, layer.in_features, layout) - 1
        found = method.subspace(corrected.float(), Moments(SecondMoment(seen.moment.float()), pair.gradient), limit)
        if pair.gradient is not None:
            pair.gradient.forget()
        if len(found.gains) >= layer.rank:
            kept = found.truncate(layer.rank)
            target.restart_(kept.left, kept.core, kept.right)


@dataclass(frozen=True)
class _Seen:
    """What a layer reads on the same rows in the dense model, x, and in the compressed one, x'; float64, on the CPU."""

    crossed: Tensor  # E[x x'^T] (n, n)
    moment: Tensor  # E[x' x'^T] (n, n)

    @classmethod
    def of(cls, theirs: Iterable[Tensor], ours: Iterable[Tensor]) -> _Seen | None:
        """From rows (N, n), batch by batch; None where the two models see different rows, or none."""
        sums, count = list[Tensor](), 0
        for x, y in zip(theirs, ours, strict=True):
            if x.shape != y.shape:
                return None
            if not len(x):
                continue
            found = x.mT @ y, y.mT @ y
            sums = [total + one for total, one in zip(sums, found, strict=True)] if sums else list(found)
            count += len(x)
        return cls(*(total.double().cpu() / count for total in sums)) if count else None

    def corrected(self, weight: Tensor) -> Tensor:
        """W' (m, n) of a weight (m, n)."""
        damping = RIDGE * self.moment.diagonal().mean()
        damped = self.moment + damping * torch.eye(len(self.moment), dtype=self.moment.dtype)
        return torch.linalg.solve(damped, (weight @ self.crossed + damping * weight).mT).mT


@dataclass(frozen=True)
class _Calls:
    """What one batch tells: which targets read one input, in order, how often each is called, and each block."""

    groups: list[list[str]]
    counts: Counter[str]  # by target or block
    forms: dict[str, Form]  # by target
    blocks: dict[str, str]  # by target; empty for one outside of repeated blocks
    bytes: int  # of the batch, and of the largest output of a block in each of two models

    @classmethod
    def of(cls, model: nn.Module, names: Sequence[str], batch: Batch, loss: Run) -> _Calls:
        """From one pass of the dense model."""
        blocks = {name: block_of(model, name) for name in names}
        forms = {name: form_of(model.get_submodule(name)) for name in names}
        counts, read, largest = Counter[str](), list[tuple[str, Tensor]](), 0

        def see(name: str, _module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            nonlocal largest
            counts[name] += 1
            if name in blocks:
                read.append((name, arguments[0]))
            else:
                largest = max(largest, _bytes(output))

        with _hooked(model, {*names, *blocks.values()} - {""}, see):
            loss(model, batch)
        groups: dict[tuple[int, Form] | str, list[str]] = {}
        for name, x in read:
            key = (id(x), forms[name]) if counts[name] == 1 else name
            if name not in groups.setdefault(key, []):
                groups[key].append(name)
        return cls(list(groups.values()), counts, forms, blocks, _bytes(batch) + 2 * largest)

    def affordable(self, model: nn.Module) -> int:
        """How many batches to read."""
        return max(1, int(SHARE * memory.free(next(model.parameters()).device) // max(1, self.bytes)))


class _Reached(Exception):
    """The layer that a pass was for has been called."""


class _Chain:
    """A model that runs over a sample up to one of its layers.

    A block that is left behind is not run again but gives what it gave. Of the blocks of one list only the last one's
    outputs are kept: the others' are nothing but its inputs. Where that is not so, whole passes are made.
    """

    def __init__(self, model: nn.Module, calls: _Calls, sample: Sequence[Batch], loss: Run) -> None:
        self.model, self.calls, self.sample, self.loss = model, calls, sample, loss
        self.given: dict[str, list[Any]] = {}  # by the name of the list: an output of its last block for each batch
        self.replaced: dict[str, nn.Module] = {}
        self.block, self.number, self.follows = "", 0, True

    @contextmanager
    def kept(self) -> Iterator[_Chain]:
        """Afterwards the model is what it was."""
        try:
            yield self
        finally:
            self._release()

    def inputs(self, group: Sequence[str]) -> Iterator[Tensor]:
        """The rows (N, n) that a group of targets reads in each batch, without padding."""
        name, block = group[0], self.calls.blocks[group[0]]
        if block != self.block:
            if self.follows and self.calls.counts[self.block] == 1:
                self._leave(self.block, name)
            self.block = block
        to_rows = self.calls.forms[name].inputs
        for number, batch in enumerate(self.sample):
            found = [rows_of(to_rows(x), batch.get("attention_mask")) for x, _ in self._until(number, name)]
            yield torch.cat(found).float() if found else torch.empty(0)

    def _until(self, number: int, name: str) -> list[tuple[Tensor, Any]]:
        """Input and output of every call of a module on one batch."""
        found = list[tuple[Any, Any]]()

        def see(_name: str, _module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            found.append((arguments[0] if arguments else None, output))
            if len(found) == self.calls.counts[name]:
                raise _Reached

        self.number = number
        torch.manual_seed(number)
        with _hooked(self.model, {name}, see), suppress(_Reached):
            self.loss(self.model, self.sample[number])
        return found

    def _leave(self, block: str, following: str) -> None:
        """Replay a block from here on, unless what the next target reads is not the same then."""
        read = self._until(0, following)
        self.given[block.rpartition(".")[0]] = [self._until(number, block)[0][1] for number in range(len(self.sample))]
        self.replaced[block] = module = self.model.get_submodule(block)
        module.forward = partial(self._replay, block.rpartition(".")[0])
        self.follows = self._gives(read, following)
        if not self.follows:
            self._release()

    def _gives(self, read: Sequence[tuple[Tensor, Any]], following: str) -> bool:
        """Whether a target reads that on the first batch, close enough."""
        try:
            found = self._until(0, following)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):  # of what stands between blocks
            return False
        pairs = zip((x for x, _ in read), (y for y, _ in found), strict=True)
        return all(x.shape == y.shape and float((x - y).abs().max()) <= CLOSE * float(x.abs().max()) for x, y in pairs)

    def _replay(self, blocks: str, *_: Any, **__: Any) -> Any:
        return tree_map_only(Tensor, Tensor.clone, self.given[blocks][self.number])  # it may be changed in place

    def _release(self) -> None:
        for module in self.replaced.values():
            del module.forward
        self.replaced.clear()
        self.given.clear()


@contextmanager
def _hooked(model: nn.Module, names: Iterable[str], see: Any) -> Iterator[None]:
    """`see(name, module, arguments, output)` after every call of the modules called so."""
    handles = [model.get_submodule(name).register_forward_hook(partial(see, name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bytes(found: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(found) if isinstance(leaf, Tensor))
