"""What tasks over text share: the tokenizer and padding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import ModelError, first_line
from compressor.failures import exhausted
from compressor.paths import as_hub_id

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = ("one text", "another, somewhat longer text for the tracer", "a third")
STRINGS = ("string", "large_string")
AT_ONCE = 1000  # rows that are tokenized together: lists of tokens take many times the memory of what is kept of them
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


def padding(tokenizer: Any, path: str, **options: Any) -> Any:
    """The tokenizer with a token to pad with: where it has none the config's beside it, or that which ends a text.

    Decoders that classify find by the config's where a text ends.

    Raises:
        ModelError: there is none of them.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = _named(tokenizer, path, options) or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"The tokenizer of {path} has no token to pad with, so texts of different length cannot be batched: name "
            "one (`tokenizer.pad_token = ...`) and save it again."
        )
    return tokenizer


def _named(tokenizer: Any, path: str, options: Mapping[str, Any]) -> str | None:
    """The token that a checkpoint's config pads with; None where it names none, or where there is no config."""
    from transformers import AutoConfig

    try:
        number = getattr(AutoConfig.from_pretrained(path, **options), "pad_token_id", None)
    except (OSError, ValueError):
        return None
    found: str | None = tokenizer.convert_ids_to_tokens(number) if number in range(len(tokenizer)) else None
    return found


def stacked(parts: Iterable[Mapping[str, Sequence[Any]]]) -> Any:
    """A `datasets.Dataset` in memory of columns that come a few rows at a time."""
    import datasets

    return datasets.concatenate_datasets([datasets.Dataset.from_dict(dict(part)) for part in parts])


def pad(rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> dict[str, Tensor]:
    """Tensors (B, T) of rows of token lists and (B,) of their numbers, padded to the longest."""
    plain = [{key: value for key, value in row.items() if key != "length"} for row in rows]
    return dict(tokenizer.pad(plain, return_tensors="pt"))
