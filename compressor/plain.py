"""A module of one's own, called as the line calls every model: inputs by name, an output with `.loss` and `.logits`.

Nothing is put around it: its forward is bound anew on the object, so that the names of its layers and weights, its
class and its state stay what they are in plans, reports and files.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from types import MethodType
from typing import Any

from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.tasks.base import Task, task_loss

OURS = "_answers_for_rankfold"  # marks the forward that is bound here
ASKED_FOR = ("labels", "num_items_in_batch")  # given only where forward names them


def answering_(module: nn.Module, task: Task) -> nn.Module:
    """Let a module take a task's batches, and give `.logits`, and `.loss` where there are labels.

    Its own forward is given the inputs that it names (all but labels, where it takes `**`), and returns logits as a
    tensor, a tuple that starts with one, or an object with `.logits`. The loss is its own where it names `labels` and
    returns an object with `.loss`, else the task's.

    Raises:
        ModelError: its forward is compiled or scripted, or answers already: each copy must be built anew.
    """
    own = getattr(module.forward, "__func__", None)
    if own is None:
        raise ModelError(
            f"The forward of {type(module).__name__} is scripted or compiled, so its layers cannot be replaced: give "
            "the module that it was made of."
        )
    if hasattr(own, OURS):
        raise ModelError(
            f"This {type(module).__name__} is in use already. The run changes its models in place, so every call must "
            "build a new one."
        )
    module.forward = MethodType(_answering(own, task), module)
    return module


def _answering(own: Callable[..., Any], task: Task) -> Callable[..., Any]:
    """A function to be bound in the place of `own`."""
    kinds = inspect.signature(own).parameters
    anything = any(kind.kind is inspect.Parameter.VAR_KEYWORD for kind in kinds.values())
    judges = "labels" in kinds

    @wraps(own)
    def forward(self: nn.Module, *values: Any, **inputs: Any) -> Any:
        taken = {name: value for name, value in inputs.items() if name in kinds or (anything and name not in ASKED_FOR)}
        return _answer(self, own(self, *values, **taken), inputs, task, judges=judges)

    setattr(forward, OURS, True)
    return forward


def _answer(module: nn.Module, output: Any, inputs: Mapping[str, Any], task: Task, *, judges: bool) -> Any:
    """The output as transformers gives it; what is one already, and needs no loss, is left as it is.

    A `.loss` is the loss only where the module was given labels (`judges`): it may be a penalty of the module's own.
    """
    from transformers.utils import ModelOutput

    labels = inputs.get("labels")
    if isinstance(output, ModelOutput) and labels is None and "logits" in output:
        return output
    from transformers.modeling_outputs import SequenceClassifierOutput

    logits = _logits(module, output)
    loss = getattr(output, "loss", None) if labels is not None and judges else None
    if loss is None and labels is not None:
        loss = task_loss(task, logits, inputs)
    hidden = getattr(output, "hidden_states", None) if inputs.get("output_hidden_states") else None
    return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden)


def _logits(module: nn.Module, output: Any) -> Tensor:
    first = output[0] if isinstance(output, tuple | list) and output else output
    found = getattr(output, "logits", first)
    if not isinstance(found, Tensor) or found.ndim < 2:
        what = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"{type(output).__name__}"
        raise ModelError(
            f"The forward of {type(module).__name__} returned {what} where logits (B, ..., C) are wanted: a tensor, a "
            "tuple that starts with one, or an object with `.logits`."
        )
    return found
