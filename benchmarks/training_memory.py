"""What training holds in memory, counted exactly on one batch: the same on every machine, and without noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

COPIES = 2  # that AdamW keeps of every trained number
SAVED = "_saved_"  # begins the names of what a step of the graph holds for its gradient


def training_bytes(model: nn.Module, step: Callable[[], Tensor]) -> dict[str, int]:
    """Bytes of weights, gradients, AdamW's state, and of the tensors that the backward pass of `step` needs.

    Args:
        model: in training mode, what is trained requiring gradients.
        step: () -> the loss, (). Tensors of the model that it keeps for the backward pass are counted once, as weights.

    Returns:
        weights, gradients, optimizer, activations, and their sum `peak`. Short-lived buffers of single operations and
        what a library allocates ahead are not in it.
    """
    own = _storages([*model.parameters(), *model.buffers()])
    kept = _storages(saved(step()))
    trained = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
    parts = {
        "weights": sum(own.values()),
        "gradients": trained,
        "optimizer": COPIES * trained,
        "activations": sum(size for place, size in kept.items() if place not in own),
    }
    return parts | {"peak": sum(parts.values())}


def further_bytes(model: nn.Module, beside: nn.Module) -> int:
    """Bytes of a model's weights that are not those of another too."""
    ours, theirs = (_storages([*one.parameters(), *one.buffers()]) for one in (model, beside))
    return sum(size for place, size in ours.items() if place not in theirs)


def saved(loss: Tensor) -> list[Tensor]:
    """All tensors that the graph behind a loss holds for its backward pass."""
    return [tensor for step in _steps(loss.grad_fn) for tensor in _tensors(_held(step))]


def _steps(first: Any) -> Iterator[Any]:
    """Every step of a graph, from its end."""
    seen, waiting = set[Any](), [first]
    while waiting:
        step = waiting.pop()
        if step is not None and step not in seen:
            seen.add(step)
            yield step
            waiting += [earlier for earlier, _ in step.next_functions]


def _held(step: Any) -> Iterator[Any]:
    """What a step of torch's own, or one of a custom function, holds."""
    yield from (getattr(step, name) for name in dir(step) if name.startswith(SAVED))
    yield getattr(step, "saved_tensors", ())


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
