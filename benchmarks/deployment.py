"""What the models that `comparison.py` saved cost and score once exported: fp32 and int8, against dense fp32.

    RANKFOLD_DATA=... python benchmarks/deployment.py build/comparison --out benchmarks/results/deployment.jsonl

One JSON row per export: accuracy on the test set, parity with torch, size, peak memory and latency, each beside
the dense fp32 export measured in the same run, alternating. Rows that are in the file are not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from results import Rows
from suites import Suite, located, named
from transformers import AutoConfig

from compressor import data, models, progress, registry, tensors
from compressor.factorize import restructure_
from compressor.machine import machine, versions
from compressor.planning import Plan
from compressor.recipe import ValidateSection
from exporters.base import Arrays, Session, write
from validators.base import Evaluation, Subject
from validators.measure import measure

PRECISIONS = ("fp32", "int8")
CALIBRATION, SEED = 128, 0  # rows of train, and their order


def load(folder: Path, suite: Suite) -> Any:
    """A saved model, folded where a plan lies beside it."""
    model = models.auto_class(suite.task).from_config(AutoConfig.from_pretrained(folder))
    if (folder / "plan.json").is_file():
        restructure_(model, Plan.load(folder / "plan.json"))
    return tensors.load_tensors_(model, folder / "model.safetensors").eval()


def calibration_rows(suite: Suite, processor: Any, labels: Sequence[str]) -> Any:
    """Encoded rows of train, those that exporters are given."""
    rows = data.read(suite.sources(holdout=0)[0], suite.task).shuffle(seed=SEED)
    chosen = rows.select(range(min(CALIBRATION, len(rows))))
    return suite.task.encode(chosen, processor, labels, suite.max_length, "train")


def calibration(suite: Suite, processor: Any, labels: Sequence[str]) -> list[Arrays]:
    """The same in batches."""
    return batches(calibration_rows(suite, processor, labels), suite, processor)


def evaluation(suite: Suite, processor: Any, labels: Sequence[str] | None, limit: int | None = None) -> list[Arrays]:
    """The batches of the suite's evaluation set, or of its first rows."""
    rows = data.read(located(suite.evaluation), suite.task)
    encoded = suite.measured(suite.task.encode(rows, processor, labels, suite.max_length, "test"))
    return batches(encoded.select(range(min(limit or len(encoded), len(encoded)))), suite, processor)


def batches(encoded: Any, suite: Suite, processor: Any) -> list[Arrays]:
    """Encoded rows as a graph takes them."""
    return [data.arrays(batch) for batch in data.posed(encoded, suite.task, processor)]


def subjects(
    folder: Path,
    suite: Suite,
    session: Session,
    precisions: Sequence[str] = PRECISIONS,
    root: Path | None = None,
    runtime: str = "onnx",
) -> list[Subject]:
    """The exports of one saved model, with the test set that they run on.

    They lie in `root`, or beside the model, and are made where they are not there yet.
    """
    task, processor, model = suite.task, suite.processor(str(folder)), load(folder, suite)
    rows = data.read(located(suite.evaluation), task)
    labels = [model.config.id2label[number] for number in range(model.config.num_labels)]
    encoded = suite.measured(task.encode(rows, processor, labels, suite.max_length, "test"))
    posed = list(data.posed(encoded, task, processor))
    evaluated = Evaluation(task, tuple(data.arrays(batch) for batch in posed))
    reference = data.outcomes(model, task, posed)
    found = []
    for precision in precisions:
        path = (root or folder) / f"{runtime}-{precision}"
        if not path.exists():
            exporter = registry.exporter(runtime, precision)
            samples = partial(calibration, suite, processor, labels)
            write(exporter, lambda: model, task.example(processor), path, samples)
        name = f"{folder.name}-{precision}"
        found.append(Subject(name, runtime, path, evaluated, session, reference))
    return found


def main() -> None:
    """Each saved model of the arms, and dense int8, against the dense fp32 model of the same data set and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/deployment.jsonl"))
    parser.add_argument("--arms", nargs="+", default=["jactus"])
    parser.add_argument("--suites", nargs="+", help="default: all that are there")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    progress.set_level("normal")
    models.quiet_libraries()
    rows = Rows(arguments.out)
    session = Session("cpu", arguments.threads)
    knobs = ValidateSection(threads=arguments.threads, sequence_length=32)
    for baseline in sorted(arguments.models.glob("*-dense-1.0-*")):
        if arguments.suites and baseline.name.split("-")[0] not in arguments.suites:
            continue
        suite_name, seed = baseline.name.split("-dense-1.0-")
        others = [
            folder
            for arm in arguments.arms
            for folder in sorted(arguments.models.glob(f"{suite_name}-{arm}-[0-9]*-{seed}"))
        ]
        dense, *candidates = subjects(baseline, named(suite_name), session)
        for folder in others:
            candidates += subjects(folder, named(suite_name), session)
        for candidate in candidates:
            if not rows.find(export=candidate.name):
                findings = measure(dense, [candidate], knobs, {})[candidate.name]
                rows.add(row(candidate, suite_name, int(seed), findings, knobs))


def row(candidate: Subject, suite: str, seed: int, findings: Any, knobs: ValidateSection) -> dict[str, Any]:
    """One export's figures with what they were measured on."""
    return {
        "export": candidate.name,
        "suite": suite,
        "seed": seed,
        "findings": {finding.quantity: asdict(finding) for finding in findings},
        "measured": knobs.model_dump(),
        "machine": machine(),
        "versions": versions(),
    }


if __name__ == "__main__":
    main()
