"""How much memory exporting a language model takes: `python benchmarks/export_memory.py MODEL ... --out FILE`.

Each MODEL (a checkpoint, or the folder of a run) is exported to ONNX in fp32 by a process of its own, which reads its
peak of resident memory, imports counted, from the operating system. The row says how many times the model's fp32 size
that is. `--child MODEL` is that process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import Rows, exit_code

from compressor import models, registry, storage
from compressor.errors import ExportError
from compressor.machine import machine, versions
from compressor.tasks.base import inputs_of
from validators.process_memory import MIB, resident

TASK = "text-generation"


def exported(folder: Path) -> dict[str, Any]:
    """MiB and seconds of one export in this process."""
    models.quiet_libraries()
    task, exporter = registry.task(TASK), registry.exporter("onnx", "fp32")
    example = inputs_of(task.example(task.processor(str(folder))))
    imports, clock, processor = resident().now, time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        done = exporter.export(storage.load(folder, TASK), example, Path(scratch, "onnx-fp32"))
    return {
        "imports_mib": imports,
        "peak_mib": resident().peak,
        "model_mib": done.facts["initializer_bytes"] / MIB,
        "seconds": time.perf_counter() - clock,
        "processor_seconds": time.process_time() - processor,
        "parity": done.facts["parity"],
    }


def measured(folder: Path) -> dict[str, Any]:
    """What a fresh process says of one export.

    Raises:
        ExportError: it failed.
    """
    command = [sys.executable, __file__, "--child", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"{folder} could not be exported: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"times_the_model": found["peak_mib"] / found["model_mib"]}


def main() -> int:
    """Measure the models named; an error on purpose is one sentence and its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/export_memory.jsonl"))
    parser.add_argument("--label", default="", help="which code this is, where several are compared")
    parser.add_argument("--child", action="store_true")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(exported(arguments.models[0])))
        return 0
    rows, told = Rows(arguments.out), {"machine": machine(), "versions": versions()}
    keyed = [(model, {"export": model.name, "label": arguments.label}) for model in arguments.models]
    return exit_code(lambda: [rows.add(key | measured(model) | told) for model, key in keyed if not rows.find(**key)])


if __name__ == "__main__":
    sys.exit(main())
