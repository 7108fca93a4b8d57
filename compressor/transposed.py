"""Linear layers that hold their weight the other way round: transformers' Conv1D, which GPT-2 and its kin are made of.

They are read as nn.Linear, and what takes their place in a compressed model is made of nn.Linear.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn


def as_linear(module: nn.Module | None) -> nn.Linear | None:
    """An nn.Linear as it is, a Conv1D with weight (in, out) as a new nn.Linear with a copy of it, None for the rest."""
    if isinstance(module, nn.Linear):
        return module
    if module is None or not is_transposed(module):
        return None
    held: Any = module
    in_features, out_features = held.weight.shape
    layer = nn.Linear(in_features, out_features, bias=False, device="meta")
    weight = held.weight.detach().mT.contiguous()  # (out, in)
    layer.weight = nn.Parameter(weight, requires_grad=held.weight.requires_grad)
    layer.bias = held.bias
    return layer.train(held.training)


def is_transposed(module: nn.Module) -> bool:
    """Whether it is a Conv1D; a model that has one has imported its class."""
    home = sys.modules.get("transformers.pytorch_utils")
    return home is not None and isinstance(module, home.Conv1D)
