"""torch.export: an ExportedProgram in one `.pt2` file, run by torch itself, which is imported where it is needed."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from compressor import nvidia
from compressor.errors import ArtifactError, DependencyError, RuntimeFailure, first_line
from compressor.threads import usable_threads
from exporters.base import DAMAGED, Arrays, Exported, Exporter, Session, failed
from exporters.feed import Feed, shapes, told

if TYPE_CHECKING:
    import torch

    from exporters.verify import Spans

Precision = Literal["fp32", "fp16", "bf16"]
PROGRAM = "model.pt2"
DTYPES: Mapping[str, str] = {"fp16": "float16", "bf16": "bfloat16"}  # torch's names
LISTS = re.compile(r"[^/]+/data/(weights|constants)/model_(weights|constants)_config\.json")  # how tensors are stored
PLAIN = re.compile(
    r"[^/]+/(data/weights/weight_\d+|data/constants/tensor_\d+|models/model\.json|archive_(format|version)|byteorder"
    r"|\.data/(version|serialization_id))"
)
PRODUCTS = frozenset(f"aten.{name}.default" for name in ("linear", "matmul", "mm", "bmm", "addmm", "einsum"))
TOLD = frozenset({"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"})  # where code came from


@dataclass(frozen=True)
class TorchExporter(Exporter):
    """A program of torch.export, for torch's own compilers and runtimes and for what reads `.pt2` files.

    A model that generates is exported without a cache: tokens in, the logits of all positions out.

    Attributes:
        precision: "fp32"; "fp16" or "bf16": weights are stored and all is computed so, from and to fp32.
        tolerance: largest difference of a logit that the fp32 program may have from the torch model, or 1e-4 of the
            largest logit where that is more. What the others cost is for the parity and accuracy gates to say.
    """

    precision: Precision = "fp32"
    tolerance: float = 1e-3
    name: ClassVar[str] = "torch-export"
    precisions: ClassVar[tuple[str, ...]] = get_args(Precision)
    packages: ClassVar[Mapping[str, str]] = {"torch": "pip install torch"}

    def export(
        self,
        model: torch.nn.Module,
        example: Mapping[str, torch.Tensor],
        path: Path,
        samples: Sequence[Arrays] = (),
    ) -> Exported:
        """Write `model` as a new folder `path`: `model.pt2`, `export.json` and the model's config.

        `example` holds the keyword inputs of `model.forward`, batch >= 2 and length >= 2. Axis 0 of every input and
        axis 1 of integer inputs are free; the only output is the logits.

        Raises:
            ExportError: `path` exists, the model cannot be traced, or the program computes something else.
            ResourceError: the disk refuses the files.
        """
        from exporters import torch_program

        write = partial(_write, model, dtype=DTYPES.get(self.precision))
        return torch_program.export(
            self, model, example, path, file=PROGRAM, write=write, load=self.load, tolerance=self.tolerance
        )

    def require(self, session: Session) -> None:
        """Raises DependencyError where torch has no GPU to run a session on."""
        import torch

        super().require(session)
        if session.device == "cuda":
            if not torch.cuda.is_available():
                raise DependencyError(
                    f"The device cuda was asked for, but torch {torch.__version__} finds none: install a CUDA build of "
                    "torch with a working driver, or ask for `device: cpu`."
                )
            nvidia.require()  # builds for AMD call their GPUs cuda

    def load(self, path: Path, session: Session = Session()) -> TorchRunner:  # noqa: B008 (frozen)
        """A runner for an exported folder.

        torch.export.load unpickles what a file asks it to, and evaluates expressions of the graph. Files that bring
        more than ours do are refused, but that is no sandbox: load files that you made or whose digest you know.

        Raises:
            ArtifactError: the folder holds no such export, or the file holds what may be pickled.
            DependencyError: CUDA was asked for and is not there.
            ResourceError: memory is wanting.
            RuntimeFailure: torch refuses the file.
        """
        import torch
        from torch.export.passes import move_to_device_pass

        file, dtypes = path / PROGRAM, told(path, PROGRAM)
        _refuse_others(file)
        self.require(session)
        torch.set_num_threads(session.threads or usable_threads())
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11 of its own buffer
                program = torch.export.load(file)
        except (RuntimeError, ValueError, KeyError, OSError, AssertionError) as error:
            what = f"torch {torch.__version__} refuses {file} ({file.stat().st_size} bytes): {first_line(error)}"
            raise failed(what, error, DAMAGED) from error
        feed = Feed(file, dtypes)
        if session.device == "cuda":
            moved = move_to_device_pass(program, "cuda").module()
            return TorchRunner(file, partial(_exactly, moved), feed, session.device)
        return TorchRunner(file, program.module(), feed, session.device)


@dataclass(frozen=True, eq=False)
class TorchRunner:
    """A loaded program; call it with named arrays."""

    path: Path
    module: Callable[..., Any]  # the program's: inputs in their order -> logits
    feed: Feed
    device: str

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Named arrays in, the logits out; inputs that the program lacks are ignored, dtypes are cast to its own.

        Raises:
            ResourceError: memory is wanting.
            RuntimeFailure: an input is missing, or torch fails on these inputs.
        """
        import torch

        given = self.feed(inputs)
        try:
            with torch.inference_mode():
                values = [torch.from_numpy(array).to(self.device) for array in given.values()]
                return {"logits": self.module(*values).cpu().numpy()}
        except (RuntimeError, IndexError, AssertionError, ValueError) as error:
            raise failed(f"torch failed to run {self.path} on {shapes(given)}: {first_line(error)}", error) from error

    def bound(self, inputs: Arrays, *, replayed: bool = False) -> Callable[[], object]:
        """A run on these inputs, which lie on the device already, as its outputs do: nothing is copied.

        Args:
            replayed: the run is recorded once and replayed as one CUDA graph.

        Raises:
            ResourceError: memory is wanting.
            RuntimeFailure: torch fails on these inputs, or cannot record the run.
        """
        import torch

        given = self.feed(inputs)
        try:
            values = [torch.from_numpy(array).to(self.device) for array in given.values()]
            call = _recorded(self.module, values) if replayed else partial(self.module, *values)
            run = partial(_finished, call, self.device)
            run()
            return run
        except (RuntimeError, IndexError, AssertionError, ValueError) as error:
            raise failed(f"torch failed to run {self.path} on {shapes(given)}: {first_line(error)}", error) from error

    @property
    def providers(self) -> tuple[str, ...]:
        """The device in use."""
        return (self.device.upper(),)


def _exactly(module: Callable[..., object], *values: torch.Tensor) -> object:
    """What a module on a GPU computes, in all bits of float32; torch's own setting is left as it was."""
    from compressor.devices import exact

    with exact():
        return module(*values)


def _recorded(module: Callable[..., object], values: Sequence[torch.Tensor]) -> Callable[[], object]:
    """The module's run on these values as one CUDA graph; torch wants it run before, on a stream beside the default."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("CUDA graphs need an NVIDIA GPU")
    graph, beside = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(beside):
        module(*values)
    torch.cuda.current_stream().wait_stream(beside)
    with torch.inference_mode(), torch.cuda.graph(graph):
        module(*values)
    return partial(_replay, graph, values)


def _replay(graph: torch.cuda.CUDAGraph, _read: Sequence[torch.Tensor]) -> None:
    """Run what was recorded; the values that it reads where they lie live as long as the run."""
    graph.replay()


def _finished(call: Callable[[], object], device: str) -> object:
    """Run, and wait until the GPU is done."""
    import torch

    with torch.inference_mode():
        result = call()
    if device == "cuda":
        torch.cuda.synchronize()
    return result


def _write(
    model: torch.nn.Module, example: Mapping[str, torch.Tensor], path: Path, *, dtype: str | None
) -> tuple[dict[str, Any], Spans]:
    """Trace the model and save the program, without example inputs and without paths of this machine; its facts."""
    import torch

    from exporters import torch_program
    from exporters.tracing import spans, tracing_of

    tracing = tracing_of(model, example, cache=False)
    if dtype is not None:
        tracing = torch_program.lowered(tracing, getattr(torch, dtype))
    # named axes would have to be free without end, but positions end somewhere
    program = torch_program.traced(tracing, dict.fromkeys(tracing.sizes, torch.export.Dim.AUTO))
    program._example_inputs = None  # would be pickled into the file
    for node in _nodes(program.graph_module):
        for key in TOLD & node.meta.keys():
            del node.meta[key]
    torch.export.save(program, path)
    return {"inputs": torch_program.inputs(tracing), **_described(program)}, spans(program, tracing)


def _nodes(module: torch.fx.GraphModule) -> Iterator[torch.fx.Node]:
    """All nodes, those of nested graphs included."""
    import torch

    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            yield from part.graph.nodes


def _described(program: torch.export.ExportedProgram) -> dict[str, Any]:
    """Operators, and the bytes of weights by the same names as an ONNX export's; what is shared counts once."""
    signature, weights = program.graph_signature, program.state_dict
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    calls = [node for node in _nodes(program.graph_module) if node.op == "call_function"]
    read = {names.get(part.name) for node in calls if str(node.target) in PRODUCTS for part in node.all_input_nodes}
    factors = [tensor for name, tensor in weights.items() if name in read and tensor.ndim > 1]
    return {
        "nodes": dict(sorted(Counter(str(node.target) for node in calls).items())),
        "initializer_bytes": _bytes(weights.values()),
        "matmul_weight_bytes": _bytes(factors),
    }


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _refuse_others(file: Path) -> None:
    """Only what an export of ours holds is given to torch, which unpickles other entries or runs them."""
    try:
        with zipfile.ZipFile(file) as archive:
            found = [entry.filename for entry in archive.infolist() if not _plain(archive, entry)]
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RuntimeFailure(f"{file} is no program of torch.export ({error}): restore it or export again.") from error
    if found:
        raise ArtifactError(
            f"{file} holds what no export made here does, and may run code while it is loaded: {', '.join(found)}. "
            "Load it with torch.export.load if you trust whoever made it."
        )


def _plain(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is bytes of a tensor, the graph, a list without pickled tensors, or an empty example."""
    if LISTS.fullmatch(entry.filename):
        return not any(one["use_pickle"] for one in json.loads(archive.read(entry))["config"].values())
    empty = entry.filename.endswith("/data/sample_inputs/model.pt") and not entry.file_size
    return empty or PLAIN.fullmatch(entry.filename) is not None
