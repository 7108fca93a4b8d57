"""OpenVINO: its intermediate representation (IR) in fp32, with weights in fp16, or in int8 by NNCF."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from compressor import registry
from compressor.errors import ExportError
from compressor.files import write_json
from exporters import staged
from exporters.base import Arrays, Device, Exported, Exporter, Session
from exporters.folder import facts, new_folder, save_config
from exporters.openvino import int8, runtime
from exporters.openvino.runtime import GRAPH, PACKAGES, WEIGHTS, OpenvinoRunner
from exporters.record import EXPORT_FILE

if TYPE_CHECKING:
    import torch

    from exporters.verify import Spans

Precision = Literal["fp32", "fp16", "int8", "int8-static"]
FULL = "openvino-fp32"  # the sibling that the smaller precisions are made of
STATIC = "int8-static"
QUANTIZATION = {  # of the precisions that NNCF makes
    "int8": {
        "weights": "8 bits, asymmetric, per output channel, embeddings too (nncf.compress_weights)",
        "activations": "none ahead of time; OpenVINO quantizes them in groups while running where the CPU is faster so",
    },
    STATIC: {
        "weights": "8 bits, symmetric, per output channel, embeddings too (nncf.quantize)",
        "activations": "8 bits, by ranges measured on the task's data, smoothed into the weights before",
    },
}


@dataclass(frozen=True)
class OpenvinoExporter(Exporter):
    """OpenVINO IR for CPUs, in fp32, with fp16 weights, with int8 weights, or with int8 activations too.

    Attributes:
        precision: "fp32"; "fp16": weights stored in half precision; "int8": weights stored in eight bits by NNCF.
            What is not a weight is computed in fp32 in these three. "int8-static": activations in eight bits too, by
            ranges that NNCF measures on the task's data.
        opset: version of the ONNX operators that the model passes through on its way to the IR.
        tolerance: largest difference of a logit that the fp32 graph may have from the torch model, or 1e-4 of the
            largest logit where that is more.
    """

    precision: Precision = "fp32"
    opset: int = 20
    tolerance: float = 1e-3
    name: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[str, ...]] = get_args(Precision)
    packages: ClassVar[Mapping[str, str]] = PACKAGES
    devices: ClassVar[tuple[Device, ...]] = ("cpu",)

    @property
    def calibrated(self) -> bool:
        """Whether `export` needs samples."""
        return self.precision == STATIC

    def export(
        self,
        model: torch.nn.Module,
        example: Mapping[str, torch.Tensor],
        path: Path,
        samples: Sequence[Arrays] = (),
    ) -> Exported:
        """Write `model` as a new folder `path`: `model.xml`, `model.bin`, `export.json` and the model's config.

        Axes, names and the cache of a decoder are those of the ONNX export, through which the graph goes. fp16 and
        both int8 take the graph of an fp32 export of the same weights in the sibling folder `openvino-fp32`.
        `samples`, batches of the task's inputs, are what int8-static measures the range of activations on.

        Raises:
            DependencyError: openvino, or nncf for int8, is not installed.
            ExportError: `path` exists, the graph cannot be written, or it computes something else than the model; or
                int8-static without samples, or of a decoder.
            ResourceError: the disk refuses the files.
        """
        registry.require({**self.packages, **(int8.PACKAGES if self.precision in QUANTIZATION else {})})
        if self.calibrated and not samples:
            raise ExportError("int8-static measures its ranges on data: give `export` at least one batch as `samples`.")
        with new_folder(path) as scratch:
            start = self._start(model, example, path, scratch)
            del model  # where the caller does not keep it, its weights leave memory before the checks
            told = self._finished(start, scratch, samples)
            save_config(start.config, scratch)
            write_json(scratch / EXPORT_FILE, told)
        return Exported(path, tuple(told["model_files"]), told)

    def load(self, path: Path, session: Session = Session()) -> OpenvinoRunner:  # noqa: B008 (frozen)
        """A runner for an exported folder, without importing torch.

        Raises:
            ArtifactError: the folder holds no graph, or not its weights.
            DependencyError: openvino is not installed, or CUDA was asked for.
            RuntimeFailure: OpenVINO refuses the graph.
        """
        self.require(session)
        return runtime.load(path, session)

    def _start(
        self, model: torch.nn.Module, example: Mapping[str, torch.Tensor], path: Path, scratch: Path
    ) -> staged.Traced:
        """The fp32 graph in `scratch`, or in a folder there where another is made of it; or that of a sibling."""
        full = self.precision == "fp32"
        return staged.traced(
            model,
            example,
            scratch if full else scratch / "fp32",
            trace=lambda inputs, place: self._convert(model, inputs, place),
            sibling=None if full else path.parent / FULL,
            files=(GRAPH, WEIGHTS),
            known={"precision": "fp32"},
        )

    def _finished(self, start: staged.Traced, folder: Path, samples: Sequence[Arrays]) -> dict[str, Any]:
        """Put the graph into `folder`; returns its facts, and how far it is from the model."""
        stage = None if self.precision == "fp32" else lambda source, place: self._shrink(source, place, samples)
        figures = staged.made(start, folder, stage=stage, load=self.load, tolerance=self.tolerance)
        return self._facts(folder) | figures

    def _convert(self, model: torch.nn.Module, example: Mapping[str, torch.Tensor], folder: Path) -> Spans:
        """The fp32 IR in `folder`; for how many tokens it is sure to be the model."""
        from exporters.onnx import graph as onnx_graph

        (openvino,) = registry.imported(self.packages)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            traced = Path(temporary, "model.onnx")
            spans = onnx_graph.write(model, example, self.opset, traced)
            # not openvino.convert_model, which is made to report its use
            openvino.save_model(_named(openvino.Core().read_model(traced)), folder / GRAPH, compress_to_fp16=False)
        return spans

    def _shrink(self, source: Path, folder: Path, samples: Sequence[Arrays]) -> None:
        """The fp32 IR of `source` in `folder`, with smaller weights."""
        (openvino,) = registry.imported(self.packages)
        graph = openvino.Core().read_model(source / GRAPH)
        if self.precision == "int8":
            graph = int8.compressed(graph)
        if self.precision == STATIC:
            graph = int8.quantized(graph, source / GRAPH, samples)
        openvino.save_model(_named(graph), folder / GRAPH, compress_to_fp16=self.precision == "fp16")

    def _facts(self, folder: Path) -> dict[str, Any]:
        from exporters.openvino import file

        own: dict[str, Any] = {"opset": self.opset}
        if self.precision in QUANTIZATION:
            own["quantization"] = QUANTIZATION[self.precision]
        told = facts(self, folder, (GRAPH, WEIGHTS), self._versions())
        return own | told | file.read(folder / GRAPH)

    def _versions(self) -> dict[str, str]:
        from importlib.metadata import version

        used = ("torch", "onnx", "openvino", *(("nncf",) if self.precision in QUANTIZATION else ()))
        return {name: version(name) for name in used}


def _named(graph: Any) -> Any:
    """The graph with the names that OpenVINO makes up counted anew: it counts on from one graph to the next."""
    for number, one in enumerate(graph.get_ordered_ops()):
        kind = one.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", one.get_friendly_name()):
            one.set_friendly_name(f"{kind}_{number}")
    return graph
