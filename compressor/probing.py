"""The head's probe: a classifier's new layers are trained alone, since gradients behind a random head mean nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressor import progress
from compressor.calibration import Batch, model_loss
from compressor.devices import beside
from compressor.targets import head_parameters

EPOCHS = 4  # passes of the whole model
REPLAYED = 20  # passes of a head that is replayed from what it read in one pass
MOST = 2**30  # bytes of what it read that are kept


def probe_head_(model: nn.Module, batches: Sequence[Batch], *, learning_rate: float = 3e-3) -> None:
    """Train the head alone on a frozen encoder, without dropout.

    Where the head is a module of its own that gives the logits, the encoder runs once over the batches, and the head
    is trained on what it read; else the whole model runs in every epoch. A model without a new head, such as a language
    model, is left as it is.

    Args:
        model: a dense transformers model.
        batches: padded batches with `labels`; seen in a new order every epoch.
        learning_rate: of AdamW, at the beginning; it falls to nothing.
    """
    head = list(head_parameters(model).values())
    if not head:
        return
    with _only_trains(model, head):
        model.eval()
        replayed = _replayed(model, batches)
        if replayed:
            _descend(head, replayed, REPLAYED, learning_rate)
        else:
            _descend(head, _Whole(model, batches), EPOCHS, learning_rate)


class _Whole(Sequence[Callable[[], Tensor]]):
    """The loss of each batch through the whole model; batches are made when they are asked for."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        self.model, self.batches = model, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: Any) -> Any:
        return partial(model_loss, self.model, beside(self.model, self.batches[number]))


def _descend(
    head: Sequence[nn.Parameter], losses: Sequence[Callable[[], Tensor]], epochs: int, learning_rate: float
) -> None:
    optimizer = torch.optim.AdamW(head, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * len(losses))
    order = [number for _ in range(epochs) for number in torch.randperm(len(losses)).tolist()]
    for number in progress.track(order, "probing the head"):
        losses[number]().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def _replayed(model: nn.Module, batches: Sequence[Batch]) -> list[Callable[[], Tensor]] | None:
    """The loss of each batch from what the head reads of it; None where it has to come through the whole model."""
    head = _owner(model)
    if head is None or not len(batches):
        return None
    losses: list[Callable[[], Tensor]] = []
    for batch in progress.track(batches, "encoding for the head"):
        batch = beside(model, batch)
        whole, calls = _read(model, head, batch)
        if len(calls) != 1 or _bytes(calls[0]) * len(batches) > MOST:
            return None
        losses.append(_loss(head, calls[0], batch["labels"]))
        if len(losses) == 1 and not _same(losses[0], whole):
            return None
    return losses


def _owner(model: nn.Module) -> nn.Module | None:
    """The smallest module that all of the head lies in, if nothing else does."""
    names = head_parameters(model)
    path = _common([name.rpartition(".")[0] for name in names])
    owner = model.get_submodule(path)
    alone = {f"{path}.{name}" for name, _ in owner.named_parameters()} == set(names)
    return owner if path and alone else None


def _common(names: Sequence[str]) -> str:
    """The longest path that all names begin with."""
    shared = []
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _read(model: nn.Module, head: nn.Module, batch: Batch) -> tuple[Tensor, list[tuple[Any, Any]]]:
    """The model's loss, and the arguments of each call of the head."""
    calls: list[tuple[Any, Any]] = []
    hook = head.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    try:
        with torch.no_grad():
            return model_loss(model, batch), calls
    finally:
        hook.remove()


def _bytes(call: tuple[Any, Any]) -> int:
    args, kwargs = call
    return sum(one.numel() * one.element_size() for one in (*args, *kwargs.values()) if isinstance(one, Tensor))


def _loss(head: nn.Module, call: tuple[Any, Any], labels: Tensor) -> Callable[[], Tensor]:
    args, kwargs = call
    kept = tuple(one.clone() if isinstance(one, Tensor) else one for one in args)  # a view would keep all tokens
    return lambda: nn.functional.cross_entropy(head(*kept, **kwargs), labels)


def _same(loss: Callable[[], Tensor], whole: Tensor) -> bool:
    """Whether the head's output is the logits, and the model's loss their cross entropy."""
    try:
        with torch.no_grad():
            return torch.allclose(loss(), whole, rtol=1e-4, atol=1e-6)
    except (RuntimeError, TypeError, ValueError, IndexError):  # not of the shape or type of logits
        return False


class _only_trains:  # noqa: N801 (a context manager, read as a verb)
    """Within it, only the given parameters require gradients; afterwards all are as before."""

    def __init__(self, model: nn.Module, chosen: Sequence[nn.Parameter]) -> None:
        self.model, self.chosen = model, chosen

    def __enter__(self) -> None:
        self.before = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        self.model.requires_grad_(False)
        for parameter in self.chosen:
            parameter.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for parameter, trained in self.before.items():
            parameter.requires_grad_(trained)
