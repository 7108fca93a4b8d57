"""ONNX for ONNX Runtime: an fp32 graph, or the same graph in another precision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from compressor.files import write_json
from exporters import staged
from exporters.base import Arrays, Device, Exported, Exporter, Session
from exporters.folder import facts, new_folder, save_config
from exporters.onnx import runtime
from exporters.onnx.precisions import PRECISIONS
from exporters.onnx.runtime import GRAPH, OnnxRunner
from exporters.record import EXPORT_FILE

if TYPE_CHECKING:
    import torch

    from exporters.onnx.timing import OnnxTimer

Precision = Literal[  # rows of PRECISIONS
    "fp32", "fp16", "int8", "int8-static", "int8-weights", "int4", "fp32-fused", "int8-fused"
]


@dataclass(frozen=True)
class OnnxExporter(Exporter):
    """ONNX for ONNX Runtime, in fp32 or fp16, in int8 of several kinds, in int4, or with fused operators.

    Attributes:
        precision: "fp32"; "fp16": weights and arithmetic; "int8": weights quantized ahead of time per channel,
            activations while running; "int8-static": activations by scales measured on the task's data; "int8-weights"
            and "int4": weights alone, in blocks; "fp32-fused" and "int8-fused": fp32 and int8 in ONNX Runtime's own
            fused operators. All in int8 or int4 but "int8-weights" round weights by the task's data.
        opset: version of the ONNX operators of the fp32 graph; a precision whose types are newer raises it.
        embeddings: all in int8 or int4: quantize embedding tables too.
        reduce_range: int8, int8-fused and int8-static: seven-bit weights, which give the same results with and without
            VNNI.
        block: int8-weights and int4: weights to a scale, a power of two from 16.
        tolerance: largest difference of a logit that the fp32 graph, fused or not, may have from the torch model, or
            1e-4 of the largest logit where that is more.
    """

    precision: Precision = "fp32"
    opset: int = 20
    embeddings: bool = True
    reduce_range: bool = True
    block: int = 32
    tolerance: float = 1e-3
    name: ClassVar[str] = "onnx"
    precisions: ClassVar[tuple[str, ...]] = tuple(PRECISIONS)

    @property
    def devices(self) -> tuple[Device, ...]:
        """Where an export of this precision runs."""
        return PRECISIONS[self.precision].devices

    @property
    def calibrated(self) -> bool:
        """Whether `export` reads samples."""
        return PRECISIONS[self.precision].calibrated

    @property
    def beside(self) -> tuple[str, ...]:
        """Precisions that the pipeline exports beside this one."""
        return PRECISIONS[self.precision].beside

    def export(
        self,
        model: torch.nn.Module,
        example: Mapping[str, torch.Tensor],
        path: Path,
        samples: Sequence[Arrays] = (),
    ) -> Exported:
        """Write `model` as a new folder `path`: graph, `export.json`, and the configs of a Hugging Face model.

        `example` holds the keyword inputs of `model.forward`, batch >= 2 and length >= 2. Axis 0 of every input becomes
        `batch_size`, axis 1 of those that count tokens `sequence_length`; the only output is `logits`. Other precisions
        take the graph of an fp32 export of the same weights in the sibling folder `onnx-fp32` instead of tracing again.
        `samples`, batches of the task's inputs, are what int8-static measures the range of activations on, and what
        weights in int8 and int4 are rounded by (GPTQ); without them those go to the nearest step.

        Raises:
            ExportError: `path` exists, the graph cannot be written, or it computes something else than the model; or
                int8-static without samples.
            ResourceError: the disk refuses the files.
        """
        with new_folder(path) as scratch:
            start = self._start(model, example, path, scratch)
            del model  # where the caller does not keep it, its weights leave memory before the checks and quantizers
            told = self._finished(start, scratch, samples)
            self._save_config(start.config, scratch, told)
            write_json(scratch / EXPORT_FILE, told)
        return Exported(path, tuple(told["model_files"]), told)

    def load(self, path: Path, session: Session = Session()) -> OnnxRunner:  # noqa: B008 (frozen)
        """A runner for an exported folder, without importing torch.

        Raises:
            ArtifactError: the folder holds no graph.
            DependencyError: CUDA was asked for and is not there.
            RuntimeFailure: ONNX Runtime refuses the graph.
        """
        return runtime.load(path, session)

    def require(self, session: Session) -> None:
        """Raises DependencyError where this precision or this ONNX Runtime cannot run on a session's device."""
        super().require(session)
        runtime.require(session)

    def timer(self, session: Session) -> OnnxTimer:
        """What times single layers in this precision, for plans that measure."""
        from exporters.onnx.timing import OnnxTimer

        return OnnxTimer(self.precision, self.opset, self, session)

    @property
    def _staged(self) -> bool:
        """Whether it is made of an fp32 graph, rather than that graph itself."""
        return self.precision != "fp32"

    def _start(
        self, model: torch.nn.Module, example: Mapping[str, torch.Tensor], path: Path, scratch: Path
    ) -> staged.Traced:
        """The fp32 graph in `scratch`, or in a folder there where another is made of it; or that of a sibling."""
        from exporters.onnx import graph

        return staged.traced(
            model,
            example,
            scratch / "fp32" if self._staged else scratch,
            trace=lambda inputs, place: graph.write(model, inputs, self.opset, place / GRAPH),
            sibling=path.parent / "onnx-fp32" if self._staged else None,
            files=(GRAPH,),
            known={"precision": "fp32", "opset": self.opset},
        )

    def _finished(self, start: staged.Traced, folder: Path, samples: Sequence[Arrays]) -> dict[str, Any]:
        """Put the graph into `folder`; returns its facts, and how far it is from the model."""
        stage, exact = PRECISIONS[self.precision].stage, PRECISIONS[self.precision].exact
        figures = staged.made(
            start,
            folder,
            stage=stage and (lambda source, place: stage(source / GRAPH, place / GRAPH, self, samples)),
            load=self.load,
            tolerance=self.tolerance,
            limit=self.tolerance if exact else math.inf,
            once=lambda source: runtime.load(source, Session(), runtime.ONCE),
        )
        return self._facts(folder) | figures

    def _facts(self, folder: Path) -> dict[str, Any]:
        from exporters.onnx import file

        files = sorted(one.name for one in folder.glob(f"{GRAPH}*"))
        return self._knobs | facts(self, folder, files, versions()) | file.read(folder / GRAPH)

    @property
    def _knobs(self) -> dict[str, Any]:
        """Those that its precision heeds."""
        return {name: getattr(self, name) for name in ("opset", *PRECISIONS[self.precision].knobs)}

    def _save_config(self, config: Any, folder: Path, told: Mapping[str, Any]) -> None:
        """Where optimum's and transformers' loaders look for it; a decoder's also as GenAI's do."""
        from exporters import genai

        if save_config(config, folder):
            genai.write(config, told["inputs"], folder)


def versions() -> dict[str, str]:
    """Of what writes a graph."""
    import onnx
    import onnxruntime
    import torch

    return {module.__name__: str(module.__version__) for module in (torch, onnx, onnxruntime)}
