"""What a step of training holds and takes: full fine-tuning, LoRA, and JACTUS at half the weights.

    RANKFOLD_MODELS=... RANKFOLD_DATA=... python benchmarks/training.py trec banking77 cifar10 arc_easy

Counted (training_memory.py) and as torch's allocator saw it in one step, on the batch of train that has most numbers,
and the time of a step, all ways in turns in one process on one thread. JACTUS is measured as it is trained, and as it
was before (`jactus-before`): by autograd's own products, with its teacher in memory and asked in every step. Nothing
is trained before: models start from the checkpoint, which teaches too, and ranks are planned with 64 rows; only shapes
and ranks matter. Rows that are in the file already are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import adapters
import torch
from arms import ARMS
from bench import DISTILLATION, Bench
from results import Row, Rows, exit_code
from suites import SUITES
from torch.profiler import ProfilerActivity, profile
from training_memory import training_bytes

from compressor import adapt, lean, models, progress
from compressor.distillation import Lesson, distillation_loss, taught_loss
from compressor.machine import machine, versions

WAYS = ("dense", "dense-lora", "jactus", "jactus-before")
BEFORE, BUDGET, SAMPLES = "-before", 0.5, 64
MEMORY = "[memory]"  # what the profiler calls the allocator's events


@dataclass
class Step:
    """One way to train, with its model, its optimizer and what stands beside them."""

    model: Any
    loss: Callable[[], torch.Tensor]
    held: Row  # counted bytes
    plain: bool  # by autograd's own products

    def __post_init__(self) -> None:
        learned = [one for one in self.model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=1e-6)
        self()  # so that the optimizer's copies are there

    def __call__(self) -> None:
        with plainly() if self.plain else nullcontext():
            self.loss().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def allocated(self) -> int:
        """The most that is allocated within a step, with what is held between steps."""
        beside = sum(self.held.get(part, 0) for part in ("weights", "optimizer", "teacher"))
        return beside + most_allocated(self)

    def milliseconds(self) -> float:
        """Of one step."""
        begun = time.perf_counter()
        self()
        return 1000 * (time.perf_counter() - begun)


@contextmanager
def plainly() -> Iterator[None]:
    """Trained layers leave their products to autograd."""
    applies, lean.applies = lean.applies, lambda _: False
    try:
        yield
    finally:
        lean.applies = applies


def most_allocated(work: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator held during some work, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events: Any = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == MEMORY)
    most = held = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def prepared(bench: Bench, way: str, batch: dict[str, torch.Tensor]) -> Step:
    """One way to train."""
    arm, before, terms = ARMS[way.removesuffix(BEFORE)], way.endswith(BEFORE), bench.task.terms
    model, _ = bench.start(arm, BUDGET if arm.method else 1.0)
    if arm.adapter:
        adapters.lay_(model, arm.adapter, arm.rank or 1)
    model.train()
    teacher = bench.adapted.eval() if arm.taught else None
    if before:
        loss = partial(_first, distillation_loss, model, teacher, batch, DISTILLATION, terms)
        with plainly():
            held = training_bytes(model, loss)
        return Step(model, loss, held | {"teacher": sum(one.nbytes for one in teacher.parameters())}, True)
    held = bench.held(model, teacher, batch)
    if teacher is None:
        return Step(model, lambda: model(**batch).loss, held, False)
    if bench.noted(teacher):
        lesson = bench.said(teacher, batch)
        return Step(model, lambda: _first(taught_loss, model, read(lesson), batch, DISTILLATION, terms), held, False)
    return Step(model, partial(_first, distillation_loss, model, teacher, batch, DISTILLATION, terms), held, False)


def read(lesson: Lesson, device: str = "cpu") -> Lesson:
    """A copy, as reading the file gives: a step uses it up."""
    return Lesson(lesson.logits.clone(), tuple(one.clone() for one in lesson.states)).to(device)


def _first(loss: Callable[..., tuple[torch.Tensor, Any]], *arguments: Any) -> torch.Tensor:
    return loss(*arguments)[0]


def measured(bench: Bench, rounds: int) -> Iterator[Row]:
    """A row for each way."""
    batch = bench.fullest
    shape = list(next(iter(batch.values())).shape)
    steps = {way: prepared(bench, way, batch) for way in WAYS}
    allocated = {way: step.allocated() for way, step in steps.items()}
    times: dict[str, list[float]] = {way: [] for way in [*WAYS, "lesson"]}
    ask = partial(bench.said, bench.adapted.eval(), batch)
    for _ in range(rounds):
        for way in random.sample(WAYS, len(WAYS)):
            times[way].append(steps[way].milliseconds())
        begun = time.perf_counter()
        ask()
        times["lesson"].append(1000 * (time.perf_counter() - begun))
    for way, step in steps.items():
        yield {
            "arm": way,
            "budget": BUDGET if way.startswith("jactus") else 1.0,
            "batch": shape,
            "trainable": adapt.trainable(step.model),
            "counted_bytes": step.held,
            "allocated_bytes": allocated[way],
            "step_ms": times[way],
            "to_dense": statistics.median(a / b for a, b in zip(times[way], times["dense"], strict=True)),
            "lesson_ms": statistics.median(times["lesson"]) if way.startswith("jactus") else 0.0,
        }


def main() -> int:
    """Every suite that has no rows yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=sorted(SUITES))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training.jsonl"))
    arguments = parser.parse_args()
    progress.set_level("off")
    models.quiet_libraries()
    torch.set_num_threads(1)

    def work() -> None:
        rows = Rows(arguments.out)
        for name in arguments.suites:
            if not rows.find(suite=name):
                suite = SUITES[name]
                few = suite.calibration.model_copy(update={"samples": SAMPLES})
                bench = Bench(replace(suite, calibration=few), 0, 0.0, Path("build"), probe=False)
                bench.__dict__["adapted"] = copy.deepcopy(bench.probed)
                for row in measured(bench, arguments.rounds):
                    rows.add({"suite": name, "model": bench.suite.model} | row | _setting())

    return exit_code(work)


def _setting() -> Row:
    return {"threads": torch.get_num_threads(), "machine": machine(), "versions": versions()}


if __name__ == "__main__":
    sys.exit(main())
