"""What layers that read one input (q, k, v; gate, up) would gain by sharing the right basis: counted, not trained.

    RANKFOLD_MODELS=... RANKFOLD_DATA=... python benchmarks/shared_basis.py trec arc_easy

For each share of the weights: the whitened energy (the loss change K-FAC predicts) that is lost when each layer has
factors of its own, ranks chosen by gain over all layers of the group, and when the layers are stacked into one with a
common `down`. One JSON row per suite and share.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench import Bench
from results import Rows
from suites import SUITES
from torch import Tensor

from compressor import linalg, models, progress, targets
from compressor.machine import machine, versions
from compressor.methods.base import metrics

SHARES = (0.8, 0.5, 0.3)
RIDGE = 0.01


def groups(moments: Any) -> Iterator[list[str]]:
    """Names of targets that read the same input, in the order of the model."""
    found = defaultdict(list)
    for name, one in moments.items():
        found[id(one.input)].append(name)
    return iter(found.values())


def whitened(model: Any, moments: Any, name: str) -> Tensor:
    """The target's weight (m, n) in the metric of both moments."""
    weight = targets.dense_layer(model, name).weight.detach()
    return linalg.whiten(weight, *metrics(weight, moments[name], "both", ridge=RIDGE))


def lost(parts: list[Tensor], share: float) -> tuple[float, float]:
    """Energy lost by own factors and by stacked ones, as shares of the whole, at most `share` of the weights kept."""
    budget = share * sum(part.numel() for part in parts)
    total = sum(float(part.square().sum()) for part in parts)
    own = sorted(
        ((float(s) ** 2 / sum(part.shape), sum(part.shape)) for part in parts for s in torch.linalg.svdvals(part)),
        reverse=True,
    )
    kept, spent = 0.0, 0
    for density, cost in own:
        if spent + cost <= budget:
            kept, spent = kept + density * cost, spent + cost
    stacked = torch.cat(parts)
    rank = int(budget // sum(stacked.shape))
    shared = float(torch.linalg.svdvals(stacked)[:rank].square().sum())
    return 1 - kept / total, 1 - shared / total


def main() -> None:
    """Each suite's pretrained model, calibrated with its labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=sorted(SUITES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shared_basis.jsonl"))
    arguments = parser.parse_args()
    progress.set_level("normal")
    models.quiet_libraries()
    rows = Rows(arguments.out)
    for name in arguments.suites:
        bench = Bench(SUITES[name], 0, 0.0, Path())
        moments = bench.moments(adapted=False)
        found = [[whitened(bench.probed, moments, one) for one in names] for names in groups(moments) if len(names) > 1]
        for share in SHARES:
            pairs = torch.tensor([lost(parts, share) for parts in found])  # (groups, 2)
            own, shared = pairs.mean(0).tolist()
            row = {"suite": name, "share": share, "groups": len(found), "lost_own": own, "lost_shared": shared}
            rows.add(
                row | {"better": int((pairs[:, 1] < pairs[:, 0]).sum()), "versions": versions(), "machine": machine()}
            )
            progress.note(f"{row}")


if __name__ == "__main__":
    main()
