"""What an adapted dense model teaches a compressed one: its predictions and its hidden states.

Compression keeps depth and width, so hidden states are compared layer by layer, without a projection between them. A
model that gives none is taught by predictions alone: its loss is the recipe's with `hidden` 0, the rest unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from compressor.recipe import Distillation
from compressor.tasks.base import inputs_of, labeled


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
    with torch.no_grad():
        taught = _outputs(teacher, inputs_of(batch), section.hidden > 0)
    known = getattr(taught, "hidden_states", None) or ()
    outputs = _outputs(student, batch, len(known) > 1)
    loss = (1 - section.predictions) * outputs.loss
    if section.predictions:
        mask = terms(batch)
        matched = prediction_loss(outputs.logits[mask], taught.logits[mask], section.temperature)
        loss = loss + section.predictions * matched
    if len(known) > 1:
        loss = loss + section.hidden * hidden_loss(outputs.hidden_states, known, batch.get("attention_mask"))
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
    yield from model.named_buffers()


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


def hidden_loss(states: Sequence[Tensor], taught: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """Squared error of each layer's states over their variance, averaged over the layers, ().

    States are (B, T, d), or maps (B, d, H, W) as vision models have them; layers may differ in shape. The first states
    are the embeddings, which are no target; where `mask (B, T)` is zero there is padding.
    """
    errors = [_share_of_variance(*_unpadded(*pair, mask)) for pair in zip(states[1:], taught[1:], strict=True)]
    return torch.stack(errors).mean()


def _unpadded(state: Tensor, taught: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if state.ndim == 4:  # (B, d, H, W)
        return state.movedim(1, -1).flatten(0, -2), taught.movedim(1, -1).flatten(0, -2)
    if mask is None or mask.shape != state.shape[:2]:
        return state.flatten(0, -2), taught.flatten(0, -2)
    return state[mask.bool()], taught[mask.bool()]  # (tokens, d)


def _share_of_variance(state: Tensor, taught: Tensor) -> Tensor:
    return (state - taught).square().mean() / taught.var(0, correction=0).mean().clamp_min(1e-12)
