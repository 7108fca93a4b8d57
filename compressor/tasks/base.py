"""What every task is: how rows become a model's inputs, and what its outputs say about them.

A task names no architecture. Tasks import torch, transformers and datasets inside their functions, so that recipes can
be checked and listed without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from compressor.recipe import Source

IGNORED = -100  # label of tokens that are no loss term, as transformers has it


class Column(NamedTuple):
    """A column that a task reads: its name in the source, and the types that it may have."""

    name: str
    kinds: tuple[str, ...]  # what the type may begin with, as datasets prints it
    words: str  # the same for people


class Outcomes(NamedTuple):
    """What a model says about a batch, one row for each thing that can be right or wrong."""

    values: np.ndarray  # (N, k) float: logits, scores of choices, or log-probabilities of targets
    predictions: np.ndarray  # (N,) int, -1 where a value is not finite
    labels: np.ndarray  # (N,) int, what would be right


class Task(Protocol):
    """One task: a frozen dataclass, one row of the registry's table."""

    name: ClassVar[str]
    architecture: ClassVar[str]  # optimum's name of the task whose transformers auto class is loaded
    chooses_by: ClassVar[str]  # the best checkpoint's quantity: "accuracy", or "loss" where no label is predicted

    def processor(self, path: str, **options: Any) -> Any:
        """The checkpoint's tokenizer or image processor; anything with `save_pretrained`.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        ...

    def columns(self, source: Source) -> Mapping[str, Column]:
        """What is read of a source, by the name that it has afterwards."""
        ...

    def labels(self, train: Any) -> list[str] | None:
        """The classes of the training rows in the order of the logits; None where the model gets no new head."""
        ...

    def encode(self, rows: Any, processor: Any, labels: Sequence[str] | None, max_length: int, name: str) -> Any:
        """Rows -> a `datasets.Dataset` whose rows `collate` takes; a column `length` lets alike rows share batches.

        Raises:
            DataError: a row cannot be used; `name` says of which split.
        """
        ...

    def collate(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """Encoded rows -> one padded batch of the model's inputs, `labels` included."""
        ...

    def example(self, processor: Any) -> dict[str, Tensor]:
        """Inputs that an exporter can trace the model on: a few rows, of different lengths where there are lengths."""
        ...

    def outcomes(self, logits: np.ndarray, batch: Mapping[str, np.ndarray]) -> Outcomes:
        """What the logits of a collated batch say."""
        ...
