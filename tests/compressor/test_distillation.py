"""Lessons of an adapted dense model: the losses against numpy, padding, and what they do to a compressed one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.distillation import distillation_loss, hidden_loss, lesson_of, one_copy, prediction_loss
from compressor.recipe import Distillation

Batch = dict[str, Tensor]


@pytest.fixture
def batch(token_batches: Callable[..., list[Batch]]) -> Batch:
    return token_batches(1)[0]


def said(states: Iterable[Tensor], mask: Tensor | None = None) -> list[Tensor]:
    """States (B, T, d) as a lesson holds them: (tokens, d) of its own."""
    return [state.flatten(0, 1).clone() if mask is None else state[mask.bool()] for state in states]


def test_the_prediction_loss_is_the_softened_divergence() -> None:
    student, teacher, temperature = torch.randn(5, 4), torch.randn(5, 4), 3.0

    def softened(logits: Tensor) -> np.ndarray:
        raised = np.exp(logits.double().numpy() / temperature)
        return raised / raised.sum(1, keepdims=True)

    p, q = softened(teacher), softened(student)
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    assert float(prediction_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)


def test_the_hidden_loss_is_each_layers_error_over_its_variance() -> None:
    student, teacher = tuple(torch.randn(2, 2, 6, 4)), tuple(torch.randn(2, 2, 6, 4) * 5)
    shares = []
    for state, taught in zip(student, teacher, strict=True):
        rows, wanted = state.reshape(-1, 4).numpy(), taught.reshape(-1, 4).numpy()
        shares.append(((rows - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum())
    assert float(hidden_loss(student, said(teacher))) == pytest.approx(np.mean(shares), rel=1e-5)


def test_the_hidden_losss_gradient_is_the_difference_of_the_loss() -> None:
    state, taught = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda one: hidden_loss([one[None]], [taught.clone()]), state)


def test_a_tensor_that_is_the_state_of_two_layers_is_compared_twice() -> None:
    class Repeating(torch.nn.Module):
        def forward(self, x: Tensor, output_hidden_states: bool = False) -> Any:
            return type("Outputs", (), {"logits": x[:, 0], "hidden_states": (x, x, x), "loss": x.sum()})()

    x = torch.randn(3, 2, 4)
    batch = {"x": x, "labels": torch.zeros(3, dtype=torch.long)}
    lesson = lesson_of(Repeating(), batch, Distillation())
    assert lesson.states[0].data_ptr() != lesson.states[1].data_ptr()


def test_a_state_of_a_single_token_has_no_variance_and_no_error() -> None:
    student, teacher = (tuple(torch.randn(*shape) for shape in ((1, 3, 4), (1, 1, 4))) for _ in range(2))
    assert float(hidden_loss(student, said(teacher))) == float(hidden_loss(student[:1], said(teacher[:1]))) < 100
    assert float(hidden_loss(student[1:], said(teacher[1:]))) == 0


def test_padding_teaches_nothing() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    student, teacher = tuple(torch.randn(2, 2, 5, 3)), tuple(torch.randn(2, 2, 5, 3))
    before = float(hidden_loss(student, said(teacher, mask), mask))
    spoiled = tuple(torch.where(mask[..., None].bool(), state, 1e3) for state in student)
    assert float(hidden_loss(spoiled, said(teacher, mask), mask)) == before
    assert float(hidden_loss(spoiled, said(teacher))) > 100 * before


def test_a_pupil_that_equals_its_teacher_has_the_labels_share_alone(
    tiny_bert: Callable[..., Any], batch: Batch
) -> None:
    model = tiny_bert()
    loss, outputs = distillation_loss(model, tiny_bert(), batch, Distillation(predictions=0.3, hidden=2.0))
    assert float(loss.detach()) == pytest.approx(0.7 * float(outputs.loss.detach()), rel=1e-5)


def test_no_gradient_reaches_the_teacher(tiny_bert: Callable[..., Any], batch: Batch) -> None:
    student, teacher = tiny_bert(0), tiny_bert(1)
    distillation_loss(student, teacher, batch, Distillation())[0].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize("section", [Distillation(hidden=0, predictions=1), Distillation(hidden=1, predictions=0)])
def test_lessons_bring_the_pupil_nearer_to_its_teacher(
    tiny_bert: Callable[..., Any], batch: Batch, section: Distillation
) -> None:
    student, teacher = tiny_bert(0), tiny_bert(1)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)

    def distance() -> float:
        with torch.no_grad():
            ours, theirs = student(**batch, output_hidden_states=True), teacher(**batch, output_hidden_states=True)
        if section.hidden:
            mask = batch["attention_mask"]
            return float(hidden_loss(ours.hidden_states[1:], said(theirs.hidden_states[1:], mask), mask))
        return float(prediction_loss(ours.logits, theirs.logits, section.temperature))

    before = distance()
    for _ in range(20):
        distillation_loss(student, teacher, batch, section)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert distance() < 0.3 * before


def test_what_a_pupil_has_of_its_teacher_is_held_once_while_it_learns(tiny_bert: Callable[..., Any]) -> None:
    student, teacher = tiny_bert(0), tiny_bert(0)
    student.requires_grad_(False)
    student.classifier.requires_grad_(True)
    with torch.no_grad():
        student.bert.pooler.dense.weight.add_(1)
    before = {name: one.clone() for name, one in student.state_dict().items()}
    theirs = dict(teacher.named_parameters())
    with one_copy(student, teacher):
        shared = {name for name, one in student.named_parameters() if one.data_ptr() == theirs[name].data_ptr()}
    apart = {name for name in theirs if name.startswith("classifier") or name == "bert.pooler.dense.weight"}
    assert shared == set(theirs) - apart
    assert all(torch.equal(one, before[name]) for name, one in student.state_dict().items())
    assert all(one.data_ptr() != theirs[name].data_ptr() for name, one in student.named_parameters())


def test_the_teachers_running_means_stay_where_they_are() -> None:
    model, teacher = (torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)) for _ in range(2))
    teacher.load_state_dict(model.state_dict())
    teacher.eval()
    kept = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
    with one_copy(model, teacher):
        for seed in range(5):
            model.train()(torch.randn(16, 4, generator=torch.Generator().manual_seed(seed)) + 3)
    assert all(torch.equal(buffer, kept[name]) for name, buffer in teacher.named_buffers())
    assert float(model[1].running_mean.abs().max()) > 0.01
