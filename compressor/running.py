"""How a model is run to look into it: settled, and over a sample up to one of its layers, finished blocks replayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from compressor.calibration import Batch
from compressor.forms import Form
from compressor.recording import Recorder, evaluating, input_of, rows_of
from compressor.targets import block_of

Run = Callable[[nn.Module, Batch], Any]
What = Callable[[tuple[Any, ...], Mapping[str, Any], Any], Any]  # of the arguments and the output of a call

CLOSE = 1e-3  # share of the largest input: what a layer reads may differ by it where a model is run in two ways
ODD = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)  # of blocks that are not run


@contextmanager
def settled(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients; its modules' modes are put back afterwards."""
    with evaluating(model), torch.no_grad():
        yield


@dataclass(frozen=True)
class Calls:
    """What one batch tells: which targets read one input, in order, how often each is called, and each block."""

    groups: list[list[str]]
    counts: Counter[str]  # by target or block
    forms: dict[str, Form]  # by target
    blocks: dict[str, str]  # by target; empty for one outside of repeated blocks
    bytes: int  # of the batch, and of the largest output of a block of each list in each of two models

    @classmethod
    def of(cls, model: nn.Module, names: Sequence[str], batch: Batch, loss: Run) -> Calls:
        """From one pass of the dense model."""
        blocks = {name: block_of(model, name) for name in names}
        recorders = {name: Recorder(model.get_submodule(name)) for name in names}
        counts, largest = Counter[str](), dict[str, int]()

        def see(name: str, module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
            counts[name] += 1
            if name in recorders:
                recorders[name](module, given, named, output)
            if name in blocks.values():
                largest[_list_of(name)] = max(largest.get(_list_of(name), 0), size_of(output))

        with _hooked(model, {*names, *blocks.values()} - {""}, see):
            loss(model, batch)
        groups: dict[tuple[int, int, Form] | str, list[str]] = {}
        for name in counts:  # in the order of their first calls
            if name in recorders:
                first, *more = recorders[name].calls
                groups.setdefault(name if more else (*first.source, recorders[name].form), []).append(name)
        forms = {name: recorder.form for name, recorder in recorders.items()}
        return cls(list(groups.values()), counts, forms, blocks, size_of(batch) + 2 * sum(largest.values()))


class _Reached(Exception):
    """The layer that a pass was for has been called."""


class Chain:
    """A model that runs over a sample up to one of its layers.

    A block that is left behind is not run again but gives what it gave. Of the blocks of one list only the last one's
    outputs are kept: the others' are nothing but its inputs. Where that is not so, whole passes are made: what each
    block reads is compared on the first batch before one is left.
    """

    def __init__(self, model: nn.Module, calls: Calls, sample: Sequence[Batch], loss: Run) -> None:
        self.model, self.calls, self.sample, self.loss = model, calls, sample, loss
        self.given: dict[str, list[Any]] = {}  # by the name of the list: an output of its last block for each batch
        self.replaced: dict[str, Any] = {}  # by the name of the block: a forward of its own, where it had one
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
                self._leave(self.block, self._together(group))
            self.block = block
        to_rows = self.calls.forms[name].inputs
        for number, batch in enumerate(self.sample):
            found = [rows_of(to_rows(x), batch.get("attention_mask")) for x in self._calls(number, name, _read)]
            yield torch.cat(found).float() if found else torch.empty(0)

    def _together(self, group: Sequence[str]) -> list[str]:
        """The first of each group from one on, as long as they lie in its block."""
        groups, block = self.calls.groups, self.calls.blocks[group[0]]
        following = groups[groups.index([*group]) :]
        return [one[0] for one in takewhile(lambda one: self.calls.blocks[one[0]] == block, following)]

    def _calls(self, number: int, name: str, what: What) -> list[Any]:
        """What every call of a module on one batch reads, or gives."""
        try:
            return self._seen(number, [name], what)[name]
        except ODD:  # of what stands between blocks, on this batch
            if not self.replaced:
                raise
            self._give_up()
            return self._seen(number, [name], what)[name]

    def _seen(self, number: int, names: Sequence[str], what: What) -> dict[str, list[Any]]:
        """The same of several modules, in one pass that ends when all of them have been called."""
        found: dict[str, list[Any]] = {name: [] for name in names}

        def see(name: str, _module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
            found[name].append(what(given, named, output))
            if all(len(calls) == self.calls.counts[one] for one, calls in found.items()):
                raise _Reached

        self.number = number
        torch.manual_seed(number)
        with _hooked(self.model, names, see), suppress(_Reached):
            self.loss(self.model, dict(self.sample[number]))
        return found

    def _leave(self, block: str, following: Sequence[str]) -> None:
        """Replay a block from here on, unless what the targets of the next one read is not the same then."""
        blocks, module = _list_of(block), self.model.get_submodule(block)
        given = self.given.setdefault(blocks, [None] * len(self.sample))
        for number in range(len(self.sample)):
            outputs = self._calls(number, block, _gave)
            if not self.follows or len(outputs) != 1:
                self._give_up()
                return
            given[number] = outputs[0]  # in the place of the block before, which is not run on this batch again
        with self._whole():
            read = self._seen(0, following, _read)
        self.replaced[block] = vars(module).get("forward")
        module.forward = partial(self._replay, blocks)
        if not self._gives(read, following):
            self._give_up()

    def _gives(self, read: Mapping[str, list[Any]], following: Sequence[str]) -> bool:
        """Whether targets read that on the first batch, close enough."""
        try:
            found = self._seen(0, following, _read)
        except ODD:
            return False
        same = all(len(read[name]) == len(found[name]) for name in following)
        return same and all(_close(x, y) for name in following for x, y in zip(read[name], found[name], strict=True))

    def _replay(self, blocks: str, *_: Any, **__: Any) -> Any:
        return tree_map_only(Tensor, Tensor.clone, self.given[blocks][self.number])  # it may be changed in place

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """No block is replayed meanwhile."""
        replaying = {block: self.model.get_submodule(block).forward for block in self.replaced}
        self._restore()
        try:
            yield
        finally:
            for block, forward in replaying.items():
                self.model.get_submodule(block).forward = forward

    def _restore(self) -> None:
        for block, own in self.replaced.items():
            module = self.model.get_submodule(block)
            if own is None:
                del module.forward
            else:
                module.forward = own

    def _give_up(self) -> None:
        """Whole passes from here on."""
        self.follows = False
        self._release()

    def _release(self) -> None:
        self._restore()
        self.replaced.clear()
        self.given.clear()


def _read(given: tuple[Any, ...], named: Mapping[str, Any], _output: Any) -> Any:
    return input_of(given, named)


def _gave(_given: tuple[Any, ...], _named: Mapping[str, Any], output: Any) -> Any:
    return output


def _list_of(block: str) -> str:
    return block.rpartition(".")[0]


def _close(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape:
        return False
    return not x.numel() or float((x - y).abs().max()) <= CLOSE * float(x.abs().max())


@contextmanager
def _hooked(model: nn.Module, names: Iterable[str], see: Any) -> Iterator[None]:
    """`see(name, module, arguments, named, output)` after every call of the modules called so."""
    handles = [model.get_submodule(name).register_forward_hook(partial(see, name), with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def size_of(found: Any) -> int:
    """Bytes of all tensors in it."""
    return sum(leaf.nbytes for leaf in tree_leaves(found) if isinstance(leaf, Tensor))
