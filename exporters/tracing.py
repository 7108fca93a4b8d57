"""What is traced of a model: its logits from its inputs or, of a decoder, from tokens and a key-value cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ExportError
from exporters.feed import PAST, POSITIONS, PRESENT
from exporters.verify import Inputs, is_sequence, logits_of

BATCH, SEQUENCE = "batch_size", "sequence_length"  # as optimum names them
TOTAL = "total_sequence_length"  # past and present together, so no axis of its own
PAST_LENGTH = "past_sequence_length"
LENGTH = 5  # of the cache that a decoder is traced with; any that is no other axis' length
PARTS = ("key", "value")


@dataclass(frozen=True)
class Tracing:
    """A module whose forward takes `*values`, and their names: what an exporter needs beside its own format."""

    module: nn.Module
    inputs: Inputs
    outputs: tuple[str, ...]
    axes: Mapping[str, Mapping[int, str]]  # the free axes of each input


def require_free(fixed: Sequence[str]) -> None:
    """Raises ExportError where an exporter has quietly fixed axes ("sequence_length of input_ids to 7")."""
    if fixed:
        raise ExportError(
            f"The export fixed {', '.join(fixed)}: the model's forward turns this size into a constant. Keep sizes "
            "symbolic there: no int() of a size, no branch on it, no layer made for one length."
        )


def tracing_of(model: nn.Module, example: Inputs, cache: bool = True) -> Tracing:
    """The model's logits; with a cache where it generates, unless `cache` is off.

    Raises:
        ExportError: it generates and is no decoder, or its cache is not one of keys and values per layer.
    """
    return _cached(model, example) if cache and generates(model) else _plain(model, example)


def generates(model: nn.Module) -> bool:
    """Whether the model continues a text, so that it has a cache."""
    found: Any = getattr(model, "can_generate", None)
    return callable(found) and bool(found())


class _Logits(nn.Module):
    """The model with positional inputs and nothing but logits: caches and hidden states never become outputs."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Tensor) -> Tensor:
        return logits_of(self.model(**dict(zip(self.names, values, strict=True))))


def _plain(model: nn.Module, example: Inputs) -> Tracing:
    axes = {name: dict(enumerate((BATCH, SEQUENCE)[: 1 + is_sequence(value)])) for name, value in example.items()}
    return Tracing(_Logits(model, tuple(example)), example, ("logits",), axes)


class _Cached(nn.Module):
    """(input_ids, attention_mask, position_ids, *past) -> (logits, *present).

    `attention_mask (B, P + T)` covers the cache too; `position_ids (B, T)` count from the first real token.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, T, V), then keys and values (B, heads, P + T, d) of each layer."""
        from transformers import DynamicCache

        input_ids, attention_mask, position_ids, *past = values
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=DynamicCache(tuple(zip(past[::2], past[1::2], strict=True))),
            use_cache=True,
        )
        return (output.logits, *_flat(output.past_key_values))


def _cached(model: nn.Module, example: Inputs) -> Tracing:
    """The example's tokens (B, T) behind a cache of random keys and values."""
    if getattr(model.config, "is_encoder_decoder", False) or "input_ids" not in example:
        raise ExportError(
            f"{type(model).__name__} generates from more than a text: it has an encoder, or reads no `input_ids`. Of "
            "models that generate, only decoders can be exported, which have one cache of keys and values per layer."
        )
    ids = example["input_ids"]
    shapes = _cache_shapes(model, ids)
    past = [torch.randn(len(ids), heads, LENGTH, size, device=ids.device) for heads, size in shapes]
    mask = torch.cat([ids.new_ones(len(ids), LENGTH), torch.ones_like(ids)], dim=1)  # (B, P + T)
    positions = torch.arange(LENGTH, LENGTH + ids.shape[1], device=ids.device).repeat(len(ids), 1)  # (B, T)
    tokens = {"input_ids": ids, "attention_mask": mask, POSITIONS: positions}
    inputs = tokens | dict(zip(_names(PAST, len(shapes) // 2), past, strict=True))
    fresh = {"input_ids": SEQUENCE, POSITIONS: SEQUENCE, "attention_mask": TOTAL}  # (B, T), the others (B, heads, P, d)
    axes = {name: {0: BATCH} | ({1: fresh[name]} if name in fresh else {2: PAST_LENGTH}) for name in inputs}
    return Tracing(_Cached(model), inputs, ("logits", *_names(PRESENT, len(shapes) // 2)), axes)


def _cache_shapes(model: nn.Module, ids: Tensor) -> list[tuple[int, int]]:
    """Heads and size of each layer's keys and values."""
    with torch.no_grad():
        cache = getattr(model(input_ids=ids, use_cache=True), "past_key_values", None)
    try:
        return [(tensor.shape[1], tensor.shape[3]) for tensor in _flat(cache)]
    except (AttributeError, IndexError, TypeError) as error:
        raise ExportError(
            f"The cache of {type(model).__name__} is a {type(cache).__name__}, not keys and values (B, heads, P, d) of "
            "each layer. Only such caches can be exported."
        ) from error


def _names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in PARTS]


def _flat(cache: Any) -> Iterator[Tensor]:
    for layer in cache.layers:
        yield layer.keys
        yield layer.values
