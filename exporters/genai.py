"""What ONNX Runtime GenAI needs beside a decoder's graph: `genai_config.json`. Imports neither torch nor GenAI.

Its model type is always "decoder", GenAI's name for any graph of tokens, mask, positions and a cache of keys and values
per layer: of types named after architectures it refuses those that it does not know, and "gpt2" expects another cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporters.feed import PAST, POSITIONS, PRESENT
from exporters.generate import turn
from exporters.onnx.runtime import GRAPH

GENAI_FILE = "genai_config.json"
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
SIZES = ("vocab_size", "max_position_embeddings", "hidden_size", "num_attention_heads")
SEARCH = {"do_sample": False, "num_beams": 1, "past_present_share_buffer": False}  # the graph returns a new cache


def settings(config: Any, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The content of `genai_config.json`, which decodes greedily up to the length that the model was made for.

    Args:
        config: of a Hugging Face model.
        inputs: the graph's, as `export.json` lists them.

    Returns:
        None where GenAI cannot run the graph or is not told enough: no cache, keys and values of different sizes, or
        a config without vocabulary, length, width or heads.
    """
    cache = [value["axes"] for value in inputs if value["name"].startswith(PAST)]  # each (B, heads, P, d)
    shapes = {(heads, size) for _, heads, _, size in cache}
    if len(shapes) != 1:
        return None
    text = config.get_text_config(decoder=True)
    vocabulary, length, width, heads = (getattr(text, name, None) for name in SIZES)
    if not (vocabulary and length and width and heads):
        return None
    (key_heads, size) = shapes.pop()
    length = min(length, turn(text.to_dict()) or length)
    decoder = {
        "filename": GRAPH,
        "session_options": {"provider_options": []},
        "inputs": {name: name for name in ("input_ids", "attention_mask", POSITIONS)} | _names("past", PAST),
        "outputs": {"logits": "logits"} | _names("present", PRESENT),
        "hidden_size": width,
        "head_size": size,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "num_hidden_layers": len(cache) // 2,
    }
    model = {"type": "decoder", "vocab_size": vocabulary, "context_length": length, **_tokens(text), "decoder": decoder}
    return {"model": model, "search": SEARCH | {"max_length": length}}


def write(config: Any, inputs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Put `genai_config.json` into `folder`, where there can be one."""
    found = settings(config, inputs)
    if found is not None:
        (folder / GENAI_FILE).write_text(json.dumps(found, indent=2) + "\n")


def _names(tense: str, prefix: str) -> dict[str, str]:
    """Patterns of the cache's names, with %d for the layer."""
    return {f"{tense}_{part}_names": f"{prefix}.%d.{part}" for part in ("key", "value")}


def _tokens(config: Any) -> dict[str, Any]:
    """Those that the config has: GenAI refuses null."""
    return {name: found for name in TOKENS if (found := getattr(config, name, None)) is not None}
