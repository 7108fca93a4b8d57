"""What tasks over text share: the tokenizer and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import ModelError, first_line
from compressor.failures import exhausted
from compressor.paths import as_hub_id

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = ("one text", "another, somewhat longer text for the tracer", "a third")
STRINGS = ("string", "large_string")
FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "config.json")


def load_tokenizer(path: str, image_size: int | None = None, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """The checkpoint's own tokenizer.

    Raises:
        ModelError: there is none, it cannot be read, or a size of images was asked for.
    """
    from transformers import AutoTokenizer

    if image_size is not None:
        raise ModelError(f"model.image_size is {image_size}, but the task reads texts: take it out, or set model.task.")
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # transformers raises many kinds; each becomes a sentence
        if exhausted(error):
            raise
        raise ModelError(f"No tokenizer can be read from {path}: {_why(path, error)}") from error


def _why(path: str, error: Exception) -> str:
    folder = Path(path)
    if folder.is_dir() and not any(file for glob in FILES for file in folder.glob(glob)):
        return "the folder holds none of its files. Is it a checkpoint? model.processor names another folder."
    return f"{first_line(error)}{as_hub_id(path)}"


def padding(tokenizer: Any, path: str) -> Any:
    """The tokenizer with a token to pad with, where it has none that which ends a text, as decoders' go.

    Raises:
        ModelError: it has neither.
    """
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ModelError(
            f"The tokenizer of {path} has no token to pad with, so texts of different length cannot be batched: name "
            "one (`tokenizer.pad_token = ...`) and save it again."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pad(rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> dict[str, Tensor]:
    """Tensors (B, T) of rows of token lists and (B,) of their numbers, padded to the longest."""
    plain = [{key: value for key, value in row.items() if key != "length"} for row in rows]
    return dict(tokenizer.pad(plain, return_tensors="pt"))
