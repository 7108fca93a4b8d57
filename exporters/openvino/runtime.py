"""An OpenVINO graph in OpenVINO's CPU plugin. Imports neither torch nor nncf; openvino itself only when it loads."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compressor import registry
from compressor.errors import ArtifactError
from compressor.threads import usable_threads
from exporters.base import DAMAGED, Arrays, Session, failed
from exporters.feed import PAST, PRESENT, Feed, shapes

GRAPH, WEIGHTS = "model.xml", "model.bin"
INSTALL = "pip install 'rankfold[openvino]'"
PACKAGES: Mapping[str, str] = {"openvino": INSTALL}
DEVICE = "CPU"
NOISE = ("Exception from", "Caught exception")  # lines of an error that only say where OpenVINO's code raised it

# Importing openvino or nncf reports that to Google Analytics, without asking, where this package can be imported;
# where it cannot, both go on without.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class OpenvinoRunner:
    """A loaded graph; call it with named arrays."""

    path: Path
    compiled: Any  # openvino.CompiledModel
    feed: Feed
    outputs: tuple[str, ...]
    idle: list[Any] = field(default_factory=list)  # infer requests that may be used again

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named arrays in, the logits out; inputs that the graph lacks are ignored, dtypes are cast to the graph's.

        Raises:
            ResourceError: memory is wanting.
            RuntimeFailure: an input is missing, or OpenVINO fails on these inputs.
        """
        return self._run(inputs, [name for name in self.outputs if not name.startswith(PRESENT)])

    def step(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The same with all outputs: the logits and the cache that the next step continues from."""
        return self._run(inputs, self.outputs)

    @property
    def cached(self) -> bool:
        """Whether the graph takes and gives a key-value cache."""
        return bool(self.feed.cache)

    @property
    def providers(self) -> tuple[str, ...]:
        """The devices in use."""
        return tuple(self.compiled.get_property("EXECUTION_DEVICES"))

    def _run(self, inputs: Arrays, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        given = self.feed(inputs)
        request = self.idle.pop() if self.idle else self.compiled.create_infer_request()
        try:
            # not `infer`: with INFERENCE_NUM_THREADS=1 that swallows errors and leaves the last outputs standing
            request.start_async(given, share_inputs=True)
            request.wait()
        except RuntimeError as error:
            raise failed(f"OpenVINO failed to run {self.path} on {shapes(given)}: {said(error)}", error) from error
        results = {name: request.get_tensor(name).data.copy() for name in wanted}
        self.idle.append(request)  # one that failed never comes back: it would repeat its error, or an old result
        return results


def load(folder: Path, session: Session) -> OpenvinoRunner:
    """A runner for the graph in `folder`.

    Raises:
        ArtifactError: the folder lacks the graph or its weights.
        DependencyError: openvino is not installed.
        ResourceError: memory is wanting.
        RuntimeFailure: OpenVINO refuses the graph.
    """
    _check(folder)
    (openvino,) = registry.imported(PACKAGES)
    path = folder / GRAPH
    try:
        compiled = openvino.Core().compile_model(path, DEVICE, options(session))
    except RuntimeError as error:
        sizes = f"{path.stat().st_size} bytes, weights {(folder / WEIGHTS).stat().st_size}"
        raise failed(f"OpenVINO refuses {path} ({sizes}): {said(error)}", error, DAMAGED) from error
    return OpenvinoRunner(
        path, compiled, feed_of(path, compiled), tuple(one.get_any_name() for one in compiled.outputs)
    )


def options(session: Session) -> dict[str, Any]:
    """One request at a time on as many threads as asked for or allowed, in the precision of the file.

    Left to itself OpenVINO computes an fp32 graph in bfloat16 on CPUs that have it, and pins its threads to cores
    that another process may be using.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": session.threads or usable_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }


def said(error: RuntimeError) -> str:
    """What an error of OpenVINO says, without the places in its code."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(NOISE)) or str(error).strip()


def _check(folder: Path) -> None:
    missing = [name for name in (GRAPH, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        listed = " and ".join(str(folder / name) for name in missing)
        raise ArtifactError(f"{listed} missing: {folder} is no whole OpenVINO export. Export the model again.")


def feed_of(path: Path, graph: Any) -> Feed:
    """What the graph at `path`, compiled or not, is fed."""
    dtypes = {port.get_any_name(): np.dtype(port.get_element_type().to_dtype()) for port in graph.inputs}
    caches = {port.get_any_name(): port.get_partial_shape() for port in graph.inputs}
    cache = {name: (s[1].get_length(), s[3].get_length()) for name, s in caches.items() if name.startswith(PAST)}
    return Feed(path, dtypes, cache)
