"""Where models are probed, calibrated and trained: on the NVIDIA GPU that torch sees, else on the CPU."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def fastest() -> torch.device:
    """The GPU where torch sees one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def described() -> str:
    """What `fastest` is, for people."""
    return torch.cuda.get_device_name() if fastest().type == "cuda" else "the CPU"


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """The model there, and on the CPU again afterwards; what else of the GPU's memory is free then, others may have."""
    model.to(fastest())
    try:
        yield
    finally:
        model.to("cpu")
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            gc.collect()  # trainers, whose optimizers have been there, lie in cycles
            torch.cuda.empty_cache()


@contextmanager
def exact() -> Iterator[None]:
    """Convolutions and recurrent layers of float32 in all of its bits on a GPU too, as products of matrices are.

    Else they are computed in TF32, which keeps ten bits of each number.
    """
    cudnn: Any = torch.backends.cudnn
    layers = (cudnn.conv, cudnn.rnn)
    before = [layer.fp32_precision for layer in layers]
    for layer in layers:
        layer.fp32_precision = "ieee"
    try:
        yield
    finally:
        for layer, precision in zip(layers, before, strict=True):
            layer.fp32_precision = precision


def fork_rng(model: nn.Module) -> AbstractContextManager[None]:
    """Random numbers that are drawn within, on the CPU and where the model is, change none that are drawn later."""
    devices = {parameter.device for parameter in model.parameters()}
    return torch.random.fork_rng([device for device in devices if device.type == "cuda"])


def beside(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch where the model is; as it is beside one without parameters."""
    parameter = next(model.parameters(), None)
    return {key: value if parameter is None else value.to(parameter.device) for key, value in batch.items()}


def wide(tensor: Tensor) -> Tensor:
    """In float64; on the CPU where its device has none, as Apple's has not."""
    return tensor.double() if tensor.device.type in ("cpu", "cuda") else tensor.cpu().double()
