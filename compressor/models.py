"""Dense models: load one safely for a task, find its targets and its head.

Nothing here names an architecture. Targets are the linear layers inside repeated blocks (the elements of a ModuleList),
the head is what linear layers are left outside of them; embeddings and tied weights belong to neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from compressor.errors import ModelError, did_you_mean
from compressor.planning import break_even

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Target:
    """A linear layer chosen to be compressed."""

    name: str
    out_features: int
    in_features: int

    @property
    def parameters(self) -> int:
        """Weights, biases aside."""
        return self.out_features * self.in_features

    @property
    def break_even(self) -> int:
        """The smallest rank at which two factors cost as much as the dense weight."""
        return break_even(self.out_features, self.in_features)


def load_dense(
    path: str,
    task: str,
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


def auto_class(task: str) -> Any:
    """The transformers auto class of a task, from optimum's task table."""
    from optimum.exporters.tasks import TasksManager

    return TasksManager.get_model_class_for_task(task, library="transformers")


def load_tokenizer(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The checkpoint's own tokenizer.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    options = {"revision": revision} if revision else {}
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
    except Exception as error:
        raise ModelError(f"No tokenizer can be read from {path}: {first_line(error)}") from error


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


def first_line(error: BaseException) -> str:
    """What an exception says first."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def require_finite(model: nn.Module, path: str) -> None:
    """Raises ModelError naming the weights that hold NaN or infinite values."""
    broken = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    if broken:
        raise ModelError(
            f"{len(broken)} weights of {path} hold NaN or infinite values ({', '.join(broken[:5])}"
            f"{', ...' if len(broken) > 5 else ''}). The checkpoint is damaged: fetch or convert it again."
        )


def find_targets(
    model: nn.Module, targets: Literal["auto"] | Sequence[str] = "auto", exclude: Sequence[str] = ()
) -> tuple[Target, ...]:
    """The linear layers to compress, in the model's order.

    Args:
        model: any module.
        targets: "auto" (linear layers in repeated blocks), or globs over the names of linear layers.
        exclude: globs over names that stay dense.

    Raises:
        ModelError: a glob matches nothing, or there is no target at all.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    tied = _tied(model)
    chosen = [name for name in linears if _repeated(model, name)] if targets == "auto" else _matching(linears, targets)
    skipped = _matching(linears, exclude)
    found = tuple(
        Target(name, linears[name].out_features, linears[name].in_features)
        for name in chosen
        if name not in skipped and name not in tied
    )
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no targets: none of its {len(linears)} linear layers is "
            f"{'in a repeated block' if targets == 'auto' else 'named by model.targets'} and free of tied weights. "
            "Name them with model.targets, globs over module names; `compressor inspect MODEL` lists them."
        )
    return found


def _matching(linears: Iterable[str], globs: Sequence[str]) -> list[str]:
    names = list(linears)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ModelError(f"'{glob}' matches no linear layer of the model.{did_you_mean(glob, names)}")
    return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]


def _repeated(model: nn.Module, name: str) -> bool:
    """Whether a module lies inside an element of a ModuleList."""
    parts = name.split(".")
    return any(isinstance(model.get_submodule(".".join(parts[:end])), nn.ModuleList) for end in range(1, len(parts)))


def _tied(model: nn.Module) -> set[str]:
    """Names of modules whose weight is shared with another module."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter):
            owners.setdefault(id(weight), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights and biases of the linear layers outside repeated blocks: poolers and classifiers, not tied ones."""
    tied = _tied(model)
    return {
        f"{name}.{key}": parameter
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in tied and not _repeated(model, name)
        for key, parameter in module.named_parameters()
    }


def linear(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer called `name`.

    Raises:
        ModelError: there is none.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        raise ModelError(f"'{name}' is no linear layer of {type(model).__name__}.")
    return module


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def describe(
    path: str, targets: Literal["auto"] | Sequence[str] = "auto", task: str = "text-classification"
) -> tuple[Target, ...]:
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
