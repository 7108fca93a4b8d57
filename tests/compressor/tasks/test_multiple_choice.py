"""Questions with choices: what is learned, what is asked, and scores against a loop over tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from compressor import data, registry
from compressor.errors import DataError
from compressor.recipe import Source
from compressor.tasks.multiple_choice import NO_CHOICE, MultipleChoice

TASK = MultipleChoice()
QUESTIONS = {
    "text": ["one two", "red", "three four five"],
    "choices": [["three", "red blue"], ["one two three", "blue", "five"], ["six", "red"]],
    "label": [0, 2, 1],
}


def rows(**changes: Any) -> Any:
    return datasets.Dataset.from_dict(QUESTIONS | changes)


@pytest.fixture
def tokenizer(words: Callable[..., Any]) -> Any:
    return words()


@pytest.fixture
def encoded(tokenizer: Any) -> Any:
    return TASK.encode(rows(), tokenizer, None, 32, "data.train")


def completions(batch: dict[str, torch.Tensor], tokenizer: Any) -> list[str]:
    return [tokenizer.decode(labels[labels >= 0]) for labels in batch["labels"]]


# ---- what is learned, and what is asked ----


def test_the_right_completion_of_each_question_is_learned(encoded: Any, tokenizer: Any) -> None:
    (batch,) = data.batches(encoded, TASK, tokenizer, 3)
    order = np.argsort(encoded["length"], kind="stable")
    right = [QUESTIONS["choices"][n][QUESTIONS["label"][n]] for n in order]
    assert completions(batch, tokenizer) == right
    texts = [
        tokenizer.decode(ids[mask > 0]) for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert texts == [f"Question : {QUESTIONS['text'][n]} Answer : {text}" for n, text in zip(order, right, strict=True)]
    assert TASK.terms(batch).sum(1).tolist() == [len(text.split()) for text in right]


def test_every_completion_of_each_question_is_asked(encoded: Any, tokenizer: Any) -> None:
    batch = TASK.pose(list(encoded), tokenizer)
    assert completions(batch, tokenizer) == [choice for choices in QUESTIONS["choices"] for choice in choices]
    assert batch["labels_sizes"].tolist() == [[5, 8, 0], [13, 4, 4], [3, 3, 0]]
    assert batch["labels_answer"].tolist() == [0, 2, 1]


def test_a_long_question_loses_its_beginning_and_never_its_answer(tokenizer: Any) -> None:
    asked = TASK.pose(list(TASK.encode(rows(), tokenizer, None, 4, "data.train")), tokenizer)
    assert completions(asked, tokenizer) == [choice for choices in QUESTIONS["choices"] for choice in choices]
    assert asked["input_ids"].shape[1] == 4
    assert tokenizer.decode(asked["input_ids"][0]) == "two Answer : three"


def test_rows_are_the_same_however_many_questions_are_tokenized_together(
    encoded: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.tasks.text.AT_ONCE", 2)
    parts = TASK.encode(rows(), tokenizer, None, 32, "data.train")
    assert (parts.to_dict(), parts.features) == (encoded.to_dict(), encoded.features)
    with pytest.raises(DataError, match=r"Row 2 of data\.train: choice 0 has .* leaves no room"):
        TASK.encode(
            rows(choices=[["a", "b"], ["a", "b", "c"], ["one two three", "b"]]), tokenizer, None, 3, "data.train"
        )


def test_texts_open_as_the_tokenizer_opens_one(words: Callable[..., Any]) -> None:
    tokenizer = words(opens=True)
    batch = TASK.pose(list(TASK.encode(rows(), tokenizer, None, 32, "data.train")), tokenizer)
    assert set(batch["input_ids"][:, 0].tolist()) == {tokenizer.bos_token_id}
    assert completions(batch, tokenizer) == [choice for choices in QUESTIONS["choices"] for choice in choices]


# ---- scores ----


def test_scores_are_the_log_likelihoods_per_character_of_a_loop_over_tokens(
    decoder: Callable[..., Any], encoded: Any, tokenizer: Any, surprise: Callable[..., float], kind: str
) -> None:
    model = decoder(kind)
    found = data.outcomes(model, TASK, data.posed(encoded, TASK, tokenizer))
    order = np.argsort(encoded["length"], kind="stable")
    for scores, prediction, answer, number in zip(*found, order, strict=True):
        prompt = f"Question: {QUESTIONS['text'][number]}\nAnswer:"
        start = len(tokenizer(prompt)["input_ids"])
        expected = [
            -surprise(model, tokenizer(f"{prompt} {choice}")["input_ids"], start) / len(choice)
            for choice in QUESTIONS["choices"][number]
        ]
        assert scores[: len(expected)] == pytest.approx(expected, rel=1e-4)
        assert (scores[len(expected) :] == NO_CHOICE).all()
        assert (prediction, answer) == (np.argmax(expected), QUESTIONS["label"][number])


def test_batches_of_one_question_say_the_same(decoder: Callable[..., Any], encoded: Any, tokenizer: Any) -> None:
    model = decoder()
    together = data.outcomes(model, TASK, [TASK.pose(list(encoded), tokenizer)])
    apart = data.outcomes(model, TASK, [TASK.pose([row], tokenizer) for row in encoded])
    np.testing.assert_allclose(together.values, apart.values, rtol=1e-4)


def test_a_score_that_is_not_finite_is_no_answer(encoded: Any, tokenizer: Any, numpied: Callable[..., Any]) -> None:
    batch = numpied(TASK.pose(list(encoded), tokenizer))
    logits = np.zeros((*batch["input_ids"].shape, 32), np.float32)
    logits[0] = np.nan
    assert TASK.outcomes(logits, batch).predictions.tolist() == [-1, 0, 0]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": [0, 3, 1]}, r"Row 1 of data\.train has the answer 3, but 3 choices: answers are .* 0 to 2"),
        ({"label": [-1, 0, 1]}, r"Row 0 of data\.train has the answer -1, but 2 choices"),
        ({"choices": [["a", "b"], ["a"], ["a", "b"]]}, r"Row 1 of data\.train has 1 choices: at least 2"),
        ({"choices": [["a", "b"], ["a", " ", "b"], ["a", "b"]]}, r"Row 1 of data\.train: choice 1 is empty"),
        ({"choices": [["a", "b"], ["a", "b", None], ["a", "b"]]}, r"Row 1 of data\.train: choice 2 is empty"),
        ({"text": ["one", "red", "\n"]}, r"Row 2 of data\.train has an empty question"),
        ({"choices": [["a", "b"], ["a", "b", "c"], ["a", "red " * 40]]}, r"Row 2 .*choice 1 has 40 tokens.*\(32\)"),
    ],
)
def test_a_question_that_cannot_be_used_is_named(tokenizer: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TASK.encode(rows(**changes), tokenizer, None, 32, "data.train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": ["a, b", "c, d", "e, f"]}, "the choices column 'choices' holds string, not lists of strings"),
        ({"choices": [[1, 2], [3, 4], [5, 6]]}, r"the choices column 'choices' holds .*int64.*, not lists of strings"),
        ({"label": ["A", "B", "C"]}, "the label column 'label' holds string, not whole numbers"),
        ({"text": [1, 2, 3]}, "the text column 'text' holds int64, not strings"),
    ],
)
def test_columns_of_other_types_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    rows(**changes).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=message):
        data.read(Source(path=str(tmp_path / "rows.parquet")), TASK)


def test_columns_are_read_under_their_own_names(tmp_path: Path) -> None:
    named = rows().rename_columns({"text": "question", "choices": "options", "label": "answer"})
    named.to_parquet(tmp_path / "rows.parquet")
    source = Source(path=str(tmp_path / "rows.parquet"), text="question", choices="options", label="answer")
    assert data.read(source, TASK).to_dict() == QUESTIONS


def test_the_row_of_the_table_is_this_task() -> None:
    assert registry.task("multiple-choice") == TASK
    assert (TASK.chooses_by, TASK.qualities) == ("loss", ("accuracy",))
