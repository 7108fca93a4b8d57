"""The measuring child: `python -m validators.probe memory|latency REQUEST`, one JSON object on stdout.

It loads little but NumPy and the runtime, so that what it measures is what a deployment takes; torch only where the
runtime is torch.
REQUEST is a JSON object: `subjects` (one for memory, two for latency; each `runtime`, `path`, `device`, `threads`),
`inputs` (an .npz file) and the knobs of the mode. The exit code is that of the error; its sentence is on stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from compressor import registry, turns
from compressor.errors import DependencyError, InputError, RankfoldError, ResourceError, RuntimeFailure
from compressor.failures import out_of_memory
from exporters.base import Arrays, Exporter, Runner, Session
from validators.process_memory import gauge
from validators.timed_calls import Call, timed_calls


def memory(request: dict[str, Any]) -> dict[str, float]:
    """MiB at each stage of one export's life: floor (imports done), load, first run, steady, and the peak."""
    (subject,) = request["subjects"]
    inputs, exporter = _inputs(request), _exporter(subject)
    read = gauge(subject["device"])
    floor = read()
    runner = _load(exporter, subject)
    loaded = read()
    runner(inputs)
    first = read()
    for _ in range(request["steady_runs"]):
        runner(inputs)
    steady = read()
    stages = {"floor": floor.now, "load": loaded.now, "first_run": first.now, "steady": steady.now}
    return stages | {"load_peak": loaded.peak, "peak": max(loaded.peak, steady.peak)}


def latency(request: dict[str, Any]) -> dict[str, Any]:
    """Nanoseconds of each timed run: (runs, 2), one column per subject, the two alternating run by run; and its way."""
    inputs = _inputs(request)
    runners = [_load(_exporter(subject), subject) for subject in request["subjects"]]
    way, calls = timed_calls(runners, inputs, on_gpu=all(one["device"] == "cuda" for one in request["subjects"]))
    for _ in range(request["warmup"]):
        for call in calls:
            call()
    return {"nanoseconds": alternate(calls, request["runs"], request["seed"]), "way": way}


def alternate(calls: Sequence[Call], runs: int, seed: int) -> list[list[int]]:
    """Nanoseconds (runs, calls): every call once per round, in a random order so that neither always follows."""
    with closing(turns.rounds(calls, seed)) as rounds:
        return list(islice(rounds, runs))


def _inputs(request: dict[str, Any]) -> Arrays:
    with np.load(request["inputs"]) as archive:
        return dict(archive)


def _exporter(subject: dict[str, Any]) -> Exporter:
    """The subject's exporter, with the packages of its runtime imported: they belong to the floor."""
    exporter = registry.load("exporters", subject["runtime"])()
    registry.imported(exporter.packages)
    return exporter


def _load(exporter: Exporter, subject: dict[str, Any]) -> Runner:
    """The subject's runner, refused where it quietly runs elsewhere than on the asked device."""
    runner = exporter.load(Path(subject["path"]), Session(subject["device"], subject["threads"]))
    if subject["device"] == "cuda" and not (runner.providers and "CUDA" in runner.providers[0].upper()):
        raise DependencyError(
            f"{subject['path']} was to run on cuda but runs on {', '.join(runner.providers) or 'nothing'}: "
            "install `rankfold[gpu]` with a working driver, or set `validate.device: cpu`."
        )
    return runner


def _refuse_torch(request: dict[str, Any]) -> None:
    runtimes = {subject["runtime"] for subject in request["subjects"]}
    runs_there = any("torch" in registry.load("exporters", name).packages for name in runtimes)
    if "torch" in sys.modules and not runs_there:
        raise RuntimeFailure(
            "torch was imported into the measuring process, so its memory is not the export's. "
            "Import torch only inside the exporter's `export`."
        )


MODES: dict[str, Callable[[dict[str, Any]], Any]] = {"memory": memory, "latency": latency}


def _answer(arguments: Sequence[str]) -> str:
    if len(arguments) != 2 or arguments[0] not in MODES:
        raise InputError("Usage: python -m validators.probe memory|latency REQUEST, where REQUEST is a JSON object.")
    request = json.loads(arguments[1])
    result = MODES[arguments[0]](request)
    _refuse_torch(request)
    return json.dumps(result)


def main(arguments: Sequence[str]) -> int:
    """Answer on stdout; errors as sentences on stderr. Returns the exit code."""
    try:
        sys.stdout.write(_answer(arguments) + "\n")
    except RankfoldError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except Exception as error:  # a runtime's own, of which only those of memory are known
        if not out_of_memory(error):
            raise
        sys.stderr.write("The measuring process ran out of memory.\n")
        return ResourceError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
