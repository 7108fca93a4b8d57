"""An ONNX graph, or one in ONNX Runtime's own format, in ONNX Runtime: on the device that was asked for, or not at all.

Imports neither torch nor onnx.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from compressor import nvidia
from compressor.errors import ArtifactError, DependencyError, RuntimeFailure
from compressor.threads import usable_threads
from exporters.base import DAMAGED, Arrays, Session, failed
from exporters.feed import PAST, PRESENT, Feed, shapes

GRAPH, ORT_GRAPH = "model.onnx", "model.ort"
# how a file in ONNX Runtime's own format is loaded: its weights stay in the file, which is mapped, and are not copied
MAPPED = {"session.use_memory_mapped_ort_model": "1", "session.use_ort_model_bytes_for_initializers": "1"}
# how a graph is run once, to be checked: its weights stay in the mapped file, neither turned nor packed for speed
ONCE = {"session.disable_prepacking": "1", "optimization.constant_folding_max_output_size_in_bytes": "16000000"}
NOTHING: Mapping[str, str] = {}
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
FAILURES: tuple[type[Exception], ...] = tuple(
    kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
UNBOUND: tuple[type[Exception], ...] = (*FAILURES, RuntimeError, ValueError)  # how a place on the device is refused
DTYPES: Mapping[str, type[np.generic]] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}
# Operators whose place is the GPU. ONNX Runtime puts arithmetic on shapes on the CPU on purpose, which is why
# `session.disable_cpu_ep_fallback` refuses every graph with dynamic axes and cannot be used to forbid a fallback.
HEAVY = frozenset(
    {"MatMul", "Gemm", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
    | {"DynamicQuantizeLinear", "Attention", "MultiHeadAttention", "Conv", "Softmax", "Gelu", "BiasGelu"}
    | {"LayerNormalization", "SkipLayerNormalization", "MatMulNBits"}
)


@dataclass(frozen=True, eq=False)
class OnnxRunner:
    """A loaded graph; call it with named arrays."""

    path: Path
    session: onnxruntime.InferenceSession
    feed: Feed
    outputs: tuple[str, ...]
    asked: Session = Session()  # noqa: RUF009 (frozen)

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named arrays in, the logits out; inputs that the graph lacks are ignored, dtypes are cast to the graph's.

        Raises:
            ResourceError: memory is wanting.
            RuntimeFailure: an input is missing, or ONNX Runtime fails on these inputs.
        """
        return self._run(inputs, tuple(name for name in self.outputs if not name.startswith(PRESENT)))

    def step(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The same with all outputs: the logits and the cache that the next step continues from."""
        return self._run(inputs, self.outputs)

    def bound(self, inputs: Arrays, *, replayed: bool = False) -> Callable[[], object]:
        """A run on these inputs, which lie on the device already, as its outputs do: nothing is copied (IO binding).

        Args:
            replayed: the run is recorded once and replayed as one CUDA graph, in a session of its own.

        Raises:
            ResourceError: memory is wanting.
            RuntimeFailure: it fails on these inputs, or cannot be recorded: a part of it runs on the CPU.
        """
        session = _open(self.path, self.asked, NOTHING, replayed=True) if replayed else self.session
        binding, place, value = session.io_binding(), self.asked.device, onnxruntime.OrtValue

        def run() -> onnxruntime.IOBinding:
            session.run_with_iobinding(binding)
            return binding

        given, results = self.feed(inputs), self(inputs)
        try:
            for name, array in given.items():
                binding.bind_ortvalue_input(name, value.ortvalue_from_numpy(array, place, 0))
            for name, array in results.items():
                there = value.ortvalue_from_shape_and_type(array.shape, array.dtype, place, 0)
                binding.bind_ortvalue_output(name, there)
            run()
        except UNBOUND as error:
            raise failed(f"ONNX Runtime failed to run {self.path} on {shapes(given)}: {error}", error) from error
        return run

    @property
    def cached(self) -> bool:
        """Whether the graph takes and gives a key-value cache."""
        return bool(self.feed.cache)

    def _run(self, inputs: Arrays, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
        given = self.feed(inputs)
        try:
            results = self.session.run(list(wanted), given)
        except FAILURES as error:
            raise failed(f"ONNX Runtime failed to run {self.path} on {shapes(given)}: {error}", error) from error
        return dict(zip(wanted, results, strict=True))

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers in use, most preferred first."""
        return tuple(self.session.get_providers())


def load(folder: Path, session: Session, settings: Mapping[str, str] = NOTHING) -> OnnxRunner:
    """A runner for the graph in `folder`, `model.onnx` or `model.ort`; `settings` are more of ONNX Runtime's.

    Raises:
        ArtifactError: the folder has no graph.
        DependencyError: this ONNX Runtime has no CUDA, its CUDA does not start, or no GPU takes this process.
        ResourceError: memory is wanting.
        RuntimeFailure: ONNX Runtime refuses the graph, or runs a heavy part of it elsewhere than asked.
    """
    path = next((path for name in (GRAPH, ORT_GRAPH) if (path := folder / name).is_file()), None)
    if path is None:
        raise ArtifactError(f"{folder / GRAPH} does not exist, so {folder} is no ONNX export. Export the model again.")
    loaded = _opened_on_cuda(path, session, settings) if session.device == "cuda" else _open(path, session, settings)
    unknown = sorted({node.type for node in loaded.get_inputs()} - DTYPES.keys())
    if unknown:
        raise RuntimeFailure(f"{path} takes inputs of {', '.join(unknown)}; fed can be {', '.join(DTYPES)}.")
    dtypes = {node.name: np.dtype(DTYPES[node.type]) for node in loaded.get_inputs()}
    cache = {node.name: (node.shape[1], node.shape[3]) for node in loaded.get_inputs() if _is_cache(node)}
    outputs = tuple(node.name for node in loaded.get_outputs())
    return OnnxRunner(path, loaded, Feed(path, dtypes, cache), outputs, session)


def _is_cache(node: Any) -> bool:
    """Whether an input is past keys or values (B, heads, P, d), whose emptiness has a known shape."""
    axes = [node.shape[1], node.shape[3]] if node.name.startswith(PAST) and len(node.shape) == 4 else []
    return bool(axes) and all(isinstance(axis, int) for axis in axes)


def require(session: Session) -> None:
    """Raises DependencyError where this ONNX Runtime, or this machine, has nothing to run a session's device by."""
    if session.device == "cuda":
        if CUDA not in onnxruntime.get_available_providers():  # which are those that it was built with
            raise DependencyError(_no_cuda("offers no CUDA"))
        nvidia.require()


def _open(
    path: Path, session: Session, settings: Mapping[str, str], *, replayed: bool = False
) -> onnxruntime.InferenceSession:
    chosen = options(session)
    for key, value in {**settings, **(MAPPED if path.suffix == Path(ORT_GRAPH).suffix else NOTHING)}.items():
        chosen.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(path, chosen, providers=_providers(session, replayed), enable_fallback=0)
    except FAILURES as error:
        what = f"ONNX Runtime refuses {path} ({path.stat().st_size} bytes): {error}"
        raise failed(what, error, DAMAGED) from error


def options(session: Session) -> onnxruntime.SessionOptions:
    """As many intra-op threads as asked for or allowed, one inter-op thread, errors as exceptions only."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = session.threads or usable_threads()
    chosen.inter_op_num_threads = 1
    # dense and candidate run in turns in one process: threads of one that spin while they wait would slow the other
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen.log_severity_level = 4  # what goes wrong is raised as a sentence instead of logged to stderr
    if session.device == "cuda":
        chosen.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return chosen


def _providers(session: Session, replayed: bool = False) -> list[str | tuple[str, dict[str, Any]]]:
    if session.device == "cpu":
        return [CPU]
    graph = {"enable_cuda_graph": "1"} if replayed else {}
    # in TF32, which ONNX Runtime would multiply in, ten bits are left of each number
    return [(CUDA, {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"} | graph), CPU]


def _opened_on_cuda(path: Path, session: Session, settings: Mapping[str, str]) -> onnxruntime.InferenceSession:
    """A session whose heavy operators are all on the GPU: a silent fallback to the CPU is a failure, not a result."""
    require(session)
    nvidia.begin_context()  # ONNX Runtime does not say that a GPU takes no further process
    # CUDA's packages (`onnxruntime-gpu[cuda,cudnn]`) lie where the linker does not search by itself
    with redirect_stdout(io.StringIO()):  # it prints what it does not find; a session that needs it says so
        onnxruntime.preload_dlls()
    loaded = _open(path, session, settings)
    if loaded.get_providers()[0] != CUDA:
        raise DependencyError(_no_cuda("could not start CUDA (a driver or a CUDA or cuDNN library is missing)"))
    strays = misplaced(loaded)
    if strays:
        raise RuntimeFailure(
            f"ONNX Runtime has no CUDA kernel for {', '.join(strays)} of {path} and would run them on the CPU. Export "
            "with precision fp32 for CUDA, or validate this export with `device: cpu`."
        )
    return loaded


def misplaced(loaded: onnxruntime.InferenceSession) -> list[str]:
    """Operator types of heavy nodes that were not given to CUDA."""
    elsewhere = (part for part in loaded.get_provider_graph_assignment_info() if part.ep_name != CUDA)
    return sorted({node.op_type for part in elsewhere for node in part.get_nodes()} & HEAVY)


def _no_cuda(what: str) -> str:
    return (
        f"The device cuda was asked for, but onnxruntime {onnxruntime.__version__} {what}; it has "
        f"{', '.join(onnxruntime.get_available_providers())}. Install `rankfold[gpu]` into an environment without the "
        "CPU-only onnxruntime (the two overwrite each other), or ask for `device: cpu`."
    )
