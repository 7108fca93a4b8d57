"""What an adapted dense model teaches a compressed one: its predictions and its hidden states.

Compression keeps depth and width, so hidden states are compared layer by layer, without a projection between them. A
model that gives none is taught by predictions alone: its loss is the recipe's with `hidden` 0, the rest unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase

from compressor.recipe import Distillation
from compressor.tasks.base import inputs_of, labeled


class Lesson(NamedTuple):
    """What a teacher says of a batch: softened and compared are its logits, and each layer's states."""

    logits: Tensor  # (terms, C) of the loss, none where predictions are not matched
    states: tuple[Tensor, ...]  # (tokens, d) of each layer but the embeddings, without padding; none where not wanted
    sizes: tuple[Sequence[int], ...] = ()  # how many terms, then how many tokens of each layer, every example has

    def to(self, device: Any, dtype: torch.dtype | None = None) -> Lesson:
        """The same elsewhere."""
        return Lesson(self.logits.to(device, dtype), tuple(one.to(device, dtype) for one in self.states), self.sizes)


@torch.no_grad()
def lesson_of(
    teacher: nn.Module,
    batch: Mapping[str, Tensor],
    section: Distillation,
    terms: Callable[[Mapping[str, Tensor]], Tensor] = labeled,
) -> Lesson:
    """What a teacher says of a batch; see `distillation_loss`."""
    taught = _outputs(teacher, inputs_of(batch), section.hidden > 0)
    mask, padded = terms(batch), batch.get("attention_mask")
    mask = mask if section.predictions else torch.zeros_like(mask)
    given = getattr(taught, "hidden_states", None) if section.hidden else None
    known = (given or ())[1:]  # without the embeddings, which are no target
    sizes = [_sizes(state, padded) for state in known]
    states = tuple(_of_their_own(_unpadded(state, padded) for state in known))
    return Lesson(taught.logits[mask], states, (mask.reshape(len(mask), -1).sum(1).tolist(), *sizes))


def distillation_loss(
    student: nn.Module,
    teacher: nn.Module,
    batch: Mapping[str, Tensor],
    section: Distillation,
    terms: Callable[[Mapping[str, Tensor]], Tensor] = labeled,
) -> tuple[Tensor, Any]:
    """(1 - predictions) * label loss + predictions * T^2 KL(teacher || student) + hidden * the hidden states' error.

    Predictions after Hinton et al. (arXiv 1503.02531, section 2), hidden states after TinyBERT (1909.10351, eq. 8):
    each layer's error as a share of its variance over the batch, so that one weight fits every model.

    Args:
        student: the compressed model, in training mode.
        teacher: the adapted dense model, in evaluation mode; no gradient reaches it.
        batch: the inputs of both, with `labels`.
        section: weights and temperature.
        terms: batch -> bool, true where logits are a loss term (`task.terms`); predictions are matched there.

    Returns:
        the loss, (), and the student's outputs.
    """
    return taught_loss(student, lesson_of(teacher, batch, section, terms), batch, section, terms)


def taught_loss(
    student: nn.Module,
    lesson: Lesson,
    batch: Mapping[str, Tensor],
    section: Distillation,
    terms: Callable[[Mapping[str, Tensor]], Tensor] = labeled,
) -> tuple[Tensor, Any]:
    """`distillation_loss` by a lesson that was given already, and is used up: its states become the pupil's errors."""
    outputs = _outputs(student, batch, bool(lesson.states))
    loss = (1 - section.predictions) * outputs.loss
    if section.predictions:
        matched = prediction_loss(outputs.logits[terms(batch)], lesson.logits, section.temperature)
        loss = loss + section.predictions * matched
    if lesson.states:
        states = outputs.hidden_states[1:]
        loss = loss + section.hidden * hidden_loss(states, lesson.states, batch.get("attention_mask"))
    return loss, outputs


@contextmanager
def one_copy(model: nn.Module, teacher: nn.Module) -> Iterator[None]:
    """Within it, what is frozen and alike in both models is held once; afterwards each has its own again.

    A compressed model has of its teacher the embeddings, norms, biases and layers that its plan keeps dense.
    """
    theirs = {**dict(teacher.named_parameters()), **dict(teacher.named_buffers())}
    alike = [(one, theirs[name]) for name, one in _frozen(model) if name in theirs and _equal(one, theirs[name])]
    for one, other in alike:
        one.data = other.data
    try:
        yield
    finally:
        for one, other in alike:
            if one.data_ptr() == other.data_ptr():
                one.data = other.data.clone()


def _frozen(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, one) for name, one in model.named_parameters() if not one.requires_grad)
    norms = {name for name, module in model.named_modules() if isinstance(module, _NormBase)}  # whose means move
    yield from ((name, one) for name, one in model.named_buffers() if name.rpartition(".")[0] not in norms)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


def _outputs(model: nn.Module, inputs: Mapping[str, Tensor], hidden: bool) -> Any:
    """The model's outputs, with hidden states where they are wanted and the model can give them."""
    if hidden:
        with suppress(TypeError, ValueError):  # how models refuse to give them; any other fault comes again below
            return model(**inputs, output_hidden_states=True)
    return model(**inputs)


def prediction_loss(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits (N, C), averaged over the rows, ()."""
    student, teacher = ((row / temperature).log_softmax(-1) for row in (logits, taught))
    return temperature**2 * nn.functional.kl_div(student, teacher, log_target=True, reduction="batchmean")


def hidden_loss(states: Iterable[Tensor], taught: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
    """Squared error of each layer's states over the variance of what was taught, averaged over the layers, ().

    Args:
        states: of the pupil's layers, (B, T, d), or maps (B, d, H, W) as vision models have them; layers may differ in
            shape.
        taught: a lesson's states, (tokens, d) without padding, which are used up. A single token has no variance, and
            no error.
        mask: (B, T), zero where there is padding.
    """
    pairs = zip((_unpadded(state, mask) for state in states), taught, strict=True)
    shares = [_share_of_variance(state, wanted) for state, wanted in pairs if len(wanted) > 1]
    return torch.stack(shares).mean() if shares else torch.zeros(())


def _unpadded(state: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, d), or a map (B, d, H, W), as (tokens, d)."""
    if state.ndim == 4:
        return state.movedim(1, -1).flatten(0, -2)
    return state.flatten(0, -2) if mask is None or mask.shape != state.shape[:2] else state[mask.bool()]


def _of_their_own(states: Iterable[Tensor]) -> Iterator[Tensor]:
    """States that may be written over: a model may give one tensor as the state of two layers."""
    seen = set[int]()
    for state in states:
        place = state.untyped_storage().data_ptr()
        yield state.clone() if place in seen else state
        seen.add(place)


def _sizes(state: Tensor, mask: Tensor | None) -> list[int]:
    """How many tokens each example has."""
    if state.ndim == 4:
        return [state[0, 0].numel()] * len(state)
    if mask is None or mask.shape != state.shape[:2]:
        return [state[0, ..., 0].numel()] * len(state)
    found: list[int] = mask.bool().sum(1).tolist()
    return found


class ShareOfVariance(torch.autograd.Function):
    """Squared error of a state (tokens, d) over the taught one's variance, (); what was taught becomes the error."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, taught: Tensor) -> Tensor:
        variance = taught.var(0, correction=0).mean().clamp_min(1e-12)
        error = taught.neg_().add_(state) if taught.dtype == state.dtype else state - taught
        ctx.save_for_backward(error, variance)
        return error.square().mean() / variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        error, variance = ctx.saved_tensors
        return error * (2 * gradient / (error.numel() * variance)), None


_share_of_variance: Callable[[Tensor, Tensor], Tensor] = ShareOfVariance.apply
