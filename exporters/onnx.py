"""ONNX for ONNX Runtime: an fp32 graph, or the same graph in another precision."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from compressor.errors import ExportError
from exporters import onnx_runtime
from exporters.base import EXPORT_FILE, Arrays, Device, Exported, Session
from exporters.folder import new_folder
from exporters.onnx_precisions import PRECISIONS
from exporters.onnx_runtime import GRAPH, OnnxRunner

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1
Precision = Literal["fp32", "fp16", "int8", "int8-static", "int4"]  # rows of PRECISIONS


@dataclass(frozen=True)
class OnnxExporter:
    """ONNX for ONNX Runtime, in fp32, fp16, dynamic or static int8, or int4.

    Attributes:
        precision: "fp32"; "fp16": weights and arithmetic; "int8": weights quantized ahead of time per channel,
            activations while running; "int8-static": activations by scales measured on the task's data; "int4": weights
            alone.
        opset: version of the ONNX operators.
        embeddings: int8, int8-static and int4: quantize embedding tables too.
        reduce_range: int8 and int8-static: seven-bit weights, which give the same results with and without VNNI.
        block: int4: weights to a scale, a power of two from 16.
        tolerance: largest difference of a logit that the fp32 graph may have from the torch model, or 1e-4 of the
            largest logit where that is more.
    """

    precision: Precision = "fp32"
    opset: int = 20
    embeddings: bool = True
    reduce_range: bool = True
    block: int = 32
    tolerance: float = 1e-3
    name: ClassVar[str] = "onnx"
    precisions: ClassVar[tuple[str, ...]] = tuple(PRECISIONS)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            *most, last = get_args(Precision)
            raise ExportError(f"The ONNX exporter writes {', '.join(most)} and {last}, not '{self.precision}'.")

    @property
    def devices(self) -> tuple[Device, ...]:
        """Where an export of this precision runs."""
        return PRECISIONS[self.precision].devices

    @property
    def calibrated(self) -> bool:
        """Whether `export` needs samples."""
        return PRECISIONS[self.precision].calibrated

    def export(
        self,
        model: torch.nn.Module,
        example: Mapping[str, torch.Tensor],
        path: Path,
        samples: Sequence[Arrays] = (),
    ) -> Exported:
        """Write `model` as a new folder `path`: graph, `export.json`, and the configs of a Hugging Face model.

        `example` holds the keyword inputs of `model.forward`, batch >= 2 and length >= 2. Axis 0 of every input becomes
        `batch_size`, axis 1 of integer inputs `sequence_length`; the only output is `logits`. Other precisions take the
        graph of an fp32 export of the same weights in the sibling folder `onnx-fp32` instead of tracing again.
        `samples`, batches of the task's inputs, are what int8-static measures the range of activations on.

        Raises:
            ExportError: `path` exists, the graph cannot be written, or it computes something else than the model; or
                int8-static without samples.
            ResourceError: the disk refuses the files.
        """
        from compressor.storage import weights_digest
        from exporters.verify import beside, settled

        with new_folder(path) as scratch, settled(model):
            digest = weights_digest(model)
            sibling = path.parent / "onnx-fp32"
            reused = self.precision != "fp32" and self._fits(sibling, digest, example)
            figures = self._write(model, beside(model, example), scratch, sibling if reused else None, samples)
            facts = self._facts(scratch) | figures | {"weights_digest": digest, "reused_fp32_graph": reused}
            _save_config(model, scratch, facts["inputs"])
            (scratch / EXPORT_FILE).write_text(json.dumps(facts, indent=2) + "\n")
        return Exported(path, tuple(facts["model_files"]), facts)

    def load(self, path: Path, session: Session = Session()) -> OnnxRunner:  # noqa: B008 (frozen)
        """A runner for an exported folder, without importing torch.

        Raises:
            ArtifactError: the folder holds no graph.
            DependencyError: CUDA was asked for and is not there.
            RuntimeFailure: ONNX Runtime refuses the graph.
        """
        return onnx_runtime.load(path, session)

    def _fits(self, sibling: Path, digest: str, example: Mapping[str, Any]) -> bool:
        """Whether the sibling is an fp32 graph of these weights, inputs and opset."""
        if not all((sibling / name).is_file() for name in (EXPORT_FILE, GRAPH)):
            return False
        try:
            facts = json.loads((sibling / EXPORT_FILE).read_text())
        except json.JSONDecodeError:  # not the export that we wrote
            return False
        names = [value["name"] for value in facts.get("inputs", [])][: len(example)]
        found = [facts.get(key) for key in ("weights_digest", "precision", "opset")]
        return [*found, names] == [digest, "fp32", self.opset, list(example)]

    def _write(
        self,
        model: torch.nn.Module,
        example: Mapping[str, torch.Tensor],
        folder: Path,
        traced: Path | None,
        samples: Sequence[Arrays],
    ) -> dict[str, Any]:
        """Put the graph into `folder`; returns how far it is from the model."""
        from exporters import onnx_graph, verify

        inputs, stage = verify.trials(model, example), PRECISIONS[self.precision].stage
        if stage is None:
            onnx_graph.write(model, example, self.opset, folder / GRAPH)
            return {"parity": verify.compare(model, self.load(folder), inputs, self.tolerance)}
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            source = traced or Path(temporary)
            if traced is None:
                onnx_graph.write(model, example, self.opset, source / GRAPH)
            before = verify.compare(model, self.load(source), inputs, self.tolerance)
            stage(source / GRAPH, folder / GRAPH, self, samples)
        # how much a precision may cost is for the parity and accuracy gates to say: here it must run and stay finite
        after = verify.compare(model, self.load(folder), inputs, limit=math.inf)
        return {"parity": after, "parity_fp32": before}

    def _facts(self, folder: Path) -> dict[str, Any]:
        from exporters import onnx_file

        files = {file.name: file.stat().st_size for file in sorted(folder.glob(f"{GRAPH}*"))}
        knobs = {name: getattr(self, name) for name in PRECISIONS[self.precision].knobs}
        return {
            "schema_version": SCHEMA_VERSION,
            "runtime": self.name,
            "precision": self.precision,
            "opset": self.opset,
            **knobs,
            "model_files": list(files),
            "file_bytes": files,
            "versions": _versions(),
            **onnx_file.read(folder / GRAPH),
        }


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import torch

    return {module.__name__: str(module.__version__) for module in (torch, onnx, onnxruntime)}


def _save_config(model: torch.nn.Module, folder: Path, inputs: Sequence[Mapping[str, Any]]) -> None:
    """Beside the graph, where optimum's and transformers' loaders look for it; a decoder's also as GenAI's do."""
    from exporters import genai

    config = getattr(model, "config", None)
    save = getattr(config, "save_pretrained", None)
    if callable(save):
        save(folder)
        genai.write(config, inputs, folder)
