"""Budgets of latency and memory, end to end: what is asked, what planning measures, and what `validate` finds then.

    RANKFOLD_MODELS=... RANKFOLD_DATA=... python benchmarks/budgets.py DENSE --case latency-0.6-fp32

Each case is a whole run of recipes/faster.yaml on a part of TREC: plan, train, fold, export, validate. DENSE is the
folder of a MiniLM that knows TREC, such as the `baseline` of a run. One JSON row per case; cases whose rows are in the
file are not run again. Let nothing else run beside it. On a machine that others share, a `sitecustomize` on PYTHONPATH
that puts `time.process_time_ns` in the place of `time.perf_counter_ns` leaves out what others took: on one thread only.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from results import Rows, exit_code

from compressor import models, pipeline, progress
from compressor.files import read_json
from compressor.machine import machine, versions
from compressor.planning import Plan
from compressor.recipe import Recipe, read
from validators.report import Report

RECIPE = Path(__file__).parents[1] / "recipes" / "faster.yaml"
ROWS = 512  # of train


@dataclass(frozen=True)
class Case:
    """One budget: the share of dense fp32's latency or memory that is asked of the first export."""

    quantity: Literal["latency", "memory"]
    asked: float
    precision: str
    strategy: str

    @property
    def name(self) -> str:
        """Its row's `budget`."""
        return f"{self.quantity}-{self.asked:g}-{self.precision}"

    def recipe(self, dense: Path, threads: int) -> Recipe:
        """What is run; training is short, since costs are looked at."""
        settings = {
            "plan.strategy": self.strategy,
            "plan.budget": f"{{{self.quantity}: {self.asked}}}",
            "data.train.limit": ROWS,
            "adapt.epochs": 1,
            "baseline": f"{{path: {dense.resolve()}}}",
            "export": f"[{{runtime: onnx, precision: {self.precision}}}]",
            "validate.threads": threads,
            "gates": "{}",
        }
        return read(RECIPE, [f"{key}={value}" for key, value in settings.items()])


CASES = (
    Case("latency", 0.6, "fp32", "measured"),
    Case("latency", 0.45, "int8", "measured"),
    Case("latency", 0.35, "int8", "measured"),
    Case("memory", 0.5, "int8", "gain"),
    Case("memory", 0.3, "int8", "gain"),
    Case("memory", 0.8, "fp32", "gain"),
)


def validated(case: Case, report: Report) -> dict[str, Any]:
    """What the report says of the first export: the share of dense fp32, of memory over the runtime's own."""
    (row,) = (row for row in report.exports if row.name == f"onnx-{case.precision}")
    found = row.finding("latency_p50" if case.quantity == "latency" else "peak_memory")
    assert found is not None
    if case.quantity == "latency":
        return {"dense": found.dense, "candidate": found.candidate, "validated": found.ratio, "unit": found.unit}
    dense, ours = (found.details[f"{who}_peak"] - found.details[f"{who}_floor"] for who in ("dense", "candidate"))
    return {"dense": dense, "candidate": ours, "validated": ours / dense, "unit": found.unit}


def run(case: Case, dense: Path, threads: int, work: Path) -> dict[str, Any]:
    """The whole line; the row without its key."""
    folder = work / f"{case.name}-{threads}"
    report = pipeline.run(case.recipe(dense, threads), folder, resume=True)
    plan, record = Plan.load(folder / "plan.json"), read_json(folder / "measured.json")
    return {
        "asked": case.asked,
        "strategy": case.strategy,
        "predicted": plan.predicted,
        "measured": plan.measured,
        "dense_in_precision": record["dense"]["ratio"],
        "rounds": record["rounds"],
        "kept": plan.parameters / plan.dense_parameters,
        **validated(case, report),
        "clock": "processor" if time.perf_counter_ns is time.process_time_ns else "wall",
        "machine": machine(),
        "versions": versions(),
    }


def measure(arguments: argparse.Namespace) -> None:
    """The cases asked for that have no row yet."""
    rows = Rows(arguments.out)
    for case in CASES:
        key = {"budget": case.name, "threads": arguments.threads}
        if case.name in arguments.case and not rows.find(**key):
            rows.add(key | run(case, arguments.dense, arguments.threads, arguments.work))


def main() -> int:
    """Measure what is asked for; an error on purpose is one sentence and its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    names = [case.name for case in CASES]
    parser.add_argument("--case", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/budgets.jsonl"))
    parser.add_argument("--work", type=Path, default=Path("build/budgets"), help="holds the runs")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    progress.set_level("normal")
    models.quiet_libraries()
    return exit_code(lambda: measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
