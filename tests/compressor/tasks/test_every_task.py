"""What holds of every row of the table of tasks."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, is_dataclass
from typing import Any

import pytest
import torch

from compressor import registry
from compressor.models import auto_class
from compressor.tasks.base import IGNORED, QUALITIES, inputs_of, labeled, task_loss

every_task = pytest.mark.parametrize("name", registry.TABLES["tasks"])


@every_task
def test_a_task_is_a_frozen_dataclass_that_knows_its_name(name: str) -> None:
    task: Any = registry.task(name)
    assert is_dataclass(task)
    assert task.name == name
    with pytest.raises(FrozenInstanceError):
        task.anything = 1


@every_task
def test_a_task_says_what_its_outcomes_are_worth(name: str) -> None:
    task: Any = registry.task(name)
    assert set(task.qualities) <= set(QUALITIES)
    assert "accuracy" in task.qualities  # which the advice is about
    assert task.chooses_by in ("accuracy", "loss")
    assert task.posed_at_once >= 1


@every_task
def test_a_task_has_a_class_of_models(name: str) -> None:
    assert hasattr(auto_class(registry.task(name)), "from_pretrained")


@pytest.mark.parametrize("name", ["text-generation", "multiple-choice"])
def test_the_loss_of_a_language_task_is_the_one_that_transformers_computes(name: str, decoder: Any) -> None:
    tokens = torch.randint(3, 32, (3, 7))
    labels = tokens.clone()
    labels[0, :4] = labels[1, 5:] = IGNORED
    output = decoder()(input_ids=tokens, labels=labels)
    found = task_loss(registry.task(name), output.logits, {"input_ids": tokens, "labels": labels})
    torch.testing.assert_close(found, output.loss)


@pytest.mark.parametrize("name", ["text-classification", "image-classification"])
def test_the_loss_of_a_classifier_is_the_one_that_transformers_computes(
    name: str, tiny_bert: Any, token_batches: Any
) -> None:
    (batch, *_) = token_batches()
    output = tiny_bert()(**batch)
    torch.testing.assert_close(task_loss(registry.task(name), output.logits, batch), output.loss)


def test_what_says_what_is_right_is_no_input() -> None:
    batch = {"input_ids": 1, "attention_mask": 2, "labels": 3, "labels_answer": 4}
    assert inputs_of(batch) == {"input_ids": 1, "attention_mask": 2}


def test_labels_that_are_ignored_are_no_terms_and_examples_without_labels_are() -> None:
    assert labeled({"labels": torch.tensor([[1, IGNORED], [0, 2]])}).tolist() == [[True, False], [True, True]]
    assert labeled({"x": torch.zeros(3, 2)}).tolist() == [True] * 3
