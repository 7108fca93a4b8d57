"""Vision models at another image size: learned position embeddings are interpolated once, when they are loaded."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

METHOD = "interpolate_pos_encoding"  # what transformers calls it


def at_size(model: Any, size: int | None) -> Any:
    """The model made for images of `size` x `size`, so that it needs no interpolation when it is called.

    The embeddings are those that the model's own `interpolate_pos_encoding` gives (bicubic, after DINO), so its logits
    are those of `model(..., interpolate_pos_encoding=True)`. A model that takes such images as it is (DINOv2 and BEiT
    interpolate by themselves, Swin has no positions), or that cannot interpolate, comes back as it is.

    Args:
        model: a transformers model.
        size: height and width; None keeps the checkpoint's.
    """
    settings = _vision(model.config)
    known = getattr(settings, "image_size", None)
    if size is None or known in (None, size, [size, size], (size, size)) or _takes(model, size):
        return model
    config = deepcopy(model.config)
    _vision(config).image_size = size
    resized = type(model)(config)
    state = model.state_dict()
    other = {name: tensor.shape for name, tensor in resized.state_dict().items() if tensor.shape != state[name].shape}
    owners = {name: found for name in other if (found := _owner(model, name)) is not None}
    if not other or len(owners) < len(other):
        return model
    for name, shape in other.items():  # (1, positions, d), or (positions, d) of an nn.Embedding
        with torch.no_grad():
            table = owners[name].interpolate_pos_encoding(torch.empty(1, *shape[-2:]), size, size)
        state[name] = table.reshape(shape)
    resized.load_state_dict(state)
    return resized.eval()


@torch.no_grad()
def _takes(model: Any, size: int) -> bool:
    channels = getattr(_vision(model.config), "num_channels", 3)
    try:
        model(torch.zeros(1, channels, size, size))
    except (RuntimeError, ValueError):  # as models refuse a size
        return False
    return True


def _vision(config: Any) -> Any:
    """The part of a config that is about images."""
    return getattr(config, "vision_config", config)


def _owner(model: nn.Module, name: str) -> Any | None:
    """The nearest module around a tensor that can interpolate it; None where none can."""
    parts = name.split(".")
    around = (model.get_submodule(".".join(parts[:end])) for end in range(len(parts) - 1, 0, -1))
    return next((module for module in around if hasattr(module, METHOD)), None)
