"""`export: auto`: the best of all exports, dense and low-rank, that hold every gate. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from validators import pareto
from validators.export_report import ExportReport
from validators.options import entered, options


def winner(exports: Sequence[ExportReport]) -> ExportReport | None:
    """The best of all exports that hold every gate, dense ones too; None where there is none."""
    best = pareto.best(entered(options(holding(exports))))
    return next(export for export in exports if export.name == best.name) if best else None


def unwon(exports: Sequence[ExportReport]) -> str:
    """Why there is no winner."""
    held = len(holding(exports))
    if not held:
        return f"none of {len(exports)} exports holds every gate"
    return f"{held} of {len(exports)} exports hold every gate that is set, but none of them keeps accuracy and parity"


def crowned(exports: Sequence[ExportReport]) -> tuple[ExportReport, ...]:
    """With the winner as the only candidate; where there is none, low-rank exports stay candidates and fail."""
    best = winner(exports)
    if best is None:
        return tuple(exports)
    return tuple(replace(export, role="candidate" if export is best else "reference") for export in exports)


def front(exports: Sequence[ExportReport]) -> tuple[str, ...]:
    """Names of the sound exports that no other one dominates in accuracy, size, latency and memory."""
    return tuple(option.name for option in pareto.front(entered(options(exports))))


def holding(exports: Sequence[ExportReport]) -> list[ExportReport]:
    """The exports whose gates all hold."""
    return [export for export in exports if not export.unmet]
