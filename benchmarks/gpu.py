"""What exports and training take on an NVIDIA GPU, with the torch that is there; one JSON row per measurement.

    RANKFOLD_MODELS=... RANKFOLD_DATA=... make bench-gpu PYTHON=python

For MiniLM, DINOv2-small and SmolLM2: a dense and a low-rank model (JACTUS at half the weights) are trained, exported to
ONNX in fp32 and fp16 and to torch.export in fp32 and bf16, and held against the same runtime's dense fp32 on the GPU:
accuracy, peak memory, latency. Then three steps of training per arm: the most memory that torch allocated
(`torch.cuda.max_memory_allocated`), beside the count of training_memory.py. Rows that are in the file
already are not measured again. `--parts prepare` trains and exports alone, which several processes may do at once, one
per suite; what is timed needs a machine that does nothing else. `--device cpu` runs the same code at tiny sizes without
a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

sys.path.append(str(Path(__file__).resolve().parents[1]))  # rankfold need not be installed

from results import Rows, exit_code

from compressor import registry
from compressor.errors import DependencyError

if TYPE_CHECKING:
    import torch
    from arms import Arm
    from bench import Bench
    from results import Row, Rows
    from suites import Suite

    from validators.base import Subject

Device = Literal["cuda", "cpu"]
INSTALL = "pip install -e '.[gpu,bench]'"
NEEDED = (
    *("torch", "transformers", "accelerate", "datasets", "optimum", "peft", "pydantic", "pynvml", "safetensors"),
    *("scipy", "sklearn", "numpy", "PIL", "psutil", "yaml", "onnx", "onnx_ir", "onnxscript", "onnxruntime"),
)
SUITES = ("trec", "cifar10", "arc_easy")
TRAINED = ("dense", "dense-lora", "dense-dora", "dense-psoft", "cersa-pretrained", "psoft-pretrained")
TRAINED += ("jactus-pretrained", "jactus")
EXPORTED, BUDGET, SEED, STEPS = "jactus", 0.5, 0, 3
PRECISIONS: Mapping[str, tuple[str, ...]] = {"onnx": ("fp32", "fp16"), "torch-export": ("fp32", "bf16")}
LENGTH = 64  # tokens, where memory and latency are measured
TINY = {"epochs": 0.02, "batch_size": 4, "evaluated": 8, "before": False, "select_rows": None}
TINY_ROWS, TINY_SAMPLES, TINY_RUNS, RUNS = 500, 32, 10, 200


def require(device: Device) -> None:
    """Nothing where all packages are there, and the GPU with a runtime that uses it.

    Raises:
        DependencyError: something is missing; it says what, and how to get it.
    """
    registry.require(dict.fromkeys(NEEDED, INSTALL))
    if device == "cpu":
        return
    import onnxruntime
    import torch

    if not torch.cuda.is_available():
        raise DependencyError(
            f"torch {torch.__version__} sees no NVIDIA GPU here: run this where there is one, with a torch built for "
            "CUDA. `--device cpu` runs the same code at tiny sizes."
        )
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise DependencyError(
            f"onnxruntime {onnxruntime.__version__} here is not built for CUDA: "
            f"`pip uninstall onnxruntime`, then {INSTALL}."
        )


def tiny(suite: Suite) -> Suite:
    """A suite for seconds, told apart by its name."""
    train = suite.train if isinstance(suite.train, tuple) else (suite.train,)
    cut = tuple(one.model_copy(update={"limit": TINY_ROWS}) for one in train)
    calibration = suite.calibration.model_copy(update={"samples": TINY_SAMPLES, "batch_size": 4})
    return replace(suite, name=f"{suite.name}-tiny", train=cut, calibration=calibration, **TINY)


def trained(bench: Bench, arm: Arm, budget: float) -> Path:
    """The folder of a trained model, made where it is not there."""
    folder = bench.folder(arm, budget, 0.0)
    if not (folder / "model.safetensors").is_file():
        bench.run(arm, budget, bench.suite.rates_of(arm)[0])
    return folder


def compared() -> tuple[tuple[Arm, float], ...]:
    """The dense and the low-rank model, each an arm at a budget."""
    from arms import ARMS, DENSE

    return (DENSE, 1.0), (ARMS[EXPORTED], BUDGET)


def prepared(bench: Bench, device: Device, runtime: str) -> list[Subject]:
    """The dense and the low-rank model's exports to a runtime, trained and exported where they are not there."""
    from deployment import subjects

    from exporters.base import Session

    return [
        subject
        for arm, budget in compared()
        for subject in subjects(
            trained(bench, arm, budget), bench.suite, Session(device), PRECISIONS[runtime], runtime=runtime
        )
    ]


def prepare(bench: Bench, _rows: Rows, device: Device) -> None:
    """Train and export, measure nothing."""
    for runtime in PRECISIONS:
        prepared(bench, device, runtime)


def exports(bench: Bench, rows: Rows, device: Device) -> None:
    """Dense and low-rank on each runtime, in fp32 and in half precision, held against its dense fp32."""
    for runtime in PRECISIONS:
        _exports(bench, rows, device, runtime)


def _exports(bench: Bench, rows: Rows, device: Device, runtime: str) -> None:
    from compressor.recipe import ValidateSection
    from validators.measure import measure

    length, runs = min(LENGTH, bench.suite.max_length), TINY_RUNS if device == "cpu" else RUNS
    knobs = ValidateSection(device=device, sequence_length=length, runs=runs)
    names = [f"{bench.folder(arm, budget, 0.0).name}-{p}" for arm, budget in compared() for p in PRECISIONS[runtime]]
    shared = {"what": "export", "suite": bench.suite.name, "runtime": runtime} | hardware(device)
    keys = {name: shared | {"export": name} for name in names}
    if all(rows.find(**keys[name]) for name in names[1:]):
        return
    dense, *candidates = prepared(bench, device, runtime)
    for candidate in candidates:
        if not rows.find(**keys[candidate.name]):
            findings = measure(dense, [candidate], knobs, {})[candidate.name]
            measured = {"findings": {one.quantity: asdict(one) for one in findings}, "measured": knobs.model_dump()}
            rows.add(keys[candidate.name] | measured | setting())


def training(bench: Bench, rows: Rows, device: Device) -> None:
    """What a step of training takes, for each arm."""
    from arms import ARMS

    for name in TRAINED:
        arm = ARMS[name]
        budget = BUDGET if arm.method else 1.0
        key = {"what": "training", "suite": bench.suite.name, "arm": name, "budget": budget} | hardware(device)
        if not rows.find(**key):
            rows.add(key | stepped(bench, arm, budget, device) | setting())


def stepped(bench: Bench, arm: Arm, budget: float, device: Device) -> Row:
    """Three steps of AdamW on the fullest batch: peak memory (bytes), counted and as torch allocated it, and ms."""
    import adapters
    from training import read

    from compressor import adapt

    model, _ = bench.start(arm, budget)
    if arm.adapter:
        adapters.lay_(model, arm.adapter, arm.rank or 1)
    teacher = bench.adapted.eval() if arm.taught else None
    batch = bench.fullest
    counted = bench.memory(model, teacher)
    noted = bench.said(teacher, batch) if teacher is not None and bench.noted(teacher) else None
    peak = _peak_since(device)
    model.to(device).train()
    if teacher is not None and noted is None:
        teacher.to(device)
    say = partial(bench.said, teacher) if noted is None else lambda _: read(noted, device)
    taught = say if teacher is not None else None
    step = partial(_step, bench, model, taught, {key: one.to(device) for key, one in batch.items()}, device)
    optimizer = _optimizer(model, device)
    milliseconds = [step(optimizer) for _ in range(STEPS)]
    allocated = peak()
    if teacher is not None:
        teacher.to("cpu")
    shape = list(next(iter(batch.values())).shape)
    return {
        "peak_bytes": allocated,
        "counted_bytes": counted,
        "step_ms": statistics.median(milliseconds[1:]),
        "trainable": adapt.trainable(model),
        "batch": shape,
    }


def _peak_since(device: Device) -> Callable[[], int | None]:
    """() is the most that torch has allocated on the GPU since this call, beyond what it had then; None without one."""
    if device == "cpu":
        return lambda: None
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return lambda: torch.cuda.max_memory_allocated() - before


def _optimizer(model: Any, device: Device) -> torch.optim.Optimizer:
    import torch

    learned = [one for one in model.parameters() if one.requires_grad]
    return torch.optim.AdamW(learned, lr=1e-5, fused=device == "cuda")


def _step(
    bench: Bench, model: Any, say: Any | None, batch: Any, device: Device, optimizer: torch.optim.Optimizer
) -> float:
    """Milliseconds of one step; `say` gives the teacher's lesson on a batch."""
    import torch
    from bench import DISTILLATION

    from compressor.distillation import taught_loss

    begun = time.perf_counter()
    if say is None:
        loss = model(**batch).loss
    else:
        loss, _ = taught_loss(model, say(batch), batch, DISTILLATION, bench.task.terms)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begun)


def hardware(device: Device) -> dict[str, str]:
    """What the figures are of; part of a row's key."""
    import torch

    return {"device": device, "gpu": torch.cuda.get_device_name() if device == "cuda" else ""}


def setting() -> dict[str, Any]:
    """Machine and versions."""
    from compressor.machine import machine, versions

    return {"machine": machine(), "versions": versions()}


PARTS: Mapping[str, Callable[[Bench, Rows, Device], None]] = {
    "prepare": prepare,
    "exports": exports,
    "training": training,
}


def measure_all(arguments: argparse.Namespace) -> None:
    """Every suite's exports, then its training."""
    from bench import Bench
    from suites import chosen

    from compressor import models, progress

    progress.set_level("normal")
    models.quiet_libraries()
    rows = Rows(arguments.out)
    for whole in chosen(arguments.suites or SUITES, full=False):
        suite = tiny(whole) if arguments.device == "cpu" else whole
        rate = suite.rates["weights"][0]
        bench = Bench(suite, SEED, 0.0, arguments.models, rate, kept=("dense", EXPORTED))
        for part in arguments.parts:
            PARTS[part](bench, rows, arguments.device)


def main(words: Sequence[str] | None = None) -> int:
    """Measure; an error on purpose is one sentence and its exit code: 3 without a GPU or a package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"default: {' '.join(SUITES)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the same code at tiny sizes")
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS), default=["exports", "training"], help="default: both"
    )
    parser.add_argument("--out", type=Path, help="default: gpu.jsonl of benchmarks/results; of build/ on the cpu")
    parser.add_argument("--models", type=Path, default=Path("build/gpu"))
    arguments = parser.parse_args(words)
    folder = "build" if arguments.device == "cpu" else "benchmarks/results"
    arguments.out = arguments.out or Path(folder) / "gpu.jsonl"

    def work() -> None:
        require(arguments.device)
        measure_all(arguments)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
