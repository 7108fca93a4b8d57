"""Dense models: load one safely for a task; which of its layers are compressed is in compressor.targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from compressor.errors import ModelError, first_line
from compressor.targets import Target as Target
from compressor.targets import find_targets as find_targets
from compressor.targets import head_parameters as head_parameters
from compressor.targets import linear as linear
from compressor.targets import replace_module as replace_module
from compressor.tasks.base import Task

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load_dense(
    path: str,
    task: Task,
    labels: Sequence[str] | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """A dense transformers model in float32, with a head for `labels`; safetensors only.

    Raises:
        ModelError: not a checkpoint, pickled, truncated, with weights that are not finite, or in need of remote code.
    """
    cls = auto_class(task)
    _refuse_pickle(path)
    options: dict[str, Any] = {"revision": revision} if revision else {}
    if labels is not None:
        options |= {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
        options |= {"label2id": {label: number for number, label in enumerate(labels)}}
    try:
        model = cls.from_pretrained(
            path, use_safetensors=True, dtype=torch.float32, trust_remote_code=trust_remote_code, **options
        )
    except Exception as error:  # transformers raises many kinds; each becomes a sentence
        raise _explained(path, error) from error
    require_finite(model, path)
    return model


def auto_class(task: Task) -> Any:
    """The transformers auto class of a task, from optimum's task table."""
    from optimum.exporters.tasks import TasksManager

    return TasksManager.get_model_class_for_task(task.architecture, library="transformers")


def _refuse_pickle(path: str) -> None:
    folder = Path(path)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{path} holds its weights as {', '.join(pickles)}, a pickle that can run code when it is read. Only "
            "safetensors are read: convert it where you trust it, with `model.save_pretrained(folder)`."
        )


def _explained(path: str, error: Exception) -> ModelError:
    text = str(error)
    if "SafetensorError" in type(error).__name__ or ("header" in text.lower() and "safetensors" in text.lower()):
        return ModelError(
            f"A safetensors file of {path} is truncated or damaged ({first_line(error)}). Fetch it again."
        )
    if "trust_remote_code" in text:
        return ModelError(
            f"{path} needs code that the checkpoint ships. If you trust it, set model.trust_remote_code: true "
            "(it is recorded)."
        )
    return ModelError(f"{path} cannot be loaded as a model: {first_line(error)}")


def require_finite(model: nn.Module, path: str) -> None:
    """Raises ModelError naming the weights that hold NaN or infinite values."""
    broken = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    if broken:
        raise ModelError(
            f"{len(broken)} weights of {path} hold NaN or infinite values ({', '.join(broken[:5])}"
            f"{', ...' if len(broken) > 5 else ''}). The checkpoint is damaged: fetch or convert it again."
        )


def describe(path: str, task: Task, targets: Literal["auto"] | Sequence[str] = "auto") -> tuple[Target, ...]:
    """The targets of a checkpoint from its config alone, no weights read.

    Raises:
        ModelError: no config, or no targets.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path)
    except Exception as error:
        raise _explained(path, error) from error
    with torch.device("meta"):
        return find_targets(auto_class(task).from_config(config), targets)


def quiet_libraries() -> None:
    """Keep transformers' progress bars and load reports off stderr: the line has its own."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
