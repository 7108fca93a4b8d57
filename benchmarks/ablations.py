"""What each choice in JACTUS is worth: one knob at a time away from the default, at 30 % of the weights.

    RANKFOLD_MODELS=... RANKFOLD_DATA=... python benchmarks/ablations.py --seeds 0 1 2

Each variation starts from the checkpoint, learns from the labels alone, and is measured on rows held out of train,
never on test, truncated and after training; the learning rates are fixed, the one of a core alone is twice the others'.
A row also tells how much of the leading directions of E[gg^T] and E[xx^T] the kept bases hold: ||U^T E_k||^2 / k, which
random bases of rank r would hold to r / m. Rows that are in the file already are not run again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from arms import ARMS, Arm
from bench import Bench
from comparison import record
from results import Row, Rows, exit_code
from suites import SUITES, Suite

from compressor import factorize, models, planning, progress
from compressor.forms import matrix
from compressor.methods.base import Moments, Subspace
from compressor.methods.jactus import Jactus
from compressor.targets import dense_layer, find_targets

BUDGET, HOLDOUT, TOP = 0.3, 0.1, 16
RATE, CORE_RATE = 1e-3, 2e-3


@dataclass(frozen=True)
class Variation:
    """One knob away from the default."""

    axis: str
    value: str
    method: Jactus = Jactus()  # noqa: RUF009 (frozen)
    strategy: Literal["gain", "energy", "uniform"] = "gain"
    samples: int = 512
    probe: bool = True  # the head is trained alone before calibration
    projected: bool = False  # the core starts at U^T W V in place of the weighted least-squares one
    blind: tuple[str, ...] = ()  # ends of names of layers that are truncated without an output metric, to their ranks

    @property
    def arm(self) -> Arm:
        """What is trained."""
        base, learns = ARMS["jactus"].pretrained, "factors" if self.method.updates else "core"
        return replace(
            base, name=f"{self.axis}-{self.value}", learns=learns, method=self.method, strategy=self.strategy
        )


VARIATIONS = (
    Variation("default", ""),
    *(Variation("union", f"{share:g}", Jactus(union=share)) for share in (0.1, 0.25, 0.5)),
    *(Variation("metric", metric, Jactus(metric=metric)) for metric in ("plain", "input", "output")),
    *(Variation("strategy", strategy, strategy=strategy) for strategy in ("uniform", "energy")),
    *(Variation("calibration", str(samples), samples=samples) for samples in (64, 256, 1024)),
    *(Variation("ridge", f"{ridge:g}", Jactus(ridge=ridge)) for ridge in (1e-3, 1e-1)),
    Variation("core start", "projection", projected=True),
    Variation("output metric", "not of q and k", blind=("query", "key", "q_proj", "k_proj")),
    Variation("updates", "0", Jactus(updates=0)),
    Variation("head probe", "no", probe=False),
)


def projected(model: Any, subspaces: Mapping[str, Subspace], plan: planning.Plan) -> dict[str, Subspace]:
    """The planned subspaces with the plain projection U^T W V between their orthonormal bases as the core."""
    found = {}
    for name, rank in plan.ranks.items():
        kept = subspaces[name].truncate(rank)
        weight = matrix(dense_layer(model, name)).detach().double()  # (m, n)
        found[name] = replace(kept, core=kept.left.mT @ weight @ kept.right.mT)  # (r, r)
    return found


def blinded(bench: Bench, variation: Variation) -> dict[str, Subspace]:
    """The subspaces of the layers that a variation names, in the metric of their inputs alone."""
    targets = [one.name for one in find_targets(bench.probed) if one.name.endswith(variation.blind)]
    method = replace(variation.method, metric="input")
    return factorize.decompose(bench.probed, method, bench.moments(adapted=False), targets=targets)


def overlaps(
    subspaces: Mapping[str, Subspace], plan: planning.Plan, moments: Mapping[str, Moments]
) -> dict[str, dict[str, float]]:
    """How much of the leading task directions the kept bases hold, and what chance would, averaged over the layers."""
    rows: dict[str, list[tuple[float, float]]] = {"gradient": [], "input": []}
    for name, rank in plan.ranks.items():
        kept, pair = subspaces[name].truncate(rank), moments[name]
        for side, basis in (("gradient", kept.left), ("input", kept.right.mT)):
            moment = getattr(pair, side)
            rows[side].append((held(basis, moment.top(min(TOP, rank))), rank / len(basis)))
            moment.forget()
    means = {side: [statistics.mean(column) for column in zip(*pairs, strict=True)] for side, pairs in rows.items()}
    return {side: {"held": share, "chance": chance} for side, (share, chance) in means.items()}


def held(basis: torch.Tensor, directions: torch.Tensor) -> float:
    """||U^T E||^2 / k of orthonormal columns U (m, r) and E (m, k): 1 where U contains E, r / m by chance."""
    return float((basis.mT @ directions.to(basis.dtype)).square().sum() / directions.shape[1])


def run(bench: Bench, variation: Variation) -> Row:
    """Truncate, measure, train, measure."""
    arm = variation.arm
    subspaces, plan = bench.decomposed(arm), bench.plan(arm, BUDGET)
    if variation.blind:
        subspaces = subspaces | blinded(bench, variation)
    shares = overlaps(subspaces, plan, bench.moments(adapted=False))
    used = projected(bench.probed, subspaces, plan) if variation.projected else subspaces
    torch.manual_seed(bench.seed)
    model = factorize.factorize_(bench.start(ARMS["dense"], 1.0)[0], variation.method, {}, plan, subspaces=used)
    rate = RATE if variation.method.updates else CORE_RATE
    found = bench.finished(arm, model, plan, partial(factorize.fold_, model), rate)
    return {"learning_rate": rate} | found | {"overlap": shares} | record(arm, bench.suite)


def suite_of(variation: Variation, suite: Suite) -> Suite:
    """The suite with the variation's calibration, its truncation measured before training."""
    calibration = suite.calibration.model_copy(update={"samples": variation.samples})
    return replace(suite, calibration=calibration, before=True)


def ablate(rows: Rows, suite: Suite, seed: int, variations: tuple[Variation, ...] = VARIATIONS) -> None:
    """Every variation that has no row yet; those that are calibrated alike share a bench."""
    bench: Bench | None = None
    for one in sorted(variations, key=lambda one: (one.probe, one.samples), reverse=True):
        key = {"suite": suite.name, "axis": one.axis, "value": one.value, "budget": BUDGET, "seed": seed}
        if rows.find(**key):
            continue
        wanted = suite_of(one, suite)
        if bench is None or (bench.suite, bench.probe) != (wanted, one.probe):
            bench = Bench(wanted, seed, HOLDOUT, Path(), probe=one.probe)
        rows.add({"what": f"{one.axis} {one.value}".strip()} | key | run(bench, one))


def main() -> int:
    """Every seed that is asked for; an error on purpose is one sentence and its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=sorted(SUITES), default="trec")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--axes", nargs="+", choices=sorted({one.axis for one in VARIATIONS}), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablations.jsonl"))
    arguments = parser.parse_args()
    progress.set_level("normal")
    models.quiet_libraries()
    wanted = tuple(one for one in VARIATIONS if not arguments.axes or one.axis in arguments.axes)

    def work() -> None:
        for seed in arguments.seeds:
            ablate(Rows(arguments.out), SUITES[arguments.suite], seed, wanted)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
