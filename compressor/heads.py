"""The classification head that a checkpoint brings, whose rows are put into the order of the data's labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from compressor import progress
from compressor.errors import some
from compressor.targets import head_parameters

UNNAMED = "LABEL_"  # what transformers calls the classes of a head that nobody named


def names(config: Any) -> list[str]:
    """The classes that a checkpoint's config names, in the order of its logits."""
    found = getattr(config, "id2label", None) or {}
    return [str(found[number]) for number in sorted(found)]


def reorder_(model: nn.Module, path: str, known: Sequence[str], labels: Sequence[str], made: Collection[str]) -> None:
    """Put the rows of the last layer that gives one logit for each label where the labels are in the data's order.

    A head of other names is left as it is, and told: a label's row is then the one of its place.

    Args:
        model: from a checkpoint.
        path: of the checkpoint.
        known: the classes in the order of its logits.
        labels: the data's.
        made: names of weights that the checkpoint had not, or not in this shape.
    """
    own = [name for name, one in head_parameters(model).items() if name not in made and len(one) == len(labels)]
    order = order_of(known, labels)
    if not own or order == list(range(len(labels))):
        return
    if order is None:
        _note_other_names(path, tuple(known), tuple(labels))
        return
    last = own[-1].rpartition(".")[0]
    with torch.no_grad():
        for parameter in (model.get_parameter(name) for name in own if name.rpartition(".")[0] == last):
            parameter.copy_(parameter[torch.tensor(order)])


def order_of(known: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """For each of the data's labels the place of a head's class of that name; None where the names are others.

    A class that nobody named is the one of its number, `LABEL_2` is "2", unless the data has that very name.
    """
    for told in (list(known), [name.removeprefix(UNNAMED) for name in known]):
        if sorted(told) == sorted(labels):
            return [told.index(label) for label in labels]
    return None


def _note_other_names(path: str, known: tuple[str, ...], labels: tuple[str, ...]) -> None:
    progress.note(
        f"{path} has a head for {some(known, 3)}; its rows are taken for {some(labels, 3)} in this order.", once=True
    )
