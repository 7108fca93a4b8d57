"""Compress a language model's blocks in order, each for what the compressed ones before it give: does that pay?

    RANKFOLD_MODELS=... RANKFOLD_DATA=... python benchmarks/correction.py wikitext2 --budgets 0.5

Layers are decomposed for the dense model's inputs x. Once earlier layers are compressed they read other inputs x', and
the weight that gives the dense outputs from those, in least squares, is W' = W E[x x'^T] (E[x' x'^T])^-1, damped
towards W (the thought of SVD-LLM's update, arXiv 2403.07378, taken before truncation). Here W' takes the place of W,
group by group of layers that read one input, at the ranks that the plan gave W. One JSON row per budget: perplexity of
the truncated model without and with the correction; nothing is trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from arms import ARMS
from bench import Bench
from comparison import record
from results import Rows
from shared_basis import groups
from suites import SUITES
from torch import Tensor, nn

from compressor import models, progress
from compressor.calibration import Statistics
from compressor.factorize import fold_
from compressor.forms import matrix
from compressor.linalg import SecondMoment, balance
from compressor.methods.base import Method, Moments
from compressor.planning import Plan

RIDGE = 0.01  # of the mean diagonal of E[x' x'^T], towards the dense weight
ARM = ARMS["jactus"].pretrained


class _Reached(Exception):
    """A model's first block has been reached."""


def entries(blocks: nn.ModuleList, model: nn.Module, batches: Sequence[Any]) -> list[tuple[Tensor, dict[str, Any]]]:
    """What the first block is called with for each batch: hidden states (B, T, d), and the other arguments."""
    found: list[tuple[Tensor, dict[str, Any]]] = []

    def catch(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        others = dict(kwargs)
        found.append((args[0] if args else others.pop("hidden_states"), others))
        raise _Reached

    hook = blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
    for batch in batches:
        try:
            model(**{name: one for name, one in batch.items() if name != "labels"})
        except _Reached:
            continue
    hook.remove()
    return found


def run(block: nn.Module, states: Tensor, others: dict[str, Any]) -> Tensor:
    """One block: hidden states (B, T, d) -> (B, T, d)."""
    output = block(states, **others)
    return output[0] if isinstance(output, tuple) else output


def inputs(layer: nn.Module, block: nn.Module, states: Tensor, others: dict[str, Any]) -> Tensor:
    """What a layer of a block reads, a row for each token (N, n)."""
    read: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: read.append(args[0].flatten(0, -2)))
    run(block, states, others)
    hook.remove()
    return read[0]


def corrected(weight: Tensor, crossed: Tensor, moment: Tensor) -> Tensor:
    """(W E[x x'^T] + l W) (E[x' x'^T] + l I)^-1, (m, n) float64."""
    damping = RIDGE * moment.diagonal().mean()
    damped = moment + damping * torch.eye(len(moment), dtype=moment.dtype)
    return torch.linalg.solve(damped, (weight @ crossed + damping * weight).mT).mT


@torch.no_grad()
def correct_(student: Any, dense: Any, bench: Bench, plan: Plan, method: Method) -> None:
    """Decompose the targets of a truncated decoder anew, in order."""
    statistics, ranks = bench.moments(adapted=False), plan.ranks
    limits = {target.name: target.break_even - 1 for target in bench.targets}
    ours, theirs = student.model.layers, dense.model.layers
    calls = entries(theirs, dense, bench.batches(bench.data.calibration, bench.suite.calibration.batch_size))
    states = [(hidden, hidden.clone(), others) for hidden, others in calls]
    for number in progress.track(range(len(theirs)), "correcting"):
        for names in groups(_of_block(statistics, number)):
            crossed, moment = moments(names[0], student, dense, number, states)
            for name in names:
                weight = corrected(matrix(models.dense_layer(dense, name)).double(), crossed, moment)
                pair = Moments(SecondMoment(moment), statistics[name].gradient)
                put_(student, name, weight, method, pair, ranks.get(name), limits[name])
        states = [
            (run(theirs[number], dense_in, others), run(ours[number], ours_in, others), others)
            for dense_in, ours_in, others in states
        ]


def _of_block(statistics: Statistics, number: int) -> dict[str, Moments]:
    """The moments of one block's targets."""
    return {name: pair for name, pair in statistics.items() if name.startswith(f"model.layers.{number}.")}


def moments(name: str, student: Any, dense: Any, number: int, states: Any) -> tuple[Tensor, Tensor]:
    """E[x x'^T] and E[x' x'^T] (n, n) of a layer's inputs in the dense and in the compressed model."""
    crossed, moment, rows = 0.0, 0.0, 0
    for dense_in, ours_in, others in states:
        x = inputs(dense.get_submodule(name), dense.model.layers[number], dense_in, others)
        y = inputs(student.get_submodule(name), student.model.layers[number], ours_in, others)
        crossed, moment, rows = crossed + x.mT @ y, moment + y.mT @ y, rows + len(x)
    return crossed.double() / rows, moment.double() / rows  # type: ignore[attr-defined]


def put_(student: Any, name: str, weight: Tensor, method: Method, pair: Moments, rank: int | None, limit: int) -> None:
    """A layer's new weight: whole where the plan keeps it dense, else truncated."""
    layer = student.get_submodule(name)
    if rank is None:
        layer.weight.data = weight.float()
        return
    kept = method.subspace(weight.float(), pair, limit).truncate(rank)
    down, up = balance(kept.left, kept.core, kept.right)
    layer.down.weight.data, layer.up.weight.data = down.float(), up.float()
    if pair.gradient is not None:
        pair.gradient.forget()


def main() -> int:
    """One row per budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "suite", choices=[name for name, suite in SUITES.items() if suite.task_name == "text-generation"]
    )
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.8, 0.5, 0.3])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/correction.jsonl"))
    arguments = parser.parse_args()
    progress.set_level("normal")
    models.quiet_libraries()
    suite, rows = SUITES[arguments.suite], Rows(arguments.out)
    bench = Bench(suite, 0, 0.0, Path("build/correction"))
    assert ARM.method is not None
    for budget in arguments.budgets:
        if rows.find(suite=suite.name, budget=budget):
            continue
        student, plan = bench.start(ARM, budget)
        assert plan is not None
        bench.subspaces = {}  # they fill gigabytes
        student = fold_(student).eval()
        before = bench.quality(student)["perplexity"]
        correct_(student, bench.probed, bench, plan, ARM.method)
        found = {"before": before, "after": bench.quality(student)["perplexity"], "ridge": RIDGE}
        rows.add({"suite": suite.name, "budget": budget, "seed": 0} | found | record(ARM, suite))
    return 0


if __name__ == "__main__":
    sys.exit(main())
