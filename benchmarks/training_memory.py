"""What training holds in memory, counted exactly on one batch: the same on every machine, and without noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

COPIES = 2  # that AdamW keeps of every trained number


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
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step()
    activations = sum(size for place, size in kept.items() if place not in own)
    del loss
    trained = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
    parts = {
        "weights": sum(own.values()),
        "gradients": trained,
        "optimizer": COPIES * trained,
        "activations": activations,
    }
    return parts | {"peak": sum(parts.values())}


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
