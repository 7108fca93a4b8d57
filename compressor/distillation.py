"""What an adapted dense model teaches a compressed one: its predictions and its hidden states.

Compression keeps depth and width, so hidden states are compared layer by layer, without a projection between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.recipe import Distillation


def distillation_loss(
    student: nn.Module, teacher: nn.Module, batch: Mapping[str, Tensor], section: Distillation
) -> tuple[Tensor, Any]:
    """(1 - predictions) * label loss + predictions * T^2 KL(teacher || student) + hidden * the hidden states' error.

    Predictions after Hinton et al. (arXiv 1503.02531, section 2), hidden states after TinyBERT (1909.10351, eq. 8):
    each layer's error as a share of its variance over the batch, so that one weight fits every model.

    Args:
        student: the compressed model, in training mode.
        teacher: the adapted dense model, in evaluation mode; no gradient reaches it.
        batch: the inputs of both, with `labels`.
        section: weights and temperature.

    Returns:
        the loss, (), and the student's outputs.
    """
    wanted = {"output_hidden_states": section.hidden > 0}
    outputs = student(**batch, **wanted)
    with torch.no_grad():
        taught = teacher(**{key: value for key, value in batch.items() if key != "labels"}, **wanted)
    loss = (1 - section.predictions) * outputs.loss
    loss = loss + section.predictions * prediction_loss(outputs.logits, taught.logits, section.temperature)
    if section.hidden:
        loss = loss + section.hidden * hidden_loss(
            outputs.hidden_states, taught.hidden_states, batch.get("attention_mask")
        )
    return loss, outputs


def prediction_loss(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits (B, C), averaged over the batch, ()."""
    student, teacher = ((row / temperature).log_softmax(-1) for row in (logits, taught))
    return temperature**2 * nn.functional.kl_div(student, teacher, log_target=True, reduction="batchmean")


def hidden_loss(states: tuple[Tensor, ...], taught: tuple[Tensor, ...], mask: Tensor | None = None) -> Tensor:
    """Squared error of each layer's states (B, T, d) over their variance, averaged over the layers, ().

    The first states are the embeddings, which are no target; where `mask (B, T)` is zero there is padding.
    """
    errors = [_share_of_variance(*_unpadded(*pair, mask)) for pair in zip(states[1:], taught[1:], strict=True)]
    return torch.stack(errors).mean()


def _unpadded(state: Tensor, taught: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if mask is None or mask.shape != state.shape[:2]:
        return state.flatten(0, -2), taught.flatten(0, -2)
    return state[mask.bool()], taught[mask.bool()]  # (tokens, d)


def _share_of_variance(state: Tensor, taught: Tensor) -> Tensor:
    return (state - taught).square().mean() / taught.var(0, correction=0).mean().clamp_min(1e-12)
