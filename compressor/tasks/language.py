"""What tasks of causal language models share: right padding, and labels that are predicted one token ahead.

Rows are padded here, on the right and with any token: many language models have no padding token, and a row's tokens
see nothing of what comes after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from compressor.tasks import text
from compressor.tasks.base import IGNORED

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ARCHITECTURE = "text-generation"
CHUNK = 128  # tokens whose logits over the vocabulary are copied at a time


class Said(NamedTuple):
    """What a language model says where it is asked, in the order of rows and tokens."""

    likelihoods: np.ndarray  # (N,) log-probabilities of the targets
    predictions: np.ndarray  # (N,) the likeliest tokens, -1 where a logit is not finite
    targets: np.ndarray  # (N,)


def opening(tokenizer: Any) -> list[int]:
    """The token that the tokenizer begins every text with, where it has one."""
    return [token for token in tokenizer("")["input_ids"][:1] if token == tokenizer.bos_token_id]


def row(tokens: Sequence[int], learned: int = 0) -> dict[str, list[int]]:
    """One row (T,) whose labels are the tokens from `learned` on."""
    labels = [IGNORED] * learned + list(tokens[learned:])
    return {"input_ids": list(tokens), "attention_mask": [1] * len(tokens), "labels": labels}


def pad(rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
    """Rows of input_ids, attention_mask and labels as tensors (B, T), padded on the right to the longest."""
    import torch

    longest = max(len(found["input_ids"]) for found in rows)
    fillers = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    return {
        name: torch.tensor([[*found[name], *[filler] * (longest - len(found[name]))] for found in rows])
        for name, filler in fillers.items()
    }


def example(tokenizer: Any, max_length: int | None = None) -> dict[str, Tensor]:
    """input_ids and attention_mask (3, T) of three texts of different lengths, none longer than `max_length`."""
    padded = pad([row(tokens[:max_length]) for tokens in tokenizer(list(text.EXAMPLE))["input_ids"]])
    return {name: padded[name] for name in ("input_ids", "attention_mask")}


def terms(batch: Mapping[str, Tensor]) -> Tensor:
    """Where the next token's label is not ignored, (B, T): never at the end of a row."""
    from torch.nn.functional import pad as padded

    return padded(batch["labels"][:, 1:] != IGNORED, (0, 1))


def targets(batch: Mapping[str, Tensor]) -> Tensor:
    """The next tokens (N,) where `terms` says so."""
    following = batch["labels"][:, 1:]
    return following[following != IGNORED]


def said(logits: np.ndarray, labels: np.ndarray) -> Said:
    """What logits (B, T, V) say about labels (B, T), a few tokens at a time, since vocabularies are large."""
    import numpy as np

    parts = [
        _said(row[start : start + CHUNK], targets[start + 1 : start + 1 + CHUNK])
        for row, targets in zip(logits[:, :-1], labels, strict=True)
        for start in range(0, len(row), CHUNK)
    ]
    return Said(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _said(logits: np.ndarray, labels: np.ndarray) -> Said:
    import numpy as np

    asked = labels != IGNORED
    scores, targets = logits[asked], labels[asked]  # (n, V), (n,)
    finite = np.isfinite(scores).all(axis=1)
    with np.errstate(invalid="ignore"):  # inf - inf
        shifted = scores - scores.max(axis=1, keepdims=True)
        totals = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))  # (n,)
        likelihoods = shifted[np.arange(len(targets)), targets] - totals
    predictions = np.where(finite, scores.argmax(axis=1), -1)
    return Said(np.where(finite, likelihoods, np.nan), predictions, targets)
