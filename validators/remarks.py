"""What a reader has to know before the figures, from the report's own: what makes them prove less than they seem to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from validators.export_report import ExportReport
from validators.facts import look, records

WAYS: Mapping[tuple[float, float], str] = {  # of timing, by `kept_on_gpu` and `cuda_graphs` of a latency's details
    (1, 1): "replayed as CUDA graphs",
    (1, 0): "with inputs and outputs on the GPU",
    (0, 0): "with copies to the GPU and back",
}


def remarks(exports: Sequence[ExportReport], context: Mapping[str, Any]) -> Iterator[str]:
    """Sentences; none where there is nothing to say."""
    rows, seen = (look(context, "data", "evaluation", key) for key in ("rows", "rows_also_in_train"))
    if isinstance(seen, int) and seen > 0 and isinstance(rows, int):
        yield (
            f"{seen:,} of the {rows:,} rows that quality is measured on {'stands' if seen == 1 else 'stand'} in the "
            f"training data, too: on {'that one' if seen == 1 else 'those'} it is what was learned by heart."
        )
    if otherwise := look(context, "judged_otherwise"):
        yield f"Judged otherwise than the run's recipe says, which it was made with: {', '.join(map(str, otherwise))}."
    yield from dict.fromkeys(said for export in exports if (said := _guessed(export)))
    yield from _chosen(exports, look(context, "recipe", "validate", "confidence"))
    for one in records(context, "unmeasured"):
        yield f"{one.get('export')} could not be measured, so nothing here is said of it: {one.get('error')}"
    yield from _timed(exports)


def _timed(exports: Sequence[ExportReport]) -> Iterator[str]:
    """What is said where exports on a GPU were timed in several ways, each beside its own dense baseline."""
    found: dict[str, list[str]] = {}
    for export in exports:
        latency = export.finding("latency_p50")
        if latency and "kept_on_gpu" in latency.details:
            way = latency.details["kept_on_gpu"], latency.details["cuda_graphs"]
            found.setdefault(WAYS[way], []).append(export.name)
    if len(found) > 1:
        said = "; ".join(f"{', '.join(names)} {way}" for way, names in found.items())
        yield f"Not all runs on the GPU were timed in one way, so that times of exports do not compare: {said}."


def _chosen(exports: Sequence[ExportReport], asked: Any) -> Iterator[str]:
    """What is said where the best of many is proven by the rows that it was chosen by."""
    found = {finding.confidence for export in exports if (finding := export.finding("accuracy"))}
    most = max((confidence for confidence in found if confidence is not None), default=0)
    if isinstance(asked, float) and most > asked:
        yield (
            f"The winner is chosen among {round((1 - asked) / (1 - most))} exports by the rows that prove it, so "
            f"qualities are judged with {most:.2%} confidence: {asked:.0%} for all of them together (Bonferroni)."
        )


def _guessed(export: ExportReport) -> str:
    """What is said of rows of one class, and of a dense model that is no better than one that always says the same."""
    accuracy = export.finding("accuracy")
    share = accuracy.details.get("commonest_label") if accuracy else None
    if accuracy is None or share is None or not accuracy.dense <= share:
        return ""
    if share == 1:
        return (
            "All rows that quality is measured on are of one class: who says it each time is right on all of them, and "
            "nothing is proven. Measure on rows of every class."
        )
    return (
        f"The dense model is right on {accuracy.dense:.1%} of the rows; to say the commonest label each time is right "
        f"on {share:.1%}. It has not learned this task, or its classes stand in another order: what is held against it "
        "proves nothing."
    )
