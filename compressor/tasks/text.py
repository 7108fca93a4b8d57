"""What tasks over text share: the tokenizer and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compressor.errors import ModelError, first_line

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = ("one text", "another, somewhat longer text for the tracer", "a third")
STRINGS = ("string", "large_string")


def load_tokenizer(path: str, image_size: int | None = None, **options: Any) -> Any:
    """The checkpoint's own tokenizer.

    Raises:
        ModelError: there is none, it cannot be read, or a size of images was asked for.
    """
    from transformers import AutoTokenizer

    if image_size is not None:
        raise ModelError(f"model.image_size is {image_size}, but the task reads texts: take it out, or set model.task.")
    try:
        return AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # transformers raises many kinds; each becomes a sentence
        raise ModelError(f"No tokenizer can be read from {path}: {first_line(error)}") from error


def pad(rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> dict[str, Tensor]:
    """Tensors (B, T) of rows of token lists and (B,) of their numbers, padded to the longest."""
    plain = [{key: value for key, value in row.items() if key != "length"} for row in rows]
    return dict(tokenizer.pad(plain, return_tensors="pt"))
