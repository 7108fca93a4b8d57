"""Ways past the published training, each at the recipe that all arms share, measured on rows of train that nobody saw.

    RANKFOLD_MODELS=... RANKFOLD_DATA=... python benchmarks/candidates.py banking77 --names default vectors

Every candidate starts from the dense model of its seed and is taught by it, as the arms of comparison.py are, at the
arm's learning rate. It is measured on rows of train that neither model has seen, never on test: what a suite's limit
leaves, or a tenth held out where there is no limit. Beside the accuracy a row has the label loss on those rows, the
share that the dense model says the same of, the loss of the last epoch, and the paired difference to the default of the
same arm with its standard error. Rows that are in the file already are not run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from arms import ARMS, Arm
from bench import DISTILLATION, Bench
from comparison import record
from results import Row, Rows, exit_code
from suites import SUITES, Suite, located
from torch import nn

from compressor import adapt, data, devices, models, progress
from compressor.allocation import Spectrum
from compressor.cores import FreeCore, OrthogonalCore
from compressor.distillation import prediction_loss
from compressor.layers import CoreLinear
from compressor.methods.base import Moments
from compressor.planning import Plan
from compressor.recipe import Distillation
from compressor.tasks.base import Outcomes

HOLDOUT = 0.1
RIDGE = 0.01  # of the mean eigenvalue
RATES = {("banking77", "jactus"): 2e-3, ("banking77", "svdllm-lora"): 1e-3}
RATES |= {("trec", "jactus"): 1e-3, ("trec", "svdllm-lora"): 2e-3}
RATES |= {("cifar10", "jactus"): 1e-4, ("cifar10", "svdllm-lora"): 3e-4}
CORRECTED = {"banking77": 2e-3, "sst2": 3e-4, "snips": 3e-4, "cifar10-5000": 3e-4}
RATES |= {(suite, "jactus-corrected"): rate for suite, rate in CORRECTED.items()}
DENSE_RATES = {"banking77": 2e-4, "trec": 2e-4, "sst2": 1e-4, "snips": 1e-4, "cifar10": 3e-5, "cifar10-5000": 3e-5}


@dataclass(frozen=True)
class Candidate:
    """One change of the default training."""

    name: str
    of: str = "jactus"  # the arm that it changes
    method: Mapping[str, Any] = field(default_factory=dict)  # fields of its method
    vectors: bool = False  # biases, norms' weights and other parameters with one dimension are trained too
    rotated: bool = False  # bases are turned to the principal axes of the moments, as `axes: moments` does
    whitened: bool = False  # the core is trained between inputs, and gradients, of one variance
    distillation: Distillation = DISTILLATION
    core: Callable[[torch.Tensor], nn.Module] | None = None  # another core that starts at the same matrix (r, r)
    rate: float = 1.0  # times the arm's
    strategy: Literal["gain", "energy", "uniform"] | None = None  # by which a plan buys; None: the arm's
    power: float = 1.0  # of the gains that a plan compares: below 1, ranks are more alike

    @property
    def arm(self) -> Arm:
        """What is trained."""
        base = ARMS[self.of]
        assert base.method is not None
        method: Any = replace(base.method, **self.method)  # type: ignore[type-var]
        name = f"{self.of} {method}"  # alike where decomposed alike
        return replace(base, name=name, method=method, strategy=self.strategy or base.strategy)


class DiagonalCore(nn.Module):
    """A frozen core (r, r) plus a trained diagonal: with the thin updates a low-rank-plus-diagonal change."""

    initial: torch.Tensor

    def __init__(self, initial: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("initial", initial.clone())
        self.diagonal = nn.Parameter(initial.new_zeros(len(initial)))

    def forward(self) -> torch.Tensor:
        """The core (r, r)."""
        return self.initial + torch.diag(self.diagonal)


CORES: dict[str, Callable[[torch.Tensor], nn.Module]] = {
    "orthogonal core": partial(OrthogonalCore, strict=False),
    "diagonal core": DiagonalCore,
}
CANDIDATES = {
    (one.of, one.name): one
    for one in (
        *(Candidate("default", of) for of in ("jactus", "jactus-corrected", "svdllm-lora")),
        *(Candidate("vectors", of, vectors=True) for of in ("jactus", "svdllm-lora")),
        *(Candidate("rotated", of, rotated=True) for of in ("jactus", "svdllm-lora")),
        Candidate("whitened", whitened=True),
        Candidate("half rate", rate=0.5),
        Candidate("whitened, half rate", whitened=True, rate=0.5),
        *(Candidate(f"updates {rank}", method={"updates": rank}) for rank in (8, 32, 64)),
        Candidate("uniform", strategy="uniform"),
        Candidate("roots of gains", power=0.5),
        *(
            Candidate("predictions 0.9", of, distillation=Distillation(predictions=0.9))
            for of in ("jactus", "svdllm-lora")
        ),
        *(
            Candidate(name + told, "jactus-corrected", core=core, rate=rate)
            for name, core in CORES.items()
            for told, rate in (("", 1.0), (", thrice the rate", 3.0))
        ),
        *(Candidate(f"hidden {weight:g}", distillation=Distillation(hidden=weight)) for weight in (0, 3)),
        *(
            Candidate(name, of, distillation=lessons)
            for of in ("jactus", "jactus-corrected")
            for name, lessons in (
                ("hidden 0.3", Distillation(hidden=0.3)),
                ("predictions 0.25", Distillation(predictions=0.25)),
                ("predictions 0.25, hidden 0.3", Distillation(predictions=0.25, hidden=0.3)),
            )
        ),
    )
}


@torch.no_grad()
def whiten_(layer: CoreLinear, pair: Moments) -> None:
    """Change the coordinates of a core, not the product, so that E[z z^T] of its inputs and E[g g^T] are alike.

    They become multiples of the identity with the traces that they had, but for the ridge: there a step of a given size
    in any entry of the core changes the outputs, and the loss, as much.
    """
    assert pair.input is not None
    assert pair.gradient is not None
    left, core, right = layer.left.double(), layer.core().double(), layer.right.double()
    ours, into = _whitening(right @ pair.input.matrix.double() @ right.mT)  # z' = ours z, z = into z'
    theirs, onto = _whitening(left.mT @ pair.gradient.matrix.double() @ left)
    layer.right.copy_(ours @ right)
    layer.left.copy_(left @ theirs.mT)
    layer.core = FreeCore((onto.mT @ core @ into).to(layer.left), free=layer.rank)


def _whitening(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A change of coordinates (r, r) and its inverse."""
    values, vectors = torch.linalg.eigh((moment + moment.mT) / 2)
    damped = values.clamp_min(0) + RIDGE * values.mean()
    scale = (damped / damped.mean()).sqrt()
    return vectors.mT / scale[:, None], vectors * scale


@dataclass
class Trial(Bench):
    """A bench whose arms are changed as a candidate says, measured on rows that nobody saw."""

    candidate: Candidate = CANDIDATES["jactus", "default"]
    most: int = 3000  # rows that are measured
    last_epoch: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.holdout:
            self.data = replace(self.data, measured={"unseen": self.unseen()})

    def unseen(self) -> Any:
        """Encoded rows of train beyond the suite's limit."""
        assert not isinstance(self.suite.train, tuple)
        assert self.suite.train.limit
        rows = data.read(located(self.suite.train.model_copy(update={"limit": None})), self.task, self.seed)
        rest = range(self.suite.train.limit, min(len(rows), self.suite.train.limit + self.most))
        rows = rows.shuffle(seed=self.seed).select(rest)
        return self.task.encode(rows, self.processor, self.data.labels, self.suite.max_length, "unseen")

    @cached_property
    def posed(self) -> Any:
        """What is measured on."""
        (split,) = self.data.measured.values()
        return data.posed(split, self.task, self.processor)

    @cached_property
    def taught(self) -> Outcomes:
        """What the dense model says there."""
        return self.outcomes(self.adapted)

    def outcomes(self, model: Any) -> Outcomes:
        """What a model says there."""
        with devices.lent(model):
            return data.outcomes(model, self.task, self.posed)

    def decomposed(self, arm: Arm) -> Any:
        """The subspaces, turned where the candidate says so: they are the same until they are truncated."""
        return {name: replace(one, turned=self.candidate.rotated) for name, one in super().decomposed(arm).items()}

    @property
    def distillation(self) -> Distillation:
        """The candidate's lessons."""
        return self.candidate.distillation

    def spectra(self, arm: Arm) -> list[Spectrum]:
        """With changed gains where the candidate says so."""
        return [self.bent(one) for one in super().spectra(arm)]

    def bent(self, spectrum: Spectrum) -> Spectrum:
        """Gains to the candidate's power."""
        gains = [gain**self.candidate.power for gain in spectrum.gains]
        return replace(spectrum, gains=gains, total=spectrum.total**self.candidate.power)

    def start(self, arm: Arm, budget: float) -> tuple[Any, Plan | None]:
        """The untrained model, changed."""
        model, plan = super().start(arm, budget)
        for name, layer in model.named_modules() if self.candidate.whitened else ():
            if isinstance(layer, CoreLinear):
                whiten_(layer, self.moments(adapted=arm.taught)[name])
        if (core := self.candidate.core) is not None:
            for layer in [one for one in model.modules() if isinstance(one, CoreLinear)]:
                layer.core = core(layer.core().detach())
        for parameter in model.parameters() if self.candidate.vectors else ():
            if parameter.ndim == 1:
                parameter.requires_grad_(True)
        return model, plan

    def train(self, model: Any, learning_rate: float, teacher: Any | None) -> adapt.History:
        """With the loss of the last epoch."""
        history = super().train(model, learning_rate, teacher)
        losses = [row["loss"] for row in history if "loss" in row and row["epoch"] > self.suite.epochs - 1]
        self.last_epoch = float(np.mean(losses))
        return history

    def quality(self, model: Any) -> dict[str, Any]:
        """Accuracy, and what is less noisy."""
        found, taught = self.outcomes(model), self.taught
        logits, teacher = torch.tensor(found.values), torch.tensor(taught.values)
        self.right = found.predictions == found.labels
        return {
            "accuracy": float(self.right.mean()),
            "dense_accuracy": float((taught.predictions == taught.labels).mean()),
            "label_loss": float(torch.nn.functional.cross_entropy(logits, torch.tensor(found.labels))),
            "divergence": float(prediction_loss(logits, teacher, 1.0)),
            "agreement": float((found.predictions == taught.predictions).mean()),
        }


def run(bench: Trial, candidate: Candidate, budget: float) -> Row:
    """Train and measure one."""
    bench.candidate, arm = candidate, candidate.arm
    rate = RATES[bench.suite.name, candidate.of] * candidate.rate
    found = bench.run(arm, budget, rate) | {"last_epoch_loss": bench.last_epoch}
    place = bench.models / "right" / f"{bench.suite.name}-{candidate.of}-{budget}-{bench.seed}-{bench.suite.epochs:g}"
    place.mkdir(parents=True, exist_ok=True)
    np.save(place / f"{candidate.name}.npy", bench.right)
    default = place / "default.npy"
    if default.is_file():
        difference = bench.right.astype(float) - np.load(default)
        error = float(difference.std() / len(difference) ** 0.5)
        found["against_default"] = {"difference": float(difference.mean()), "standard_error": error}
    return {"learning_rate": rate} | found | record(arm, bench.suite) | {"taught": repr(candidate.distillation)}


def bench_of(suite: Suite, seed: int, folder: Path, most: int = 3000) -> Trial:
    """With unseen rows that need no new dense model, where the suite leaves some."""
    limited = not isinstance(suite.train, tuple) and suite.train.limit
    suite, holdout, rate = replace(suite, before=False), 0.0 if limited else HOLDOUT, DENSE_RATES[suite.name]
    return Trial(suite, seed, holdout, folder, rate, probe=False, most=most)


def main() -> int:
    """Every candidate that is asked for and has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=sorted({suite for suite, _ in RATES}))
    parser.add_argument("--names", nargs="+", default=["default"], help="ARM:CANDIDATE, or a candidate of JACTUS")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.3])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=float, help="default: the suite's")
    parser.add_argument("--unseen", type=int, default=3000, help="rows measured on, at most")
    parser.add_argument("--models", type=Path, default=Path("build/comparison"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/candidates.jsonl"))
    arguments = parser.parse_args()
    progress.set_level("normal")
    models.quiet_libraries()

    def work() -> None:
        rows, bench, suite = Rows(arguments.out), None, SUITES[arguments.suite]
        suite = replace(suite, epochs=arguments.epochs or suite.epochs)
        for budget in arguments.budgets:
            for name in arguments.names:
                of, _, short = name.rpartition(":")
                one = CANDIDATES[of or "jactus", short]
                key = {"suite": suite.name, "arm": one.of, "what": one.name, "budget": budget, "seed": arguments.seed}
                key |= {"epochs": suite.epochs}
                if not rows.find(**key):
                    bench = bench or bench_of(suite, arguments.seed, arguments.models, arguments.unseen)
                    rows.add(key | run(bench, one, budget))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
