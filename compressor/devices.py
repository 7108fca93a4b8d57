"""Where models are probed, calibrated and trained: on the NVIDIA GPU that torch sees, else on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def fastest() -> torch.device:
    """The GPU where torch sees one; Trainer trains there too."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """The model there, and on the CPU again afterwards."""
    model.to(fastest())
    try:
        yield
    finally:
        model.to("cpu")


def beside(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch where the model is; as it is beside one without parameters."""
    parameter = next(model.parameters(), None)
    return {key: value if parameter is None else value.to(parameter.device) for key, value in batch.items()}
