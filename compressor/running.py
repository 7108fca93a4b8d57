"""How a model is run to look into it: settled, and over a sample up to one of its layers, finished blocks replayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from compressor.calibration import Batch
from compressor.forms import Form, form_of
from compressor.recording import rows_of
from compressor.targets import block_of

Run = Callable[[nn.Module, Batch], Any]

CLOSE = 1e-3  # share of the largest input: what a layer reads may differ by it where a model is run in two ways


@contextmanager
def settled(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients; its modules' modes are put back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class Calls:
    """What one batch tells: which targets read one input, in order, how often each is called, and each block."""

    groups: list[list[str]]
    counts: Counter[str]  # by target or block
    forms: dict[str, Form]  # by target
    blocks: dict[str, str]  # by target; empty for one outside of repeated blocks
    bytes: int  # of the batch, and of the largest output of a block in each of two models

    @classmethod
    def of(cls, model: nn.Module, names: Sequence[str], batch: Batch, loss: Run) -> Calls:
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


class _Reached(Exception):
    """The layer that a pass was for has been called."""


class Chain:
    """A model that runs over a sample up to one of its layers.

    A block that is left behind is not run again but gives what it gave. Of the blocks of one list only the last one's
    outputs are kept: the others' are nothing but its inputs. Where that is not so, whole passes are made.
    """

    def __init__(self, model: nn.Module, calls: Calls, sample: Sequence[Batch], loss: Run) -> None:
        self.model, self.calls, self.sample, self.loss = model, calls, sample, loss
        self.given: dict[str, list[Any]] = {}  # by the name of the list: an output of its last block for each batch
        self.replaced: dict[str, nn.Module] = {}
        self.block, self.number, self.follows = "", 0, True

    @contextmanager
    def kept(self) -> Iterator[Chain]:
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
