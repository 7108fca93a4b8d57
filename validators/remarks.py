"""What a reader has to know before the figures, from the report's own: what makes them prove less than they seem to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from validators.facts import look

if TYPE_CHECKING:
    from validators.report import ExportReport


def remarks(exports: Sequence[ExportReport], context: Mapping[str, Any]) -> Iterator[str]:
    """Sentences; none where there is nothing to say."""
    rows, seen = (look(context, "data", "evaluation", key) for key in ("rows", "rows_also_in_train"))
    if isinstance(seen, int) and seen > 0 and isinstance(rows, int):
        yield (
            f"{seen:,} of the {rows:,} rows that quality is measured on stand in the training data, too: on those it "
            "is what was learned by heart."
        )
    yield from dict.fromkeys(said for export in exports if (said := _guessed(export)))


def _guessed(export: ExportReport) -> str:
    """What is said of a dense model that is no better than one that always says the same."""
    accuracy = export.finding("accuracy")
    share = accuracy.details.get("commonest_label") if accuracy else None
    if accuracy is None or share is None or not accuracy.dense <= share:
        return ""
    return (
        f"The dense model is right on {accuracy.dense:.1%} of the rows; to say the commonest label each time is right "
        f"on {share:.1%}. It has not learned this task, or its classes stand in another order: what is held against it "
        "proves nothing."
    )
