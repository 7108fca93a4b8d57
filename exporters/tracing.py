"""What is traced of a model: its logits from its inputs or, of a decoder, from tokens and a key-value cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._sympy.value_ranges import bound_sympy

from compressor.errors import ExportError
from exporters.feed import PAST, POSITIONS, PRESENT
from exporters.verify import ENDLESS, RELATIVE, Inputs, Spans, logits_of, sequences

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

    @property
    def sizes(self) -> frozenset[str]:
        """The names of the free sizes."""
        return frozenset(size for free in self.axes.values() for size in free.values())


def require_free(fixed: Sequence[str]) -> None:
    """Raises ExportError where an exporter has quietly fixed axes ("sequence_length of input_ids to 7")."""
    if fixed:
        raise ExportError(
            f"The export fixed {', '.join(fixed)}: the model's forward turns this size into a constant. Keep sizes "
            "symbolic there: no int() of a size, no branch on it, no layer made for one length."
        )


def free_sizes(program: torch.export.ExportedProgram, tracing: Tracing) -> Iterator[tuple[str, int, str, Any]]:
    """Of each free axis: its input, its number, the name of its size, and what torch made of that."""
    found = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"}
    for place, (name, free) in zip(program.graph_signature.user_inputs, tracing.axes.items(), strict=True):
        yield from ((name, axis, size, found[place][axis]) for axis, size in free.items())


def spans(program: torch.export.ExportedProgram, tracing: Tracing) -> Spans:
    """For how many tokens a program is sure to be the traced module, in whose place torch put it."""
    found: dict[int, tuple[int, int]] = {}
    for name, axis, size, given in free_sizes(program, tracing):
        if size.startswith(SEQUENCE):
            length, span = tracing.inputs[name].shape[axis], bound_sympy(given.node.expr, program.range_constraints)
            least, most = found.get(length, (0, ENDLESS))
            found[length] = (max(least, int(span.lower)), int(min(most, span.upper)))
    return found


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
    """The model with positional inputs and nothing but logits: caches and hidden states never become outputs.

    A cache is not even made: one of a sliding window branches on the text's length.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.settings = {"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}

    def forward(self, *values: Tensor) -> Tensor:
        return logits_of(self.model(**dict(zip(self.names, values, strict=True)), **self.settings))


def _plain(model: nn.Module, example: Inputs) -> Tracing:
    """Inputs of one length share the name of its size: sequence_length, the next one's is sequence_length_2."""
    lengths = sequences(example)
    names = {length: f"{SEQUENCE}_{number}" for number, length in enumerate(dict.fromkeys(lengths.values()), 1)}
    names |= dict.fromkeys(list(names)[:1], SEQUENCE)
    axes = {name: {0: BATCH} | ({1: names[lengths[name]]} if name in lengths else {}) for name in example}
    return Tracing(_Logits(model, tuple(example)), example, ("logits",), axes)


class _Cached(nn.Module):
    """(input_ids, attention_mask, position_ids, *past) -> (logits, *present).

    `attention_mask (B, P + T)` covers the cache too; `position_ids (B, T)` count from the first real token, which is
    the model's position `first`.
    """

    def __init__(self, model: nn.Module, first: int) -> None:
        super().__init__()
        self.model, self.first = model, first

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, T, V), then keys and values (B, heads, P + T, d) of each layer."""
        from transformers import DynamicCache

        input_ids, attention_mask, position_ids, *past = values
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids + self.first if self.first else position_ids,
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
    shapes, first = _cache_shapes(model, ids), _first_position(model, ids)
    past = [torch.randn(len(ids), heads, LENGTH, size, device=ids.device) for heads, size in shapes]
    mask = torch.cat([ids.new_ones(len(ids), LENGTH), torch.ones_like(ids)], dim=1)  # (B, P + T)
    positions = torch.arange(LENGTH, LENGTH + ids.shape[1], device=ids.device).repeat(len(ids), 1)  # (B, T)
    tokens = {"input_ids": ids, "attention_mask": mask, POSITIONS: positions}
    inputs = tokens | dict(zip(_names(PAST, len(shapes) // 2), past, strict=True))
    fresh = {"input_ids": SEQUENCE, POSITIONS: SEQUENCE, "attention_mask": TOTAL}  # (B, T), the others (B, heads, P, d)
    axes = {name: {0: BATCH} | ({1: fresh[name]} if name in fresh else {2: PAST_LENGTH}) for name in inputs}
    return Tracing(_Cached(model, first), inputs, ("logits", *_names(PRESENT, len(shapes) // 2)), axes)


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


def _first_position(model: nn.Module, ids: Tensor) -> int:
    """Which position is a text's first: RoBERTa counts from behind the one that stands for padding."""
    padding = getattr(model.config, "pad_token_id", None)
    if padding is None or POSITIONS not in signature(model.forward).parameters:
        return 0
    text = ids[:1].masked_fill(ids[:1] == padding, int(padding == 0))  # (1, T)
    counted = torch.arange(text.shape[1], device=ids.device)[None]
    with torch.no_grad():
        expected = model(input_ids=text).logits
        for first in (0, padding + 1):
            found = model(input_ids=text, position_ids=counted + first).logits
            if torch.allclose(found, expected, rtol=0, atol=RELATIVE * float(expected.abs().max())):
                return int(first)
    raise ExportError(
        f"{type(model).__name__} counts positions neither from 0 nor from behind its padding's ({padding}), so those "
        "behind a cache are not known. Only decoders that do either can be exported."
    )


def _names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in PARTS]


def _flat(cache: Any) -> Iterator[Tensor]:
    for layer in cache.layers:
        yield layer.keys
        yield layer.values
