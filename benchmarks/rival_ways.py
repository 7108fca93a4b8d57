"""What Olive and optimum make of a trained checkpoint, by their own command lines, each in an environment of its own.

A way is one command at settings that the tool documents; what it prints when it leaves no graph is kept as a sentence.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "interop"))

from environments import TORCH, Environment, NotHad, prepare

from exporters.onnx import file as onnx_file
from exporters.onnx.runtime import GRAPH
from exporters.record import EXPORT_FILE

COMMAND = "command.json"  # in a way's folder once it has a graph: the command that made it
LONGEST = 300  # letters of a tool's sentence that are kept
QUIET = {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
HERE = Path(__file__).resolve().parent

# both ask for Pillow and say so nowhere: without it image processors are passed over in silence
PACKAGES = {
    "optimum": ("optimum-onnx[onnxruntime]==0.1.0", "transformers==4.57.6", "onnxruntime==1.32.0", "onnx==1.23.2"),
    "olive": ("olive-ai==0.13.0", "transformers==4.57.6", "onnxruntime==1.32.0", "onnx==1.23.2", "onnxscript==0.7.2"),
}
UNTOLD = {"optimum": ("pillow",), "olive": ("pillow", "requests", "tabulate", "datasets==5.0.1")}
ENVIRONMENTS = {name: Environment(((TORCH,), (*PACKAGES[name], *UNTOLD[name])), "") for name in PACKAGES}


class NoGraph(Exception):
    """A way leaves no graph; says why, in a sentence."""


@dataclass(frozen=True)
class Way:
    """One graph of a rival: `command` is its own, where {words} are filled in; it starts from the graph of `source`."""

    name: str
    rival: str  # a row of ENVIRONMENTS
    command: str
    source: str = ""
    passes: Mapping[str, Mapping[str, Any]] | None = None  # of the workflow that {config} is


@dataclass(frozen=True)
class Job:
    """A trained checkpoint, and what is known of it."""

    model: Path
    task: str
    model_type: str
    shapes: Mapping[str, Sequence[int]]  # of a row's inputs where they are fixed, as an image's are
    calibration: Path  # see olive_calibration.py
    folder: Path  # what is made lies here
    environments: Path


CONVERSION = {"type": "OnnxConversion", "target_opset": 17}
DYNAMIC = {"type": "OnnxDynamicQuantization", "precision": "int8", "per_channel": True}
STATIC = {
    "type": "OnnxStaticQuantization",
    "precision": "int8",
    "activation_type": "uint8",
    "quant_format": "QDQ",
    "per_channel": True,
    "data_config": "calibration",
}
EXPORT = "optimum-cli export onnx --model {model} --task {task} {size}"
QUANTIZE = "optimum-cli onnxruntime quantize --onnx_model {source} --{instructions} --per_channel -o {out}"
OPTIMIZE = (
    "olive optimize -m {model} --task {task} --exporter torchscript_exporter --device cpu "
    "--provider CPUExecutionProvider --disable_telemetry -o {out} --precision"
)
RUN = "olive run --config {config} --disable_telemetry"
OLIVE_QUANTIZE = "olive quantize -m {source} --implementation ort --algorithm rtn --precision int8 --disable_telemetry"
WAYS = (
    Way("optimum fp32", "optimum", EXPORT + " {out}"),
    Way("optimum O2", "optimum", EXPORT + " --optimize O2 {out}"),
    Way("optimum O3", "optimum", EXPORT + " --optimize O3 {out}"),
    Way("optimum int8", "optimum", QUANTIZE, source="optimum fp32"),
    Way("optimum O3 int8", "optimum", QUANTIZE, source="optimum O3"),
    Way("olive optimize int8", "olive", OPTIMIZE + " int8"),
    Way("olive optimize", "olive", OPTIMIZE + " fp32"),
    Way("olive quantize int8", "olive", OLIVE_QUANTIZE + " -o {out}", source="olive optimize"),
    Way("olive run", "olive", RUN, passes={}),
    Way("olive run int8", "olive", RUN, passes={"quantization": DYNAMIC}),
    Way("olive run int8 static", "olive", RUN, passes={"quantization": STATIC}),
)
FUSED_AS = {"dinov2": "vit"}  # what ONNX Runtime's fusions call a type of model, where not by its name


def make(way: Way, job: Job) -> Path:
    """The folder of a way's graph as our exporters leave theirs, made where it is not there yet.

    Raises:
        NoGraph: the tool cannot be had, or its command leaves no graph.
    """
    folder = job.folder / slug(way.name)
    if not (folder / COMMAND).is_file() or _read(folder / COMMAND) != way.command:
        source = make(next(one for one in WAYS if one.name == way.source), job) if way.source else None
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "made").mkdir(parents=True)
        _adopt(_run(way, job, folder, source), folder)
        (folder / COMMAND).write_text(json.dumps(way.command))
    return folder


def slug(name: str) -> str:
    """A name as a folder has it."""
    return name.replace(" ", "-")


def versions(rival: str, job: Job) -> dict[str, str]:
    """Of the packages that a rival's environment was asked for."""
    python = job.environments / rival / "venv" / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=False)
    asked = {package.partition("==")[0].partition("[")[0] for package in (*PACKAGES[rival], "torch")}
    found = json.loads(done.stdout) if done.returncode == 0 else []
    return {one["name"]: one["version"] for one in found if one["name"] in asked}


def _run(way: Way, job: Job, folder: Path, source: Path | None) -> Path:
    """Run a way's command in its folder; returns the graph that it leaves."""
    environment = job.environments / way.rival
    try:
        prepare(ENVIRONMENTS[way.rival], environment)
    except NotHad as error:
        raise NoGraph(f"{way.rival} cannot be had: {error}") from error
    program, *words = _words(way, job, folder, source)
    done = subprocess.run(
        [environment / "venv" / "bin" / program, *words],
        cwd=folder,  # Olive's cache lies where it is started
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        check=False,
        errors="replace",
    )
    graphs = sorted((folder / "made").rglob("*.onnx"))
    if not graphs:
        raise NoGraph(said(done.stdout + done.stderr, (job.model, folder, environment)))
    return graphs[0]


def _words(way: Way, job: Job, folder: Path, source: Path | None) -> list[str]:
    fields = {
        "model": str(job.model.resolve()),
        "task": job.task,
        "size": _size(job),
        "source": str(source / "made") if source else "",
        "instructions": instructions(),
        "out": str(folder / "made"),
        "config": str(folder / "config.json"),
    }
    if way.passes is not None:
        (folder / "config.json").write_text(json.dumps(workflow(job, way.passes, folder / "made"), indent=2))
    return way.command.format(**fields).split()


def _size(job: Job) -> str:
    """Options for the size of images."""
    shape = job.shapes.get("pixel_values")
    return f"--height {shape[-2]} --width {shape[-1]}" if shape else ""


def workflow(job: Job, passes: Mapping[str, Mapping[str, Any]], out: Path) -> dict[str, Any]:
    """Olive's configuration: conversion, ONNX Runtime's fusions of transformers, then the passes."""
    model: dict[str, Any] = {"type": "HfModel", "model_path": str(job.model.resolve()), "task": job.task}
    model |= {"load_kwargs": {"attn_implementation": "eager"}}  # the attention that the fusions know
    if job.shapes:
        axes = {name: {"0": "batch_size"} for name in (*job.shapes, "logits")}
        shapes = {"input_names": [*job.shapes], "input_shapes": [list(shape) for shape in job.shapes.values()]}
        model["io_config"] = shapes | {"output_names": ["logits"], "dynamic_axes": axes}
    fusions = {"type": "OrtTransformersOptimization", "model_type": FUSED_AS.get(job.model_type, job.model_type)}
    here = {"type": "LocalSystem", "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]}
    rows = {
        "name": "calibration",
        "user_script": str(HERE / "olive_calibration.py"),
        "load_dataset_config": {"type": "calibration_rows", "path": str(job.calibration.resolve())},
        "pre_process_data_config": {"type": "skip_pre_process"},
        "post_process_data_config": {"type": "skip_post_process"},
        "dataloader_config": {"type": "one_by_one"},
    }
    return {
        "input_model": model,
        "systems": {"here": here},
        "data_configs": [rows],
        "passes": {"conversion": CONVERSION, "fusions": fusions, **passes},
        "host": "here",
        "target": "here",
        "output_dir": str(out),
        "no_artifacts": True,
    }


def instructions() -> str:
    """optimum's name of what this processor multiplies int8 with."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm64"
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    return next((name for flag, name in (("avx512_vnni",) * 2, ("avx512f", "avx512")) if flag in flags), "avx2")


def said(output: str, places: Sequence[Path]) -> str:
    """The last line that tells an error, without the folders of this machine."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "[ONNXRuntimeError]" in line]
    sentence = (errors or lines or ["it printed nothing"])[-1]
    for place in sorted({*places, *(place.resolve() for place in places)}, key=lambda place: -len(str(place))):
        sentence = sentence.replace(str(place), place.name)
    return sentence[:LONGEST]


def _adopt(graph: Path, folder: Path) -> None:
    """The graph under the name and with the facts that our checks read; files beside it keep theirs."""
    files = [graph, *(file for file in graph.parent.glob(f"{graph.name}*") if file != graph)]
    names = [GRAPH, *(file.name for file in files[1:])]
    for file, name in zip(files, names, strict=True):
        os.link(file, folder / name)
    facts = {"runtime": "onnx", "precision": "", "model_files": names, **onnx_file.read(folder / GRAPH)}
    (folder / EXPORT_FILE).write_text(json.dumps(facts, indent=2) + "\n")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
