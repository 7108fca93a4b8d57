"""What classification tasks share: labels as text, and logits that say one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compressor.errors import DataError, some
from compressor.tasks.base import Column, Outcomes

if TYPE_CHECKING:
    import numpy as np

    from compressor.recipe import Source

WHOLE = re.compile(r"-?\d+")
KINDS = ("string", "large_string", "int", "uint", "bool")  # of floats each would be a class of its own


def column(source: Source) -> dict[str, Column]:
    """The label's."""
    return {"label": Column(source.label, KINDS, "strings or whole numbers")}


def names(train: Any) -> list[str]:
    """The labels of the training rows, as text, in the order of the logits: a class feature's own, else sorted.

    Whole numbers are sorted as such, also where a file has them as text.
    """
    feature = train.features["label"]
    if hasattr(feature, "names"):
        return list(feature.names)
    found = set(train["label"][:])
    whole = all(isinstance(label, str) and WHOLE.fullmatch(label) for label in found)
    return [str(label) for label in sorted(found, key=lambda label: (int(label), label) if whole else label)]


def numbers(rows: Any, labels: Sequence[str], name: str) -> list[int]:
    """Each row's place in `labels`.

    Raises:
        DataError: a label that training has not seen, or none; `name` says in which split.
    """
    places = {label: number for number, label in enumerate(labels)}
    _require_labeled(rows, name)
    found = _as_text(rows)
    unseen = sorted(set(found) - set(places))
    if unseen:
        raise DataError(
            f"{name} has labels that training does not have: {some([*map(repr, unseen)])}; "
            f"the {len(labels)} known are {some([*map(repr, labels)])}. Leave these rows out, or train on such, too: "
            "data.train.limit may have dropped them."
        )
    return [places[label] for label in found]


def _require_labeled(rows: Any, name: str) -> None:
    """Hubs publish test sets without labels: a class feature has -1 there, which Python takes for the last class."""
    without = sum(number < 0 for number in rows["label"][:]) if hasattr(rows.features["label"], "names") else 0
    if without:
        raise DataError(f"{name}: {without} of {len(rows)} rows have no label (-1). Name a split that has labels.")


def _as_text(rows: Any) -> list[str]:
    feature = rows.features["label"]
    if hasattr(feature, "names"):
        return [feature.names[number] for number in rows["label"][:]]
    return [str(label) for label in rows["label"][:]]


def outcomes(logits: np.ndarray, batch: Mapping[str, np.ndarray]) -> Outcomes:
    """Logits (B, labels), the largest one's label, and the given labels."""
    import numpy as np

    predictions = np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), -1)  # (B,)
    return Outcomes(logits, predictions, batch["labels"])
