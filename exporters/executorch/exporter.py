"""ExecuTorch: a `.pte` program for phones and embedded CPUs, its layers lowered to XNNPACK; in fp32 or int8."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from compressor import registry
from compressor.errors import ExportError, RuntimeFailure, first_line
from exporters.base import Arrays, Device, Exported, Exporter, Session
from exporters.executorch import runtime
from exporters.executorch.runtime import PACKAGES, PROGRAM, ExecutorchRunner

if TYPE_CHECKING:
    import torch

    from exporters.tracing import Tracing
    from exporters.verify import Spans

Precision = Literal["fp32", "int8"]
ELSEWHERE = "which another runtime (onnx, openvino, torch-export) may well run"
QUANTIZATION = {
    "weights": "8 bits, symmetric, per output channel; embeddings too, per row (torchao)",
    "activations": "8 bits, asymmetric, per token, while running (XNNPACK)",
}


@dataclass(frozen=True)
class ExecutorchExporter(Exporter):
    """An ExecuTorch program for CPUs, one row at a time.

    A model that generates is exported without a cache: tokens in, the logits of all positions out.

    Attributes:
        precision: "fp32"; "int8": weights of linear layers and embeddings in eight bits, activations quantized while
            running.
        max_length: most tokens of a row, or as many as the model has positions for where those are fewer. Memory for
            that many is set aside when the program is loaded.
        tolerance: largest difference of a logit that the fp32 program may have from the torch model, or 1e-4 of the
            largest logit where that is more.
    """

    precision: Precision = "fp32"
    max_length: int = 512
    tolerance: float = 1e-3
    name: ClassVar[str] = "executorch"
    precisions: ClassVar[tuple[str, ...]] = get_args(Precision)
    packages: ClassVar[Mapping[str, str]] = PACKAGES
    devices: ClassVar[tuple[Device, ...]] = ("cpu",)

    def export(
        self,
        model: torch.nn.Module,
        example: Mapping[str, torch.Tensor],
        path: Path,
        samples: Sequence[Arrays] = (),
    ) -> Exported:
        """Write `model` as a new folder `path`: `model.pte`, `export.json` and the model's config.

        `example` holds the keyword inputs of `model.forward`, batch >= 2 and length >= 2. Axis 1 of integer inputs is
        free up to `max_length`; the program takes one row, and the runner here feeds it row by row.

        Raises:
            DependencyError: executorch is not installed.
            ExportError: `path` exists, the model cannot be traced or lowered, or the program computes something else.
            ResourceError: the disk refuses the files.
        """
        registry.require(self.packages)
        from exporters import torch_program

        return torch_program.export(
            self,
            model,
            example,
            path,
            file=PROGRAM,
            write=partial(self._write, model),
            load=self._loaded,
            tolerance=self.tolerance,
        )

    def load(self, path: Path, session: Session = Session()) -> ExecutorchRunner:  # noqa: B008 (frozen)
        """A runner for an exported folder; ExecuTorch's Python module imports torch.

        Raises:
            ArtifactError: the folder holds no such export.
            DependencyError: executorch is not installed, or CUDA was asked for.
            RuntimeFailure: ExecuTorch refuses the program.
        """
        self.require(session)
        return runtime.load(path, session)

    def _loaded(self, folder: Path) -> ExecutorchRunner:
        """ExecuTorch lowers operators that it has no kernel for, and says so when the program is loaded."""
        try:
            return self.load(folder)
        except RuntimeFailure as error:
            raise ExportError(
                f"ExecuTorch cannot run what it made of the model, for lack of a kernel perhaps, {ELSEWHERE}: {error}"
            ) from error

    def _longest(self, model: torch.nn.Module, example: Mapping[str, torch.Tensor]) -> int:
        """Tokens that memory is set aside for: those of the trials at least."""
        from exporters import verify

        return max(min(self.max_length, verify.positions(model)), *map(_length, verify.trials(model, example)))

    def _write(
        self, model: torch.nn.Module, example: Mapping[str, torch.Tensor], file: Path
    ) -> tuple[dict[str, Any], Spans]:
        """Trace, lower and save the model; what the program is like."""
        import torch

        from exporters import torch_program
        from exporters.tracing import spans, tracing_of

        longest, full = self._longest(model, example), self.precision == "fp32"
        traced = model if full else _quantized(model)
        tracing = _one_row(tracing_of(traced, example, cache=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated calls inside torch and ExecuTorch
            free = torch.export.Dim.AUTO(min=1, max=longest)
            program = torch_program.traced(tracing, dict.fromkeys(tracing.sizes, free))
            buffer, nodes = _lowered(program)
        file.write_bytes(buffer)
        told = {"inputs": torch_program.inputs(tracing), "max_length": longest, "nodes": nodes}
        told |= {} if full else {"quantization": QUANTIZATION}
        narrower = {length: span for length, span in spans(program, tracing).items() if span[1] < longest}
        return told, narrower


def _length(inputs: Mapping[str, torch.Tensor]) -> int:
    from exporters.verify import sequences

    return max(sequences(inputs).values(), default=1)


def _one_row(tracing: Tracing) -> Tracing:
    """The first row alone: memory is planned for the largest batch, and at the edge that is one."""
    from exporters.tracing import BATCH

    return replace(
        tracing,
        inputs={name: tensor[:1] for name, tensor in tracing.inputs.items()},
        axes={name: {at: size for at, size in free.items() if size != BATCH} for name, free in tracing.axes.items()},
    )


def _quantized(model: torch.nn.Module) -> torch.nn.Module:
    """A copy whose linear layers and embeddings hold eight bits; it shares what stays as it is."""
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis

    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    embeddings = [module for module in twin.modules() if isinstance(module, torch.nn.Embedding)]
    for embedding in embeddings:
        embedding.padding_idx = None  # says which row is not trained; with it ExecuTorch looks up floats
    per_row = PerAxis(0)
    quantize_(twin, Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=per_row))
    quantize_(
        twin, IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=per_row), lambda one, _: one in embeddings
    )
    return twin


def _lowered(program: torch.export.ExportedProgram) -> tuple[bytes, dict[str, int]]:
    """The bytes of a `.pte`, and how often it calls each operator or delegate.

    Raises:
        ExportError: ExecuTorch has no kernel for an operator, or fails otherwise.
    """
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower

    quantized = XnnpackPartitioner(config_precisions=ConfigPrecisionType.DYNAMIC_QUANT, per_op_mode=True)
    try:
        edge = to_edge_transform_and_lower(
            program,
            partitioner=[quantized, XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),  # torchao's operators are not core ATen
        )
        calls = [node for node in edge.exported_program().graph.nodes if node.op == "call_function"]
        lowered = edge.to_executorch(ExecutorchBackendConfig(do_quant_fusion_and_const_prop=True))
    except Exception as error:
        raise ExportError(f"ExecuTorch cannot lower the model, {ELSEWHERE}: {first_line(error)}") from error
    return bytes(lowered.buffer), dict(sorted(Counter(map(_operator, calls)).items()))


def _operator(node: torch.fx.Node) -> str:
    """`aten.embedding.default`, `executorch_call_delegate`."""
    target = node.target
    return str(getattr(target, "_name", None) or getattr(target, "__name__", target)).replace("::", ".")
