"""The rows of a suite, encoded: drawn and held out as a run of the recipe would, but from several sources at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from suites import Suite, located

from compressor import data


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a suite's arms learn from, are calibrated on, and are measured on."""

    labels: list[str] | None
    train: Any
    calibration: Any
    measured: Mapping[str, Any]  # rows of train that are held out, where some are; else the test sets, by name
    digests: Mapping[str, str]


def prepare(suite: Suite, processor: Any, *, holdout: float, seed: int) -> Prepared:
    """Read and encode; for a single source the rows are those that `compressor.data.prepare` gives.

    Raises:
        DataError: whatever is wrong with any of the sources.
    """
    import datasets

    task = suite.task
    train = datasets.concatenate_datasets([data.read(one, task, seed) for one in suite.sources(holdout=holdout)])
    tests = {name: data.read(located(source), task, seed) for name, source in suite.sets.items()}
    labels = task.labels(train)
    learned = task.encode(train, processor, labels, suite.max_length, "train")
    if holdout:
        parts = learned.train_test_split(test_size=holdout, seed=seed)
        learned, measured = parts["train"], {"held out": parts["test"]}
    else:
        measured = {
            name: suite.measured(task.encode(rows, processor, labels, suite.max_length, name))
            for name, rows in tests.items()
        }
    drawn = learned.shuffle(seed=seed).select(range(min(suite.calibration.samples, len(learned))))
    (first, *_), digests = suite.sets, {name: data.digest(rows) for name, rows in tests.items()}
    return Prepared(
        labels=labels,
        train=learned,
        calibration=drawn,
        measured=measured,
        digests={"train": data.digest(train), "evaluation": digests.pop(first), **digests},
    )
