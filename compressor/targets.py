"""Which layers of a model are compressed: linear layers inside repeated blocks, and why the others are not.

Nothing here names an architecture. Targets are the linear layers inside repeated blocks (the elements of a ModuleList),
the head is what linear layers are left outside of them; embeddings and tied weights belong to neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from compressor.errors import ModelError, did_you_mean
from compressor.planning import break_even


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
