"""The arms: ways to a model for a task, one row each; `bench.py` trains them at the rates of `suites.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from compressor.methods.base import Method
from compressor.methods.cersa import Cersa
from compressor.methods.jactus import Jactus
from compressor.methods.psoft import Psoft
from compressor.methods.spectral import Spectral

Learns = Literal["weights", "adapter", "factors", "core", "rotation", "nothing"]
FROM_CHECKPOINT = "-pretrained"  # ends the name of an arm that starts as published, and learns from the labels alone


@dataclass(frozen=True)
class Arm:
    """One way; without a `method` the dense model is trained, whole or by an adapter over its targets."""

    name: str
    label: str  # what tables call it
    learns: Learns  # what is trained; a suite has learning rates for each
    method: Method | None = None
    strategy: Literal["gain", "energy", "uniform"] = "gain"
    taught: bool = False  # starts from the dense model of its seed, and learns from it beside the labels
    adapter: str | None = None  # row of `adapters.ADAPTERS`
    rank: int | None = None  # of the adapter; None: as many trained numbers as MATCHED has at MATCHED_BUDGET
    rate_of: str | None = None  # the arm whose chosen rate it takes
    corrected: bool = False  # layers are decomposed anew, in order, for what they read behind compressed ones

    @property
    def matched(self) -> bool:
        """Whether its adapter's rank is found from another arm's count."""
        return self.adapter is not None and self.rank is None

    @property
    def needs_dense(self) -> bool:
        """Whether the dense model of its seed must have been trained before it."""
        return self.taught or self.matched

    @property
    def pretrained(self) -> Arm:
        """The same from the checkpoint, by the labels alone."""
        return replace(self, name=self.name + FROM_CHECKPOINT, label=f"{self.label}, from the checkpoint", taught=False)


def _whitened(metric: Literal["plain", "input", "output", "both"], updates: int, *, asvd: bool = False) -> Spectral:
    """A published truncation (see the table of `Spectral`) with a frozen core, and LoRA of that rank on the factors."""
    diagonal = asvd or metric == "output"
    return Spectral(metric, diagonal, 0.5 if asvd else 1.0, train="none", updates=updates)


LORA = 16  # rank, on the dense model and on the factors
PSOFT = 32  # peft's default rank
DENSE = Arm("dense", "full fine-tuning", "weights")
ADAPTED = (
    Arm("dense-lora", "LoRA 16", "adapter", adapter="lora", rank=LORA),
    Arm("dense-dora", "DoRA 16", "adapter", adapter="dora", rank=LORA),
    Arm("dense-pissa", "PiSSA 16", "adapter", adapter="pissa", rank=LORA),
    Arm("dense-psoft", "PSOFT 32, residual kept", "rotation", adapter="psoft", rank=PSOFT),
    # as long as the compressed ones, whose start is trained already, and taught as they are
    Arm("dense-taught", "full fine-tuning again, taught by itself", "weights", taught=True, rate_of="dense"),
    Arm("lora-taught", "LoRA 16 after it, taught", "adapter", None, "gain", True, "lora", LORA, "dense-lora"),
    Arm("dense-lora-matched", "LoRA, matched count", "adapter", adapter="lora"),
    Arm("dense-dora-matched", "DoRA, matched count", "adapter", adapter="dora"),
    Arm("dense-pissa-matched", "PiSSA, matched count", "adapter", adapter="pissa"),
    Arm("dense-psoft-matched", "PSOFT, residual kept, matched count", "rotation", adapter="psoft"),
)
TAUGHT = (
    Arm("svd-lora", "SVD, LoRA 16 on both factors", "factors", _whitened("plain", LORA), "uniform", True),
    Arm("asvd-lora", "ASVD, LoRA 16 on both factors", "factors", _whitened("input", LORA, asvd=True), "uniform", True),
    Arm("fwsvd-lora", "FWSVD, LoRA 16 on both factors", "factors", _whitened("output", LORA), "uniform", True),
    Arm("svdllm-lora", "SVD-LLM, LoRA 16 on both factors", "factors", _whitened("input", LORA), "uniform", True),
    Arm(
        "svdllm-lora-corrected",
        "SVD-LLM, corrected, LoRA 16 on both factors",
        "factors",
        _whitened("input", LORA),
        "uniform",
        corrected=True,
        taught=True,
        rate_of="svdllm-lora",
    ),
    Arm("gfwsvd-lora", "GFWSVD, LoRA 16 on both factors", "factors", _whitened("both", LORA), "uniform", True),
    Arm("svd-core", "SVD, trained core", "core", Spectral("plain"), "uniform", True),
    Arm("cersa", "CERSA", "core", Cersa(), "energy", True),
    Arm("psoft", "PSOFT, residual dropped", "rotation", Psoft(), "energy", True),
    Arm("jactus-r1", "JACTUS R1", "factors", Jactus("R1"), taught=True),
    Arm("jactus-r2", "JACTUS R2", "factors", Jactus("R2"), taught=True),
    Arm("jactus-r3", "JACTUS R3", "factors", Jactus("R3"), taught=True),
    Arm("jactus", "JACTUS (R4)", "factors", Jactus(), taught=True),
    Arm("jactus-corrected", "JACTUS (R4), corrected", "factors", Jactus(), corrected=True, taught=True),
    Arm("jactus-union", "JACTUS (R4), union 0.1", "factors", Jactus(union=0.1), taught=True),
    Arm("jactus-axes", "JACTUS (R4), axes of the moments", "factors", Jactus(axes="moments"), taught=True),
    Arm("jactus-uniform", "JACTUS (R4), uniform ranks", "factors", Jactus(), "uniform", True),
    Arm("jactus-updates0", "JACTUS (R4), updates 0", "core", Jactus(updates=0), taught=True),
)
AFTERWARDS = (  # adapted first, then compressed: what truncation leaves is what they are
    Arm("adapt-svdllm", "adapted, then SVD-LLM", "nothing", _whitened("input", 0), "uniform", True),
    Arm("adapt-gfwsvd", "adapted, then GFWSVD", "nothing", _whitened("both", 0), "uniform", True),
)
TRUNCATED = (  # of the checkpoint, where a suite trains nothing
    Arm("svd", "SVD", "nothing", _whitened("plain", 0), "uniform"),
    Arm("asvd", "ASVD", "nothing", _whitened("input", 0, asvd=True), "uniform"),
    Arm("fwsvd", "FWSVD", "nothing", _whitened("output", 0), "uniform"),
    Arm("svdllm", "SVD-LLM", "nothing", _whitened("input", 0), "uniform"),
    Arm("gfwsvd", "GFWSVD", "nothing", _whitened("both", 0), "uniform"),
    Arm("gfwsvd-gain", "GFWSVD, ranks by gain", "nothing", _whitened("both", 0)),
)
ARMS = {
    arm.name: arm for arm in (DENSE, *ADAPTED, *TAUGHT, *AFTERWARDS, *TRUNCATED, *(one.pretrained for one in TAUGHT))
}
MATCHED, MATCHED_BUDGET = ARMS["jactus"], 0.5
