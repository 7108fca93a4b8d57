"""Which layers of a model are compressed: linear layers inside repeated blocks, and why the others are not.

Nothing here names an architecture. Targets are the linear layers inside repeated blocks (the elements of a ModuleList,
or blocks of one class in a Sequential), the head is what linear layers are left outside of them; embeddings and tied
weights belong to neither. Convolutions are taken, and listed, only where they are named: a model may have hundreds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile

from torch import nn

from compressor import structure
from compressor.allocation import break_even
from compressor.errors import ModelError, did_you_mean
from compressor.forms import Dense, as_dense, is_convolution

COMPRESSED_TOO = " and compressed with it"


@dataclass(frozen=True)
class Target:
    """A linear layer chosen to be compressed; a convolution's `in_features` are the numbers in a patch."""

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
        return break_even(self.out_features, self.in_features) if self.parameters else 0


@dataclass(frozen=True)
class Considered(Target):
    """A layer under one of its names, whether it is a target, and why (not)."""

    target: bool
    reason: str


def find_targets(
    model: nn.Module, targets: str | Sequence[str] = "auto", exclude: str | Sequence[str] = ()
) -> tuple[Target, ...]:
    """The layers to compress, in the model's order.

    Args:
        model: any module.
        targets: "auto" (linear layers in repeated blocks), or a glob or globs over the names of linear layers and
            convolutions.
        exclude: a glob or globs over names that stay dense.

    Raises:
        ModelError: a glob matches nothing, a layer named in full cannot be a target, there is no target at all, or the
            model is compiled, parallel, quantized, or carries adapters.
    """
    structure.require_plain(model)
    rows = consider(model, targets, exclude)
    _require_named(rows, () if targets == "auto" else _globs(targets))
    found = tuple(Target(row.name, row.out_features, row.in_features) for row in rows if row.target)
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no targets: {_without(model, rows)}. Name them with model.targets (in Python: "
            "targets=), globs over the names that `python -m compressor inspect MODEL` or `consider(model)` lists; "
            "the glob `*` has convolutions listed too."
        )
    return found


def _without(model: nn.Module, rows: Sequence[Considered]) -> str:
    """How many layers were considered, the commonest reasons against them, and what was not considered."""
    every = structure.layers(model)
    convolutions = {name for name, layer in every.items() if is_convolution(layer)}
    named = convolutions & {row.name for row in rows}
    counted = f"{len(rows) - len(named)} linear layers" + (f" and {len(named)} named convolutions" if named else "")
    reasons = Counter(row.reason for row in rows).most_common(3)
    return f"none of its {counted} can be compressed" + "".join(
        f"; {count} {reason}"
        for reason, count in [*reasons, ("convolutions have to be named", len(convolutions - named))]
        if count
    )


def consider(
    model: nn.Module, targets: str | Sequence[str] = "auto", exclude: str | Sequence[str] = ()
) -> tuple[Considered, ...]:
    """Every linear layer of a model, and every convolution named, by every name, and why it is (not) a target.

    Parameters that hold several matrices, such as the experts of a mixture, come last: their rows are counted together.

    Raises:
        ModelError: a glob matches nothing.
    """
    every = structure.layers(model)
    firsts = structure.first_names(every)
    named = {} if targets == "auto" else _matching(every, _globs(targets), firsts)
    excluded = _matching(every, _globs(exclude), firsts)
    layers = {name: layer for name, layer in every.items() if firsts[name] in named or not is_convolution(layer)}
    obstacles: dict[str, str] = {}
    for name, reason in structure.obstacles(model, layers).items():
        obstacles.setdefault(firsts[name], reason)  # a layer is taken under all its names, or under none

    def verdict(name: str, layer: nn.Module) -> tuple[bool, str]:
        if name in excluded:
            return False, f"excluded by '{excluded[name]}'"
        if objection := obstacles.get(name) or _narrow(*structure.shape(layer)):
            return False, objection
        if targets != "auto":
            return name in named, f"named by '{named[name]}'" if name in named else "not named by the targets"
        objection = _unasked(model, name, layer)
        return not objection, objection or "in a repeated block"

    found = {name: verdict(name, layer) for name, layer in layers.items() if firsts[name] == name}
    rows = [
        Considered(
            name, *structure.shape(layer), *(found.get(name) or (False, _again(firsts[name], *found[firsts[name]])))
        )
        for name, layer in layers.items()
    ]
    return (*rows, *(_packed(name, *sizes) for name, sizes in structure.packed(model, every).items()))


def _packed(name: str, count: int, rows: int, columns: int) -> Considered:
    reason = f"{count} matrices of {rows} x {columns} in one parameter, no linear layers: experts stay dense"
    return Considered(name, count * rows, columns, False, reason)


def _again(first: str, target: bool, reason: str) -> str:
    """What is said of a further name of a layer."""
    return f"the same layer as {first}" + (COMPRESSED_TOO if target else f": {reason}")


def _narrow(out_features: int, in_features: int) -> str:
    """No rank is cheaper than a single row or column, nor than a matrix of 2 x 2."""
    empty = not out_features or not in_features
    return "too narrow for any rank to be cheaper" if empty or break_even(out_features, in_features) <= 1 else ""


def _unasked(model: nn.Module, name: str, layer: nn.Module) -> str:
    """Why a layer that could be compressed is no target unless it is named; empty where it is one."""
    if not in_block(model, name):
        return "outside the repeated blocks"
    if structure.has_own_forward(layer):
        return f"{type(layer).__name__} has a forward of its own; name it if that is x @ weight.T + bias"
    return ""


def _require_named(rows: Iterable[Considered], targets: Sequence[str]) -> None:
    """A layer that is named in full is meant: it is not passed over."""
    missed = [
        row
        for row in rows
        if row.name in targets
        and not (row.target or row.reason.startswith("excluded") or row.reason.endswith(COMPRESSED_TOO))
    ]
    if missed:
        raise ModelError(
            "Layers that the targets name cannot be compressed; take them out:\n"
            + "\n".join(f"  {row.name}: {row.reason}" for row in missed)
        )


def _globs(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _matching(layers: Iterable[str], globs: Sequence[str], firsts: Mapping[str, str]) -> dict[str, str]:
    """The layers that any of the globs matches under any of their names, by first name, each with the glob."""
    names, found = list(layers), dict[str, str]()
    for glob in globs:
        whole = glob in firsts  # a name that is there is meant as it stands, brackets and all
        matched = [firsts[glob]] if whole else [firsts[name] for name in names if fnmatchcase(name, glob)]
        if not matched:
            raise ModelError(
                f"'{glob}' matches no linear layer or convolution of the model.{did_you_mean(glob, names)}"
            )
        found = dict.fromkeys(matched, glob) | found
    return found


def globs_of(names: Sequence[str], among: Iterable[str]) -> list[str]:
    """Few globs that match `names` and none of the others; block numbers become `*` where that is so."""
    others = set(among) - set(names)
    found: dict[str, None] = {}
    for name in names:
        if any(fnmatchcase(name, glob) for glob in found):
            continue
        wide = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        found[name if any(fnmatchcase(other, wide) for other in others) else wide] = None
    return list(found)


def in_block(model: nn.Module, name: str) -> bool:
    """Whether a module, or a parameter, lies inside a repeated block."""
    return next(_blocks(model, name), None) is not None


def block_of(model: nn.Module, name: str) -> str:
    """The outermost repeated block with a forward that a module lies in; empty where there is none."""
    found = (block for block in _blocks(model, name) if not isinstance(model.get_submodule(block), nn.ModuleList))
    return next(found, "")


def _blocks(model: nn.Module, name: str) -> Iterator[str]:
    """The repeated blocks that a module, or a parameter, lies in, from the outside."""
    parts = name.split(".")
    for end in range(len(parts)):
        if _repeats(model.get_submodule(".".join(parts[:end])), parts[end]):
            yield ".".join(parts[: end + 1])


def _repeats(parent: nn.Module, child: str) -> bool:
    """Whether a child is one of several blocks: any of a ModuleList, or of a Sequential with a sibling of its class.

    A Sequential also holds single layers in a row (a head of two linear layers, say), which are no blocks.
    """
    if not isinstance(parent, nn.Sequential):
        return isinstance(parent, nn.ModuleList)
    block = parent.get_submodule(child)
    siblings = sum(type(other) is type(block) for other in parent._modules.values())
    return siblings > 1 and any(True for _ in block.children())


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights and biases of the linear layers outside repeated blocks: poolers and classifiers, not tied ones.

    What an encoder has before its blocks, such as the projection of small embeddings, is pretrained. A language model
    has no head: the layer in which it says its words, and what leads there, is pretrained too.
    """
    if getattr(model, "get_output_embeddings", lambda: None)() is not None:
        return {}
    other = {*structure.tied_weights(model), *_before_blocks(model)}
    return {
        f"{name}.{key}": parameter
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in other and not in_block(model, name)
        for key, parameter in module.named_parameters()
    }


def _before_blocks(model: nn.Module) -> list[str]:
    """Names of the modules of a transformers model's encoder that stand before its first repeated block."""
    encoder = getattr(model, "base_model", model)
    if encoder is model:
        return []
    names = [f"{model.base_model_prefix}.{name}" for name, _ in encoder.named_modules() if name]
    return list(takewhile(lambda name: not in_block(model, name), names))


def dense_layer(model: nn.Module, name: str) -> Dense:
    """The linear layer or convolution called `name`; one that holds its weight transposed as an nn.Linear, a copy.

    Raises:
        ModelError: there is none.
    """
    try:
        found = as_dense(model.get_submodule(name))
    except AttributeError:
        found = None
    if found is None:
        raise ModelError(f"'{name}' is no linear layer or plain convolution of {type(model).__name__}.")
    return found


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule called `name`, in all places where that one is."""
    for parent, child in list(structure.places(model, model.get_submodule(name))):
        setattr(parent, child, module)
