"""Multiple choice: which of several completions a language model finds likeliest after a question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.errors import DataError
from compressor.tasks import language, text
from compressor.tasks.base import Column, Outcomes

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from compressor.recipe import Source

PROMPT = "Question: {question}\nAnswer:"
NO_CHOICE = -1e6  # the score where a question has fewer choices than others: below all others, and finite


@dataclass(frozen=True)
class MultipleChoice:
    """The likeliest of several completions of a question, by log-likelihood per character; no new head.

    The score is acc_norm's of the LM Evaluation Harness: the log-probabilities of a completion's tokens after the
    prompt, summed, over the characters of the choice, blanks at its ends included. The model learns from the right
    completion alone.
    """

    name: ClassVar[str] = "multiple-choice"
    architecture: ClassVar[str] = language.ARCHITECTURE
    chooses_by: ClassVar[str] = "loss"
    qualities: ClassVar[tuple[str, ...]] = ("accuracy",)
    posed_at_once: ClassVar[int] = 4

    def processor(self, path: str, **options: Any) -> Any:
        """The tokenizer."""
        return text.load_tokenizer(path, **options)

    def columns(self, source: Source) -> Mapping[str, Column]:
        """`text` (the question), `choices` and `label` (the answer's index)."""
        strings = tuple(f"{of}(Value('{kind}')" for of in ("List", "LargeList") for kind in text.STRINGS)
        return {
            "text": Column(source.text, text.STRINGS, "strings"),
            "choices": Column(source.choices, strings, "lists of strings"),
            "label": Column(
                source.label, ("int", "uint"), "whole numbers, the answer's place among the choices from 0"
            ),
        }

    def labels(self, train: Any) -> None:
        """None: completions are scored by the head that the model has."""
        return

    def encode(self, rows: Any, processor: Any, labels: Sequence[str] | None, max_length: int, name: str) -> Any:
        """One row for each question: for each choice input_ids, starts (of its completion) and sizes; answer, length.

        Where prompt and completion are longer than `max_length`, the prompt loses its beginning. `sizes`, the choices'
        characters, is 0 where other questions have more choices, and has one width in all rows.

        Raises:
            DataError: a question is empty or has fewer than two choices, a choice is empty or too long, or the answer
                is none of them.
        """
        numbered = list(enumerate(zip(rows["text"][:], rows["choices"][:], rows["label"][:], strict=True)))
        for number, question in numbered:
            _require_sound(f"Row {number} of {name}", *question)
        width = max(len(choices) for _, (_, choices, _) in numbered)
        parts = (numbered[start : start + text.AT_ONCE] for start in range(0, len(numbered), text.AT_ONCE))
        return text.stacked(_rows(part, processor, name, width, max_length) for part in parts)

    def collate(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """Prompts with their right completions (B, T); labels are the completions."""
        return language.pad([_completed(row, row["answer"]) for row in rows])

    def terms(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Where the next token (B, T) belongs to a completion."""
        return language.terms(batch)

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The completions' tokens (N,)."""
        return language.targets(batch)

    def pose(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """Prompts with each of their completions, question by question (R, T); labels are the completions.

        labels_sizes (B, width) has the characters of each choice, labels_answer (B,) the right one.
        """
        import torch

        batch = language.pad([_completed(row, choice) for row in rows for choice in range(len(row["input_ids"]))])
        sizes, answers = [row["sizes"] for row in rows], [row["answer"] for row in rows]
        return batch | {"labels_sizes": torch.tensor(sizes), "labels_answer": torch.tensor(answers)}

    def example(self, processor: Any, max_length: int | None = None) -> dict[str, Tensor]:
        """Three texts."""
        return language.example(processor, max_length)

    def outcomes(self, logits: np.ndarray, batch: Mapping[str, np.ndarray]) -> Outcomes:
        """Each question's scores (B, width), log-likelihoods per character, the best one's place and the answer."""
        import numpy as np

        sizes = batch["labels_sizes"]
        there = sizes > 0  # (B, width), its true places in the order of the rows
        pairs = zip(logits, batch["labels"], strict=True)
        sums = [language.said(row[None], labels[None]).likelihoods.sum() for row, labels in pairs]
        values = np.full(sizes.shape, NO_CHOICE)
        values[there] = np.array(sums) / sizes[there]
        predictions = np.where(np.isfinite(values).all(axis=1), values.argmax(axis=1), -1)
        return Outcomes(values, predictions, batch["labels_answer"])


def _require_sound(where: str, question: str, choices: Sequence[str | None], answer: int) -> None:
    if not question.strip():
        raise DataError(f"{where} has an empty question: fill it in or leave the row out.")
    if len(choices) < 2:
        raise DataError(f"{where} has {len(choices)} choices: at least 2 are needed to choose from.")
    empty = [number for number, choice in enumerate(choices) if not (choice or "").strip()]
    if empty:
        raise DataError(
            f"{where}: choice {empty[0]} is empty, so it has no likelihood. Fill it in or leave the row out."
        )
    if not 0 <= answer < len(choices):
        raise DataError(
            f"{where} has the answer {answer}, but {len(choices)} choices: answers are the choices' places, "
            f"0 to {len(choices) - 1}."
        )


def _encoded(questions: Sequence[tuple[str, Sequence[str], int]], tokenizer: Any) -> Iterator[tuple[Any, Any]]:
    """For each question the tokens of prompt and completion, for each choice, and where the completion starts.

    As the harness splits them: both are tokenized together, and the prompt has as many tokens as it has alone.
    """
    opening = language.opening(tokenizer)
    prompts = [PROMPT.format(question=question) for question, _, _ in questions]
    whole = [f"{prompt} {choice}" for prompt, row in zip(prompts, questions, strict=True) for choice in row[1]]
    lengths = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    tokens = iter(tokenizer(whole, add_special_tokens=False)["input_ids"])
    for (_, choices, _), length in zip(questions, lengths, strict=True):
        found = [[*opening, *next(tokens)] for _ in choices]
        yield found, [min(len(opening) + length, len(ids) - 1) for ids in found]


def _rows(
    numbered: Sequence[tuple[int, tuple[str, Sequence[str], int]]],
    tokenizer: Any,
    name: str,
    width: int,
    max_length: int,
) -> dict[str, list[Any]]:
    """Columns of encoded questions; their numbers say where a fault is."""
    encoded = _encoded([question for _, question in numbered], tokenizer)
    found = [
        _row(f"Row {number} of {name}", tokens, starts, question, width, max_length)
        for (number, question), (tokens, starts) in zip(numbered, encoded, strict=True)
    ]
    return {key: [row[key] for row in found] for key in found[0]}


def _row(
    where: str,
    tokens: Sequence[Sequence[int]],
    starts: Sequence[int],
    question: tuple[str, Sequence[str], int],
    width: int,
    max_length: int,
) -> dict[str, Any]:
    """One encoded question."""
    _, choices, answer = question
    cut = [max(0, len(ids) - max_length) for ids in tokens]
    long = [number for number, (start, less) in enumerate(zip(starts, cut, strict=True)) if start <= less]
    if long:
        raise DataError(
            f"{where}: choice {long[0]} has {len(tokens[long[0]]) - starts[long[0]]} tokens, which leaves no room for "
            f"the question in model.max_length ({max_length}). Raise it."
        )
    sizes = [len(choice) for choice in choices]
    return {
        "input_ids": [list(ids[less:]) for ids, less in zip(tokens, cut, strict=True)],
        "starts": [start - less for start, less in zip(starts, cut, strict=True)],
        "sizes": sizes + [0] * (width - len(sizes)),
        "answer": answer,
        "length": max(len(ids) - less for ids, less in zip(tokens, cut, strict=True)),
    }


def _completed(row: Mapping[str, Any], choice: int) -> dict[str, list[int]]:
    """The prompt with one of its completions, which is what is learned or scored."""
    return language.row(row["input_ids"][choice], row["starts"][choice])
