"""What a package says about its model: gathered once, told by the model card and the bill of materials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.artifact import Artifact
from compressor.packaging import base_model
from compressor.packaging.base_model import BaseModel
from compressor.packaging.tasks import PACKAGED
from exporters.onnx.precisions import PRECISIONS
from validators.export_report import ExportReport
from validators.report import Report
from validators.wording import complaint

SPLITS = ("train", "validation", "evaluation")


@dataclass(frozen=True)
class Split:
    """One part of the data: its name without the path to it, its rows and their digest."""

    split: str
    name: str
    rows: int
    digest: str


@dataclass(frozen=True)
class Summary:
    """The chosen export of an artifact, with what was measured of it."""

    name: str
    artifact: Artifact
    report: Report
    export: ExportReport
    base: BaseModel
    signed: bool

    @property
    def manifest(self) -> Mapping[str, Any]:
        """artifact.json."""
        return self.artifact.manifest

    @property
    def task(self) -> str:
        """Its name."""
        return str(self.manifest["task"])

    @property
    def recipe(self) -> Mapping[str, Any]:
        """As resolved."""
        return dict(self.manifest["recipe"])

    @property
    def method(self) -> str:
        """Its name."""
        return str((self.recipe.get("method") or {}).get("name", "low rank"))

    @property
    def made(self) -> str:
        """What was done with the base model, as the end of a sentence that began with its name."""
        if not self.export.dense:
            return f"compressed to low rank by {self.method} while it was adapted"
        adapted = self.recipe["baseline"].get("train") == "full" or self.recipe["baseline"].get("path")
        return f"dense, {'adapted in full' if adapted else 'not adapted'} and not compressed to low rank"

    @property
    def measured_on(self) -> Mapping[str, Any]:
        """What the report says of the rows behind its qualities."""
        told = self.report.context.get("data")
        found = told.get("evaluation") if isinstance(told, Mapping) else None
        return dict(found) if isinstance(found, Mapping) else {}

    @property
    def data(self) -> list[Split]:
        """The splits whose digests are known; `evaluation` is what the qualities were measured on."""
        found = {**self.manifest["data"]}
        found["evaluation"] = {**found.get("evaluation", {}), **self.measured_on}
        return [
            Split(split, Path(found[split]["path"]).name, found[split]["rows"], found[split]["digest"])
            for split in SPLITS
            if split in found
        ]

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the packages that the figures were measured with."""
        return dict(self.report.context.get("versions") or {})

    @property
    def limits(self) -> list[str]:
        """What the figures do not say, in sentences."""
        found = [_scope(self), *PACKAGED[self.task].limits]
        if PRECISIONS[self.export.precision].batchwise:
            found.append(
                "Activations are quantized over a whole batch: an input's numbers depend a little on the others in it."
            )
        found += [f"It was packaged although a gate does not hold: {complaint(one)}." for one in self.export.failures]
        if not self.export.gated:
            found.append("No gates were set: nobody said what these figures should be.")
        return [*found, "What the base model and the data are biased to, it is biased to; nothing here measured that."]


def summarize(name: str, artifact: Artifact, report: Report, export: ExportReport, signed: bool) -> Summary:
    """All of it, read from the artifact, its report and the base checkpoint."""
    model = artifact.manifest["recipe"]["model"]
    return Summary(name, artifact, report, export, base_model.find(model["path"], model.get("revision")), signed)


def _scope(summary: Summary) -> str:
    rows = next((split.rows for split in summary.data if split.split == "evaluation"), 0)
    validated = (summary.report.context.get("recipe") or {}).get("validate") or {}
    if validated.get("split") == "validation":
        return (
            f"The quality was measured on {rows:,} validation rows, by which settings were chosen; "
            "on data that chose nothing it is likely to be worse."
        )
    return f"The quality was measured on {rows:,} rows of one data set; on other data it may be another."
