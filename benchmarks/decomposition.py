"""What calibrating, decomposing and planning cost beside a straightforward reference, in one run and in turns.

    RANKFOLD_MODELS=... RANKFOLD_DATA=... python benchmarks/decomposition.py trec cifar10 wikitext2

The same weights, calibration rows, damping and ranks on both sides, whose losses must agree. Stages, in seconds of
processor time (other work on the machine disturbs them least), every side once per round in a random order:

- calibrate: the moments of all targets;
- first: from the moments to a model at the first budget;
- next: from there to a model at another budget.

One JSON row per model, metric and stage, one with the losses, and one with the peak memory of each side up to the first
model, in a process of its own. Rows that are in the file are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import psutil
import straightforward
import torch
from arms import DENSE
from bench import Bench
from results import Row, Rows, exit_code
from suites import SUITES, Suite

from compressor import allocation, calibration, data, factorize, models, planning, progress, targets
from compressor.forms import matrix
from compressor.linalg import energy
from compressor.machine import machine, versions
from compressor.methods.base import Moments, metrics
from compressor.methods.spectral import Spectral
from compressor.metrics import SecondMoment
from compressor.planning import Plan
from compressor.turns import rounds

Metric = Literal["input", "both"]
METRICS: tuple[Metric, ...] = ("input", "both")
SIDES = ("ours", "reference")
BUDGETS = (0.5, 0.3)  # the first one, and another
LOSS_BATCH = 2
PEAK_BATCHES = 2  # what is held does not depend on their number


class Ours:
    """The line as it is called."""

    def __init__(self, job: Job) -> None:
        self.job, self.method = job, Spectral(job.metric, train="none")

    def calibrate(self) -> None:
        """Moments."""
        job = self.job
        torch.manual_seed(0)
        batches, needs = job.batches, self.method.needs()
        self.moments = calibration.calibrate(job.model, batches, needs, loss=job.loss, terms=job.terms)

    def first(self) -> None:
        """Decompositions, and the model at the first budget."""
        for one in self.moments.values():
            for moment in (one.input, one.gradient):
                if moment is not None:
                    moment.forget()  # what an earlier round has left
        self.subspaces = factorize.decompose(self.job.model, self.method, self.moments)
        self.truncate(BUDGETS[0])

    def truncate(self, budget: float) -> None:
        """Ranks, and the model that has them."""
        spectra = factorize.spectra(self.job.model, self.subspaces)
        self.plan = planning.allocate(spectra, budget=budget, strategy="uniform")
        model = copy.deepcopy(self.job.model)
        self.made = factorize.fold_(
            factorize.factorize_(model, self.method, self.moments, self.plan, subspaces=self.subspaces)
        )


class Reference:
    """The straightforward way, to the ranks of a plan."""

    def __init__(self, job: Job, plans: Mapping[float, Plan]) -> None:
        self.job, self.plans = job, plans

    def calibrate(self) -> None:
        """Moments."""
        job = self.job
        torch.manual_seed(0)
        self.layers = straightforward.calibrate(
            job.model, job.batches, job.names, job.loss, job.terms, gradients=job.metric == "both"
        )

    def first(self) -> None:
        """Cholesky factors, and the model at the first budget."""
        straightforward.profile(self.layers)
        self.truncate(BUDGETS[0])

    def truncate(self, budget: float) -> None:
        """The model at a budget, decomposed for it."""
        self.made = straightforward.truncate_(copy.deepcopy(self.job.model), self.layers, self.plans[budget].ranks)


class Job:
    """One model and metric."""

    def __init__(self, bench: Bench, metric: Metric, samples: int | None = None, measured: int = 128) -> None:
        self.bench, self.metric, self.terms = bench, metric, bench.task.terms
        drawn, self.measured = bench.data.calibration, measured
        self.rows = min(samples or len(drawn), len(drawn))
        self.batches = list(bench.batches(drawn.select(range(self.rows)), bench.suite.calibration.batch_size))
        trained = bool(bench.suite.epochs)
        self.loss = partial(calibration.own_label_loss, terms=self.terms) if trained else calibration.model_loss

    @cached_property
    def model(self) -> Any:
        """The dense model that is compressed."""
        return self.bench.adapted if self.bench.suite.epochs else self.bench.probed

    @cached_property
    def names(self) -> list[str]:
        """The targets."""
        return [target.name for target in targets.find_targets(self.model)]

    def plans(self) -> dict[float, Plan]:
        """Ranks by budget, the same share of break-even for every layer."""
        flat = [allocation.flat(*target_of(one)) for one in targets.find_targets(self.model)]
        return {budget: planning.allocate(flat, budget=budget, strategy="uniform") for budget in BUDGETS}

    def sides(self) -> tuple[Ours, Reference]:
        """Both."""
        return Ours(self), Reference(self, self.plans())

    @torch.no_grad()
    def label_loss(self, model: Any) -> float:
        """The label loss on the first rows of what is measured, averaged over its batches."""
        (split,) = self.bench.data.measured.values()
        split = split.select(range(min(self.measured, len(split))))
        losses = [
            model(**batch).loss.item()
            for batch in data.batches(split, self.bench.task, self.bench.processor, LOSS_BATCH)
        ]
        return statistics.mean(losses)


def target_of(target: targets.Target) -> tuple[str, int, int]:
    """Name and shape."""
    return target.name, target.out_features, target.in_features


def timed(calls: tuple[Callable[[], None], Callable[[], None]], count: int) -> Row:
    """Seconds of processor time of ours and of the reference, and the median of the rounds' ratios."""
    found = [
        [nanoseconds / 1e9 for nanoseconds in one]
        for one in itertools.islice(rounds(calls, clock=time.process_time_ns), count)
    ]
    ours, reference = ([round(one[side], 3) for one in found] for side in (0, 1))
    return {"ours": ours, "reference": reference, "ratio": statistics.median(b / a for a, b in found)}


@torch.no_grad()
def weighted_errors(job: Job, layers: Mapping[str, straightforward.Layer], made: Any) -> list[float]:
    """Of every layer the share of its energy in the metric that is lost, in float64 and in the reference's moments."""
    found = []
    for name, layer in layers.items():
        weight, pair = matrix(job.model.get_submodule(name)).double(), list(made.get_submodule(name).children())
        means = {side: SecondMoment(total.double() / layer.rows) for side, total in layer.sums.items()}
        moments = Moments(means["input"], means.get("output"))
        both = metrics(weight, moments, "both" if "output" in means else "input", ridge=straightforward.RIDGE)
        rest = weight - matrix(pair[1]).double() @ matrix(pair[0]).double()
        found.append(energy(rest, *both) / energy(weight, *both))
    return found


def quality(job: Job, ours: Ours, reference: Reference) -> Row:
    """What both models lose at the budget that was made last: mean share of the energy, largest difference, loss."""
    errors = [weighted_errors(job, reference.layers, side.made) for side in (ours, reference)]
    return {
        "rank_mean": statistics.mean(ours.plan.ranks.values()),
        "same_ranks": ours.plan.ranks == reference.plans[BUDGETS[-1]].ranks,
        "error": dict(zip(SIDES, map(statistics.mean, errors), strict=True)),
        "largest_difference": max(abs(one / other - 1) for one, other in zip(*errors, strict=True)),
        "loss": {name: job.label_loss(side.made) for name, side in zip(SIDES, (ours, reference), strict=True)},
    }


def peak(job: Job, side: str) -> Row:
    """MiB that this process holds at most, above what it held before, from calibrating to the first model."""
    chosen = dict(zip(SIDES, job.sides(), strict=True))[side]
    job.batches = job.batches[:PEAK_BATCHES]
    gc.collect()
    with Watched() as watched:
        chosen.calibrate()
        chosen.first()
    return {"mib": round((watched.most - watched.before) / 2**20)}


class Watched:
    """The resident memory of this process while a block runs; not its own peak, which has the loading in it."""

    def __enter__(self) -> Watched:
        self.before = self.most = psutil.Process().memory_info().rss
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while not self.done.wait(0.002):
            self.most = max(self.most, process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def peak_elsewhere(arguments: argparse.Namespace, suite: str, metric: Metric, side: str) -> float:
    """The same in a process of its own."""
    command = [sys.executable, __file__, suite, "--metrics", metric, "--peak", side, "--models", str(arguments.models)]
    command += ["--seed", str(arguments.seed)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: float = json.loads(done.stdout)["mib"]
    return found


def measure(rows: Rows, job: Job, count: int, memory: Callable[[str], float]) -> None:
    """Every stage that has no row yet; the stages before it run once where they are there already."""
    ours, reference = job.sides()
    key = {"suite": job.bench.suite.name, "model": job.bench.suite.model, "metric": job.metric, "rows": job.rows}
    facts = {"threads": torch.get_num_threads(), "budgets": BUDGETS, "digests": dict(job.bench.data.digests)}
    facts |= {"machine": machine(), "versions": versions()}
    stages: dict[str, Callable[[], Row]] = {
        "calibrate": lambda: timed((ours.calibrate, reference.calibrate), count),
        "first": lambda: timed((ours.first, reference.first), count),
        "next": lambda: timed((partial(ours.truncate, BUDGETS[1]), partial(reference.truncate, BUDGETS[1])), count),
        "quality": lambda: quality(job, ours, reference),
        "memory": lambda: {side: memory(side) for side in SIDES},
    }
    if all(rows.find(stage=stage, **key) for stage in stages):
        return
    for stage, work in stages.items():
        found = work()  # a later stage needs what an earlier one leaves
        if not rows.find(stage=stage, **key):
            rows.add({"what": f"{key['suite']} {job.metric} {stage}", "stage": stage} | key | found | facts)


def bench_of(suite: Suite, seed: int, folder: Path) -> Bench:
    """The suite's dense model as `comparison.py` saved it in a folder, trained here where it is not there."""
    return Bench(suite, seed, 0.0, folder, dense_rate=suite.rates_of(DENSE)[0], probe=False)


def main() -> int:
    """Every suite and metric that is asked for; an error on purpose is one sentence and its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=sorted(SUITES))
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=METRICS)
    parser.add_argument("--models", type=Path, default=Path("build/comparison"), help="where comparison.py saved them")
    parser.add_argument("--samples", type=int, help="calibration rows; default: the suite's")
    parser.add_argument("--measured", type=int, default=128, help="rows that the losses are of")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decomposition.jsonl"))
    parser.add_argument("--peak", choices=SIDES, help="print the peak memory of one side and end")
    arguments = parser.parse_args()
    progress.set_level("off" if arguments.peak else "normal")
    models.quiet_libraries()
    torch.set_num_threads(1)

    def work() -> None:
        for name in arguments.suites:
            bench = bench_of(SUITES[name], arguments.seed, arguments.models)
            for metric in arguments.metrics:
                job = Job(bench, metric, arguments.samples, arguments.measured)
                if arguments.peak:
                    print(json.dumps(peak(job, arguments.peak)))
                else:
                    measure(
                        Rows(arguments.out), job, arguments.rounds, partial(peak_elsewhere, arguments, name, metric)
                    )

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
