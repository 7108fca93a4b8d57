"""Text classification: one label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.errors import DataError
from compressor.tasks import classes, text
from compressor.tasks.base import Column, Outcomes, labeled

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from compressor.recipe import Source


@dataclass(frozen=True)
class TextClassification:
    """One label for a text, or for a pair of texts; the model gets a new head."""

    name: ClassVar[str] = "text-classification"
    architecture: ClassVar[str] = "text-classification"
    chooses_by: ClassVar[str] = "accuracy"
    qualities: ClassVar[tuple[str, ...]] = ("accuracy",)
    posed_at_once: ClassVar[int] = 32

    def processor(self, path: str, **options: Any) -> Any:
        """The tokenizer; one without a padding token pads with what ends a text."""
        return text.padding(text.load_tokenizer(path, **options), path, **options)

    def columns(self, source: Source) -> Mapping[str, Column]:
        """`text`, `label` and, where it is named, `text_pair`."""
        named = {"text": source.text} | ({"text_pair": source.text_pair} if source.text_pair else {})
        return {role: Column(name, text.STRINGS, "strings") for role, name in named.items()} | classes.column(source)

    def labels(self, train: Any) -> list[str]:
        """Those of the training rows."""
        return classes.names(train)

    def encode(self, rows: Any, processor: Any, labels: Sequence[str] | None, max_length: int, name: str) -> Any:
        """input_ids, attention_mask, (token_type_ids,) labels and length.

        Raises:
            DataError: a label that training has not seen, or texts without a token.
        """
        numbers = classes.numbers(rows, labels or (), name)
        encoded = text.stacked(_encoded(part, processor, max_length) for part in rows.iter(batch_size=text.AT_ONCE))
        lengths = encoded["length"][:]
        if not all(lengths):
            raise DataError(f"{name}: {lengths.count(0)} of {len(lengths)} texts give no token; leave them out.")
        return encoded.add_column("labels", numbers)

    def collate(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """Padded to the longest row."""
        return text.pad(rows, processor)

    def terms(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Every example (B,)."""
        return labeled(batch)

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The labels (B,)."""
        return batch["labels"][labeled(batch)]

    def pose(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """The same as `collate`."""
        return self.collate(rows, processor)

    def example(self, processor: Any, max_length: int | None = None) -> dict[str, Tensor]:
        """Three texts."""
        cut: dict[str, Any] = {"truncation": max_length is not None, "max_length": max_length}
        return dict(processor(list(text.EXAMPLE), padding=True, return_tensors="pt", **cut))

    def outcomes(self, logits: np.ndarray, batch: Mapping[str, np.ndarray]) -> Outcomes:
        """The logits (B, labels) themselves."""
        return classes.outcomes(logits, batch)


def _encoded(rows: Mapping[str, list[str]], tokenizer: Any, max_length: int) -> dict[str, Any]:
    found = tokenizer(rows["text"], rows.get("text_pair"), truncation=True, max_length=max_length)
    return {**found, "length": [len(ids) for ids in found["input_ids"]]}
