"""Text generation: predict the next token of running text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.errors import DataError
from compressor.tasks import language, text
from compressor.tasks.base import Column, Outcomes

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from compressor.recipe import Source


@dataclass(frozen=True)
class TextGeneration:
    """The next token of running text, which is joined and cut into blocks; the model's own vocabulary is its head."""

    name: ClassVar[str] = "text-generation"
    architecture: ClassVar[str] = language.ARCHITECTURE
    chooses_by: ClassVar[str] = "loss"
    qualities: ClassVar[tuple[str, ...]] = ("perplexity", "accuracy")
    posed_at_once: ClassVar[int] = 4

    def processor(self, path: str, **options: Any) -> Any:
        """The tokenizer."""
        return text.load_tokenizer(path, **options)

    def columns(self, source: Source) -> Mapping[str, Column]:
        """`text`."""
        return {"text": Column(source.text, text.STRINGS, "strings")}

    def labels(self, train: Any) -> None:
        """None: tokens are predicted by the head that the model has."""
        return

    def encode(self, rows: Any, processor: Any, labels: Sequence[str] | None, max_length: int, name: str) -> Any:
        """Blocks of `max_length` tokens: input_ids, attention_mask, labels and length.

        Each text opens as the tokenizer opens one, and the end-of-text token, where there is one, parts it from the
        next. The last block is shorter; a single token that is left over has nothing to be predicted from.

        Raises:
            DataError: there are not even two tokens.
        """
        tokens = _joined(rows, processor)
        if len(tokens) < 2:
            raise DataError(
                f"{name} holds {len(tokens)} tokens of text: at least 2 are needed, "
                "one to predict from and one to predict."
            )
        return text.stacked(_blocks(tokens[: len(tokens) - (len(tokens) % max_length == 1)], max_length))

    def collate(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """Padded to the longest block."""
        return language.pad(rows)

    def terms(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Every token (B, T) that is followed by one."""
        return language.terms(batch)

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The next tokens (N,)."""
        return language.targets(batch)

    def pose(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """The same as `collate`."""
        return self.collate(rows, processor)

    def example(self, processor: Any, max_length: int | None = None) -> dict[str, Tensor]:
        """Three texts."""
        return language.example(processor, max_length)

    def outcomes(self, logits: np.ndarray, batch: Mapping[str, np.ndarray]) -> Outcomes:
        """For each token that is followed by one: the next token's log-probability (N, 1), the likeliest, the next."""
        found = language.said(logits, batch["labels"])
        return Outcomes(found.likelihoods[:, None], found.predictions, found.targets)


def _joined(rows: Any, tokenizer: Any) -> np.ndarray:
    """The tokens of all texts (N,)."""
    import numpy as np

    opening = language.opening(tokenizer)
    between = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts = []
    for part in rows.iter(batch_size=text.AT_ONCE):
        encoded = tokenizer(part["text"], add_special_tokens=False)["input_ids"]
        parts.append(np.array([*chain.from_iterable([*between, *opening, *ids] for ids in encoded)], dtype=np.int32))
    return np.concatenate(parts)[len(between) :]


def _blocks(tokens: np.ndarray, size: int) -> Iterator[dict[str, list[Any]]]:
    """Columns of blocks of `size` tokens, the last of which may be shorter."""
    for start in range(0, len(tokens), size * text.AT_ONCE):
        part = tokens[start : start + size * text.AT_ONCE].tolist()
        blocks = [language.row(part[place : place + size]) for place in range(0, len(part), size)]
        columns = {key: [block[key] for block in blocks] for key in blocks[0]}
        yield columns | {"length": [len(ids) for ids in columns["input_ids"]]}
