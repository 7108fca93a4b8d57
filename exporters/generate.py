"""Greedy continuation of a text by an exported decoder, token by token. Imports neither torch nor transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from compressor import registry
from compressor.errors import ArtifactError, InputError, RuntimeFailure
from exporters import record
from exporters.base import Arrays, Session
from exporters.feed import PAST, PRESENT


class Decoder(Protocol):
    """A runner that may have a cache; those of onnx, ort and openvino are such."""

    @property
    def path(self) -> Path:
        """Its graph."""
        ...

    @property
    def cached(self) -> bool:
        """Whether the graph takes and gives a key-value cache."""
        ...

    def step(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """All outputs: the logits and the cache that the next step continues from."""
        ...


def load(folder: Path, session: Session = Session()) -> Decoder:  # noqa: B008 (frozen)
    """The export in a folder, whatever runtime it is for.

    Raises:
        ArtifactError: no export.
        InputError: an export without a cache.
    """
    told = record.read(folder)
    if not any(value["name"].startswith(PAST) for value in told.inputs):
        raise InputError(
            f"{folder}, an export to {told.runtime}, has no cache to continue a text with: generate reads "
            "models of the task text-generation (or multiple-choice) exported to onnx, ort or openvino."
        )
    return cast("Decoder", registry.load("exporters", told.runtime)().load(folder, session))


def continuation(
    runner: Decoder,
    prompt: Sequence[int],
    *,
    new_tokens: int,
    stop: frozenset[int] = frozenset(),
    longest: int | None = None,
) -> Iterator[int]:
    """The most likely next token, again and again: the prompt is read once, then each step reads one token.

    Args:
        runner: of a graph with a cache.
        prompt: token ids, at least one.
        new_tokens: how many at most.
        stop: tokens that end the text; they are not yielded.
        longest: how many tokens the model reads at most, where the text ends too; None: no end.

    Raises:
        InputError: an empty prompt or a longer one, or a graph without a cache.
        RuntimeFailure: the graph gives logits that are not finite.
    """
    last = longest or len(prompt) + new_tokens
    if not len(prompt):
        raise InputError("The prompt has no tokens: give it at least one.")
    if len(prompt) > last:
        raise InputError(f"The prompt has {len(prompt)} tokens, of which the model reads {last} at most: shorten it.")
    if not runner.cached:
        raise InputError(f"{runner.path} has no cache to continue a text with; export a text-generation model.")
    tokens = np.asarray([prompt])
    cache: dict[str, np.ndarray] = {}
    for length in range(len(prompt), min(len(prompt) + new_tokens, last + 1)):
        inputs = {
            "input_ids": tokens,  # (1, T)
            "attention_mask": np.ones((1, length), np.int64),  # (1, P + T)
            "position_ids": np.arange(length - tokens.shape[1], length)[None],  # (1, T)
        }
        outputs = runner.step(inputs | cache)
        logits = outputs["logits"][0, -1]  # (V,)
        if not np.isfinite(logits).all():
            raise RuntimeFailure(f"{runner.path} gives logits that are not finite after {length} tokens.")
        token = int(logits.argmax())
        if token in stop:
            return
        yield token
        cache = {PAST + name.removeprefix(PRESENT): value for name, value in outputs.items() if name != "logits"}
        tokens = np.asarray([[token]])


def text(folder: Path, prompt: str, *, new_tokens: int = 64, session: Session = Session()) -> Iterator[str]:  # noqa: B008 (frozen)
    """The pieces of text that an export folder continues a prompt with; see `turn` for where they may end early.

    Raises:
        ArtifactError: the folder has no tokenizer.json.
        InputError: an empty or too long prompt, or a graph without a cache.
        RuntimeFailure: the graph gives logits that are not finite.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: the export needs its tokenizer beside it. Export the model again.")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()  # a file may say to pad or to cut: neither is part of the prompt
    tokenizer.no_truncation()
    ids, config = list(tokenizer.encode(prompt).ids), _config(folder)
    stop, longest, change = frozenset(ends(config)), places(config), turn(config)
    if change is not None and len(ids) <= change:
        longest = min(longest or change, change)
    shown = whole = tokenizer.decode(ids)  # a continuation read alone may lose the space that it begins with
    for token in continuation(load(folder, session), ids, new_tokens=new_tokens, stop=stop, longest=longest):
        ids.append(token)
        whole = tokenizer.decode(ids)
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):  # the bytes of a character may span several tokens
            yield whole[len(shown) :]
            shown = whole
    if len(whole) > len(shown):
        yield whole[len(shown) :]


def _config(folder: Path) -> dict[str, Any]:
    config = folder / "config.json"
    return dict(json.loads(config.read_text())) if config.is_file() else {}


def ends(config: Mapping[str, Any]) -> list[int]:
    """The end-of-text tokens that a model's config names."""
    found = config.get("eos_token_id")
    return list(found) if isinstance(found, list) else [] if found is None else [found]


def places(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model's config says that it reads at most; None where it does not say."""
    named = (config.get(key) for key in ("max_position_embeddings", "n_positions"))
    return next((number for number in named if number), None)


def turn(config: Mapping[str, Any]) -> int | None:
    """Behind how many tokens a model turns its positions otherwise (LongRoPE); None where it never does.

    What is cached of a shorter text is wrong from there on: transformers reads the whole text again.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type")) != "longrope":
        return None
    return rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
