"""The measuring child of decoding.py: `python benchmarks/decode_probe.py REQUEST`, one JSON object on stdout.

REQUEST is a JSON object: `folders` of exports, `prompt` (token ids), `new_tokens`, `runs`, `threads` and `seed`. It
imports no torch, so that with one folder the memory is what a deployment takes; with several they take turns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from compressor import turns
from exporters.base import Session
from exporters.generate import continuation
from exporters.onnx.runtime import OnnxRunner, load
from validators.process_memory import resident

Times = tuple[int, int]  # nanoseconds to the first token, and from there to the last


def said(runner: OnnxRunner, prompt: Sequence[int], new_tokens: int, clock: Callable[[], int]) -> Times:
    """Continue the prompt once."""
    start = clock()
    words = continuation(runner, prompt, new_tokens=new_tokens)
    next(words)
    first = clock()
    for _ in words:
        pass
    return first - start, clock() - first


def measured(
    runners: Sequence[OnnxRunner], prompt: Sequence[int], new_tokens: int, runs: int, seed: int = 0
) -> list[list[Times]]:
    """For each runner the times of its runs, all in turns, after one run of each that is not counted."""
    found: list[list[Times]] = [[] for _ in runners]

    def call(place: int) -> None:
        found[place].append(said(runners[place], prompt, new_tokens, time.perf_counter_ns))

    calls = [partial(call, place) for place in range(len(runners))]
    with closing(turns.rounds(calls, seed)) as rounds:
        for _ in islice(rounds, runs + 1):
            pass
    return [times[1:] for times in found]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Times (exports, runs, 2) in nanoseconds, and MiB before anything is loaded and at most."""
    floor = resident().peak
    runners = [load(Path(folder), Session("cpu", request["threads"])) for folder in request["folders"]]
    times = measured(runners, request["prompt"], request["new_tokens"], request["runs"], request["seed"])
    return {"nanoseconds": times, "floor": floor, "peak": resident().peak, "torch": "torch" in sys.modules}


if __name__ == "__main__":
    print(json.dumps(answer(json.loads(sys.argv[1]))))
