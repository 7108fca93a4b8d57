"""What every task is: how rows become a model's inputs, and what its outputs say about them.

A task names no architecture. Tasks import torch, transformers and datasets inside their functions, so that recipes can
be checked and listed without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from compressor.recipe import Source

Value = TypeVar("Value")

IGNORED = -100  # label of tokens that are no loss term, as transformers has it
ANSWERS = "labels"  # what the names of a batch's tensors begin with that say what is right; all others are model inputs
QUALITIES = ("accuracy", "perplexity")  # what outcomes can be worth; each task says which of them its own are


class Column(NamedTuple):
    """A column that a task reads: its name in the source, and the types that it may have."""

    name: str
    kinds: tuple[str, ...]  # what the type may begin with, as datasets prints it
    words: str  # the same for people
    image: bool = False  # read as cells `{bytes, path}` that only the task decodes


class Outcomes(NamedTuple):
    """What a model says about a batch, one row for each thing that can be right or wrong."""

    values: np.ndarray  # (N, k) float: logits, scores of choices, or log-probabilities of targets
    predictions: np.ndarray  # (N,) int, -1 where a value is not finite
    labels: np.ndarray  # (N,) int, what would be right


def together(found: Iterable[Outcomes]) -> Outcomes:
    """Outcomes of several batches as one."""
    import numpy as np

    return Outcomes(*(np.concatenate(part) for part in zip(*found, strict=True)))


class Task(Protocol):
    """One task: a frozen dataclass, one row of the registry's table."""

    name: ClassVar[str]
    architecture: ClassVar[str]  # optimum's name of the task whose transformers auto class is loaded
    chooses_by: ClassVar[str]  # the best checkpoint's quantity: "accuracy", or "loss" where no label is predicted
    qualities: ClassVar[tuple[str, ...]]  # of QUALITIES: what its outcomes are worth, and checks measure
    posed_at_once: ClassVar[int]  # encoded rows in a batch of the evaluation, whose logits are held in memory

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
        """Encoded rows -> one padded batch to learn from: the model's inputs and the `labels` that its loss is of."""
        ...

    def terms(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Where the logits of a collated batch are a term of its loss: bool, shaped like them but for the last axis."""
        ...

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What would be right at each of these `terms` of a collated batch, in their order: classes (N,)."""
        ...

    def pose(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """Encoded rows -> one padded batch to be asked: the model's inputs, and as `labels...` what `outcomes` needs.

        The same as `collate` where a model learns from what it is asked.
        """
        ...

    def example(self, processor: Any, max_length: int | None = None) -> dict[str, Tensor]:
        """Inputs that an exporter can trace the model on: a few rows, of different lengths where there are lengths.

        No text is longer than `max_length`, since the model may take no longer one.
        """
        ...

    def outcomes(self, logits: np.ndarray, batch: Mapping[str, np.ndarray]) -> Outcomes:
        """What the logits of a posed batch say."""
        ...


def task_loss(task: Task, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss of a model that has none of its own: cross entropy averaged over the task's terms, ()."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits[task.terms(batch)].float(), task.targets(batch))  # (N, C), (N,)


def inputs_of(batch: Mapping[str, Value]) -> dict[str, Value]:
    """What of a batch the model is given when it must not see what is right."""
    return {name: value for name, value in batch.items() if not name.startswith(ANSWERS)}


def labeled(batch: Mapping[str, Tensor]) -> Tensor:
    """Where labels are not ignored, bool, shaped like them; every example (B,) of a batch without labels."""
    import torch

    if "labels" in batch:
        return batch["labels"] != IGNORED
    return torch.ones(examples(batch), dtype=torch.bool)


def examples(batch: Mapping[str, Tensor]) -> int:
    """How many are in a batch: the length of what has any."""
    return next((len(one) for one in batch.values() if one.ndim), 1)
