"""Lessons written once: what a teacher said of rows is found again in whatever batch they come, and trains the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from compressor import progress
from compressor.adapt import adapt_
from compressor.distillation import distillation_loss, lesson_of, taught_loss
from compressor.lessons import by_row, take
from compressor.recipe import Distillation, Training
from compressor.tasks.text_classification import TextClassification

TASK, SECTION = TextClassification(), Distillation()
WORDS, CLASSES = 40, 3


class Padding:
    """As much of a tokenizer as collating takes."""

    def pad(self, rows: Sequence[dict[str, Any]], return_tensors: str) -> dict[str, Tensor]:
        assert return_tensors == "pt"
        columns = {key: [torch.tensor(row[key]) for row in rows] for key in rows[0]}
        return {
            key: torch.stack(found) if found[0].ndim == 0 else pad_sequence(found, batch_first=True)
            for key, found in columns.items()
        }


@pytest.fixture
def encoded() -> Any:
    """Eleven rows of two to seven tokens."""
    lengths = [2 + row % 6 for row in range(11)]
    return datasets.Dataset.from_dict(
        {
            "input_ids": [torch.randint(5, WORDS, (length,)).tolist() for length in lengths],
            "attention_mask": [[1] * length for length in lengths],
            "labels": [row % CLASSES for row in range(11)],
            "length": lengths,
        }
    )


def batch_of(encoded: Any, rows: Sequence[int]) -> dict[str, Tensor]:
    return TASK.collate([encoded[row] for row in rows], Padding())


def taken(teacher: nn.Module, encoded: Any, file: Path, section: Distillation = SECTION, **limits: int) -> Any:
    return take(teacher, encoded, TASK, Padding(), section, file, batch_size=4, **limits)


@pytest.mark.parametrize("section", [SECTION, Distillation(predictions=0), Distillation(hidden=0)])
@pytest.mark.parametrize("rows", [[7, 0, 3], [10], list(range(11))])
def test_the_loss_by_notes_is_the_loss_by_the_teacher(
    tiny_bert: Callable[..., Any], encoded: Any, tmp_path: Path, section: Distillation, rows: list[int]
) -> None:
    student, teacher = tiny_bert(0).eval(), tiny_bert(1).eval()
    notes, batch = taken(teacher, encoded, tmp_path / "file", section), batch_of(encoded, rows)
    found, _ = taught_loss(student, notes.of(rows), batch, section, TASK.terms)
    wanted, _ = distillation_loss(student, teacher, batch, section, TASK.terms)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    ours, theirs = (torch.autograd.grad(loss, list(student.classifier.parameters())) for loss in (found, wanted))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_batchs_lesson_is_split_into_its_rows(tiny_bert: Callable[..., Any], encoded: Any) -> None:
    teacher, rows = tiny_bert(1).eval(), [5, 2, 8]
    parts = list(by_row(lesson_of(teacher, batch_of(encoded, rows), SECTION, TASK.terms)))
    assert [[len(part) for part in one] for one in parts] == [
        [1, *[encoded[row]["length"]] * teacher.config.num_hidden_layers] for row in rows
    ]
    alone = lesson_of(teacher, batch_of(encoded, [2]), SECTION, TASK.terms)
    torch.testing.assert_close(parts[1][-1], alone.states[-1], rtol=1e-4, atol=1e-5)


class _Maps(nn.Module):
    """A model whose states are a map, and rows that no mask speaks of."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, output_hidden_states: bool = False) -> Any:
        states = (x, x[:, :, ::2] * 2, x.flatten(2).mT * 3)  # embeddings, (B, d, 2, W), (B, H W, d)
        return type("Outputs", (), {"logits": x.mean((2, 3)), "hidden_states": states})()


def test_maps_and_unmasked_states_are_split_too() -> None:
    x = torch.randn(3, 5, 4, 2)
    parts = list(by_row(lesson_of(_Maps(), {"x": x, "labels": torch.tensor([0, 1, 2])}, SECTION)))
    for row, (logits, first, second) in zip(x, parts, strict=True):
        torch.testing.assert_close(logits, row.mean((1, 2))[None])
        torch.testing.assert_close(first, 2 * row[:, ::2].flatten(1).mT)
        torch.testing.assert_close(second, 3 * row.flatten(1).mT)


def test_lessons_that_take_too_much_are_not_kept(tiny_bert: Callable[..., Any], encoded: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    size = (taken(tiny_bert(1).eval(), encoded, file), file.stat().st_size)[1]
    file.unlink()
    assert taken(tiny_bert(1).eval(), encoded, file, most=size // 2) is None
    assert taken(tiny_bert(1).eval(), encoded, file, most=size - 1) is None
    assert not file.exists()
    tokens, width = sum(encoded["length"]), tiny_bert().config.hidden_size
    assert size == 4 * (len(encoded) * CLASSES + tokens * width * tiny_bert().config.num_hidden_layers)


def test_training_by_notes_is_training_by_the_teacher(
    tiny_bert: Callable[..., Any], encoded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def teacher() -> Any:
        found = tiny_bert(1)
        found.register_forward_hook(lambda *_: asked.append(1))
        return found

    def trained(folder: str) -> list[float]:
        training = Training(epochs=3, batch_size=4, learning_rate=1e-2)
        history = adapt_(
            tiny_bert(0), TASK, Padding(), encoded, encoded, training, folder=tmp_path / folder, teacher=teacher
        )
        return [row[name] for row in history for name in ("loss", "eval_loss") if name in row]

    found = trained("notes")
    assert len(asked) == 4  # each of three batches once, and the middle one to see what they take
    monkeypatch.setattr("compressor.adapt.take", lambda *_, **__: None)
    wanted = trained("teacher")
    assert len(asked) == 4 + 9
    assert len(found) == 7  # of the untrained model too
    assert found == pytest.approx(wanted, rel=1e-3)
    assert found[-2] < 0.7 * found[1]
    assert not (tmp_path / "notes").exists()


def test_losses_are_said_where_more_is_asked_for(
    tmp_path: Path, tiny_bert: Callable[..., Any], encoded: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.set_level("verbose")
    try:
        history = adapt_(tiny_bert(), TASK, Padding(), encoded, None, Training(epochs=1), folder=tmp_path / "run")
    finally:
        progress.set_level("off")
    (row,) = [row for row in history if "loss" in row]
    assert f"step {row['step']}: loss {row['loss']:.4f}, learning rate" in capsys.readouterr().err


def test_a_model_that_gives_more_than_logits_is_validated_by_them(
    tmp_path: Path, tiny_bert: Callable[..., Any], encoded: Any
) -> None:
    model = tiny_bert(0)
    model.config.output_hidden_states = True  # as an encoder and decoder gives the encoder's
    training = Training(epochs=1, batch_size=4)
    history = adapt_(model, TASK, Padding(), encoded, encoded, training, folder=tmp_path / "run")
    assert 0 <= history[-1]["eval_accuracy"] <= 1
