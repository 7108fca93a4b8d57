"""Compare ways to a compressed model on real data, one recipe for all arms of a suite; one JSON row per training run.

    RANKFOLD_MODELS=... RANKFOLD_DATA=... python benchmarks/comparison.py text --arms dense svdllm-lora jactus

Every compressed arm, the rivals' too, starts from the dense model that was fine-tuned on the same rows with the same
seed, and learns from the labels and from that model; arms that end in `-pretrained` start from the checkpoint and learn
from the labels alone, as adapters over the dense model do. Learning rates are chosen per arm and suite on rows held out
of train (seed 0, 30 % budget), never on test; the final runs train on all of train, without choosing a checkpoint, and
are measured on the test set. Suites with no epochs measure truncation alone. Rows that are in the file already are not
run again, so an interrupted comparison goes on; `--models` holds the dense models and those that `--keep` names.
benchmarks/suites.py has the suites and their groups, benchmarks/arms.py the arms.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from arms import ARMS, DENSE, FROM_CHECKPOINT, Arm
from bench import DISTILLATION, MULTIPLE_OF, Bench
from results import Rows, exit_code
from suites import GROUPS, SUITES, Suite, chosen

from compressor import models, progress
from compressor.machine import machine, versions

SELECT_BUDGET = 0.3
KEPT = ("jactus",)


def select(rows: Rows, suite: Suite, arms: Sequence[Arm], folder: Path) -> None:
    """One run per arm and learning rate on nine tenths of train; the dense arm first, which teaches the others."""
    bench: Bench | None = None
    for arm in (one for one in arms if one.rate_of is None):
        rates = suite.rates_of(arm)
        for learning_rate in rates if len(rates) > 1 else ():
            key = {"phase": "select", "suite": suite.name, "arm": arm.name, "learning_rate": learning_rate}
            if not rows.find(**key):
                bench = bench or Bench(suite, seed=0, holdout=suite.select_holdout, models=folder)
                bench.dense_rate = best_rate(rows, suite, DENSE) if arm.needs_dense else 0.0
                budget = SELECT_BUDGET if arm.method else 1.0
                found = bench.run(arm, budget, learning_rate)
                rows.add(key | {"budget": budget, "seed": 0} | found | record(arm, suite))


def best_rate(rows: Rows, suite: Suite, arm: Arm) -> float:
    """The rate with the best held-out accuracy or loss; of equals the lower one; the only one where there is one."""
    if arm.rate_of is not None:
        return best_rate(rows, suite, ARMS[arm.rate_of])
    if len(suite.rates_of(arm)) == 1:
        return suite.rates_of(arm)[0]

    def worth(row: dict[str, Any]) -> tuple[float, float]:
        return (-row["held_out_loss"] if "held_out_loss" in row else row["accuracy"]), -row["learning_rate"]

    return max(rows.find(phase="select", suite=suite.name, arm=arm.name), key=worth)["learning_rate"]


def final(rows: Rows, suite: Suite, arms: Sequence[Arm], seed: int, folder: Path, kept: Sequence[str] = KEPT) -> None:
    """Every arm and budget at its chosen learning rate, measured on test.

    Full fine-tuning is measured on the machine of the arms that are held against it, a GPU's rows there or not.
    """
    bench: Bench | None = None
    for arm in arms:
        for budget in suite.budgets if arm.method else (1.0,):
            key = {"phase": "final", "suite": suite.name, "arm": arm.name, "budget": budget, "seed": seed}
            if rows.find(**key, **(_here() if arm == DENSE else {})):
                continue
            if bench is None:
                rate = best_rate(rows, suite, DENSE) if any(one.needs_dense for one in arms) else 0.0
                bench = Bench(suite, seed, 0.0, folder, rate, kept=(DENSE.name, *kept))
            rate = best_rate(rows, suite, arm)
            rows.add(key | {"learning_rate": rate} | bench.run(arm, budget, rate) | record(arm, suite))


def _here() -> dict[str, Any]:
    """What tells the rows of a GPU from those of a CPU."""
    return {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def record(arm: Arm, suite: Suite) -> dict[str, Any]:
    """What a row was made with."""
    return {
        "method": repr(arm.method),
        "adapter": arm.adapter,
        "taught": repr(DISTILLATION) if arm.taught else None,
        "strategy": arm.strategy,
        "epochs": suite.epochs,
        "batch_size": suite.batch_size,
        "max_length": suite.max_length,
        "image_size": suite.image_size,
        "calibration": suite.calibration.model_dump(mode="json"),
        "multiple_of": MULTIPLE_OF,
        "model": suite.model,
        "threads": torch.get_num_threads(),
        **_here(),
        "machine": machine(),
        "versions": versions(),
    }


def arms_of(suite: Suite, names: Sequence[str] | None, *, pretrained: bool = False) -> list[Arm]:
    """The arms that are run on a suite, in the order of the table; the dense one first where another needs it."""
    named = [ARMS[name] for name in names] if names else list(suite.arms)
    if pretrained:
        named = [ARMS.get(arm.name + FROM_CHECKPOINT, arm) for arm in named]
    if any(arm.needs_dense for arm in named):
        named.append(DENSE)
    return [arm for arm in ARMS.values() if arm in named]


def compare(arguments: argparse.Namespace) -> None:
    """Select, then final, for each suite."""
    rows = Rows(arguments.out)
    for suite in chosen(arguments.suites, full=arguments.full):
        if arguments.budgets:
            suite = replace(suite, budgets=tuple(arguments.budgets))
        arms = arms_of(suite, arguments.arms, pretrained=arguments.start == "pretrained")
        select(rows, suite, arms, arguments.models)
        for seed in arguments.seeds or suite.seeds:
            final(rows, suite, arms, seed, arguments.models, arguments.keep)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("suites", nargs="+", choices=sorted({*SUITES, *GROUPS}), metavar="SUITE")
    found.add_argument("--out", type=Path, default=Path("benchmarks/results/comparison.jsonl"))
    found.add_argument("--arms", nargs="+", choices=list(ARMS), metavar="ARM", help="default: the suite's")
    found.add_argument("--start", choices=("taught", "pretrained"), default="taught", help="of compressed arms")
    found.add_argument("--seeds", nargs="+", type=int, help="default: the suite's")
    found.add_argument("--budgets", nargs="+", type=float, help="of compressed arms; default: the suite's")
    found.add_argument("--full", action="store_true", help="all data, for a GPU")
    found.add_argument("--models", type=Path, default=Path("build/comparison"))
    found.add_argument("--keep", nargs="*", choices=list(ARMS), metavar="ARM", default=list(KEPT))
    found.add_argument("--threads", type=int, default=0)
    return found


def main() -> int:
    """Run what is asked for; an error on purpose is one sentence and its exit code."""
    arguments = parser().parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    progress.set_level("normal")
    models.quiet_libraries()
    return exit_code(lambda: compare(arguments))


if __name__ == "__main__":
    sys.exit(main())
