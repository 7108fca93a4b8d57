"""What calibration sees of one target while the model runs, and how that becomes rows and sums of their products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.forms import Form, form_of

STRIP = 192  # rows of a sum that one product fills


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, each of its modules called as it is written; their modes are put back afterwards.

    What torch runs in the place of `nn.TransformerEncoder` and its like there calls no layer, and packs padding.
    """
    training = [module for module in model.modules() if module.training]
    fast = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module in training:
            module.training = True


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a target."""

    given: Tensor  # held, so that no other tensor gets its place
    read: Tensor  # the same, or a copy of it as it was
    output: Tensor
    versions: tuple[int, int]  # how often `given` and `output` had been changed by then

    @property
    def source(self) -> tuple[int, int]:
        """What tells the tensor that was read from all others, and from itself before and after a change."""
        return id(self.given), self.versions[0]

    def overwritten(self, *, outputs: bool) -> bool:
        """Whether the model has changed what was read since, or what was given back where that is asked about."""
        given, output = self.versions
        return _version(self.given) != given or (outputs and _version(self.output) != output)


class Recorder:
    """Sees one target: its input when the forward pass reaches it, and its output to differentiate by.

    A model that overwrites the output (by an in-place ReLU, say) is given a copy to do that to; of an input that it
    overwrites a copy is kept.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.form: Form = form_of(layer)
        self.calls: list[Call] = []  # of the batch
        self.copies = False

    def __call__(
        self, module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any], output: Tensor
    ) -> Tensor | None:
        given = input_of(arguments, named)
        read = given.detach().clone() if self.copies else given
        self.calls.append(Call(given, read, output, (_version(given), _version(output))))
        return output.clone() if self.copies else None

    def overwritten(self, *, outputs: bool) -> bool:
        """Whether the model has changed inputs, or `outputs` where they are asked about; from then on with copies."""
        if self.copies:
            return False
        self.copies = any(call.overwritten(outputs=outputs) for call in self.calls)
        return self.copies

    def input_rows(self, mask: Tensor | None) -> Iterator[Tensor]:
        """What the weight matrix was applied to, (rows, in_features), call by call and without padding."""
        return (rows_of(self.form.inputs(call.read.detach()), mask) for call in self.calls)

    def gradient_rows(self, gradient: Tensor, mask: Tensor | None) -> Tensor:
        """The gradient of an output as (rows, out_features), without padding."""
        return rows_of(self.form.outputs(gradient), mask)


def input_of(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """What a layer is given, by place or by torch's name for it."""
    return arguments[0] if arguments else named["input"]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # which counts in-place changes


def rows_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, d) -> (tokens, d) without padding; other shapes are flattened to (rows, d)."""
    if mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape:
        return x[mask.bool()]
    return x.reshape(-1, x.shape[-1])


def accumulate(sums: dict[str, Tensor], name: str, rows: Tensor) -> None:
    """Add rows^T rows of rows (N, d) to the upper triangle of the sum (d, d) of that name, strip by strip."""
    rows = rows.float()
    if name not in sums:
        sums[name] = rows.new_zeros(rows.shape[1], rows.shape[1])
    for start in range(0, rows.shape[1], STRIP):  # of a large sum little more than half of the products
        strip = slice(start, start + STRIP)
        sums[name][strip, start:].addmm_(rows[:, strip].mT, rows[:, start:])


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix (d, d) of an upper triangle."""
    return upper.triu() + upper.triu(1).mT
