"""What rounding by the task's data keeps of a model: each precision made with and without samples, against its fp32.

    RANKFOLD_MODELS=... RANKFOLD_DATA=... python benchmarks/rounding.py build/comparison/cifar10-dense-1.0-0 \\
        build/comparison/cifar10-jactus-0.5-0

Models are folders that `comparison.py` saved, `<suite>-<arm>-<budget>-<seed>`. One JSON row per model, precision and
way: how often the label or next token is that of the fp32 export, the root mean square difference of the logits (of the
log-likelihoods of a text) in standard deviations of theirs, accuracy or perplexity, and what the export took. Rows that
are there are not made again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from decoding import calibration_of
from deployment import calibration, evaluation, load
from results import Rows, exit_code
from suites import SUITES, Suite

from compressor import models, progress
from compressor.machine import machine, versions
from compressor.tasks.base import Outcomes, together
from exporters.base import Arrays, Session
from exporters.onnx import OnnxExporter
from exporters.onnx.precisions import PRECISIONS
from validators.perplexity import perplexity

TEXT = "text-generation"


class Case:
    """A saved model, its samples and its measured rows, with what its fp32 export says of them."""

    def __init__(self, folder: Path, limit: int | None, threads: int, work: Path) -> None:
        self.suite, self.work, self.threads = suite_of(folder), work, threads
        self.processor, self.model = self.suite.processor(str(folder)), load(folder, self.suite)
        self.labels = None if self.suite.task_name == TEXT else list(self.model.config.id2label.values())
        self.batches = evaluation(self.suite, self.processor, self.labels, limit)
        self.reference = self.outcomes(self.exported("fp32", []))

    def samples(self) -> list[Arrays]:
        """Batches of train."""
        if self.labels is None:
            return calibration_of(self.suite, self.processor)
        return calibration(self.suite, self.processor, self.labels)

    def exported(self, precision: Any, samples: list[Arrays]) -> Path:
        """A new export, beside that in fp32."""
        path = self.work / f"onnx-{precision}"
        shutil.rmtree(path, ignore_errors=True)
        OnnxExporter(precision).export(self.model, self.suite.task.example(self.processor), path, samples)
        return path

    def outcomes(self, export: Path) -> Outcomes:
        """What an export says of the measured rows."""
        runner = OnnxExporter().load(export, Session("cpu", self.threads))
        return together(self.suite.task.outcomes(runner(batch)["logits"], batch) for batch in self.batches)

    def figures(self, export: Path) -> dict[str, float]:
        """How far an export is from fp32, and how good it is."""
        found, whole = self.outcomes(export), self.reference
        error = float(np.sqrt(np.square(found.values - whole.values).mean()) / whole.values.std())
        figures = {"agreement": float((found.predictions == whole.predictions).mean()), "rmse": error}
        if self.labels is None:
            return figures | {"perplexity": perplexity(-found.values[:, 0].astype(np.float64))}
        return figures | {"accuracy": float((found.predictions == found.labels).mean())}


def suite_of(folder: Path) -> Suite:
    """The suite that a saved model's name begins with."""
    return SUITES[max((name for name in SUITES if folder.name.startswith(f"{name}-")), key=len)]


def measure(arguments: argparse.Namespace) -> None:
    """Every model in every precision, both ways where it can be made without samples."""
    rows = Rows(arguments.out)
    for folder in arguments.models:
        with tempfile.TemporaryDirectory() as work:
            case: Case | None = None
            for precision in arguments.precisions:
                for by_data in (False, True) if precision != "int8-static" else (True,):
                    key = {"model": folder.name, "precision": precision, "by_data": by_data, "limit": arguments.limit}
                    if rows.find(**key):
                        continue
                    case = case or Case(folder, arguments.limit, arguments.threads, Path(work))
                    samples, start = case.samples() if by_data else [], time.perf_counter()
                    export = case.exported(precision, samples)
                    seconds = {"export_seconds": time.perf_counter() - start}
                    made = {"threads": arguments.threads, "machine": machine(), "versions": versions()}
                    rows.add(key | case.figures(export) | seconds | made)


def main() -> int:
    """Measure what is asked for; an error on purpose is one sentence and its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rounding.jsonl"))
    parser.add_argument("--precisions", nargs="+", default=["int8", "int8-fused", "int4"], choices=list(PRECISIONS))
    parser.add_argument("--limit", type=int, help="rows that are measured; default: all of the suite")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    progress.set_level("normal")
    models.quiet_libraries()
    return exit_code(lambda: measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
