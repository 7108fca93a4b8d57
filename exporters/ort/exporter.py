"""ONNX Runtime's own format (`.ort`) for mobile and edge builds: what it makes of an ONNX graph, done ahead of time."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from compressor.errors import ExportError
from exporters import staged
from exporters.base import Arrays, Device, Session
from exporters.folder import facts, save_config
from exporters.onnx import OnnxExporter
from exporters.onnx import runtime as onnx_runtime
from exporters.onnx.exporter import versions
from exporters.onnx.precisions import PRECISIONS
from exporters.onnx.runtime import GRAPH, MAPPED, ORT_GRAPH, OnnxRunner

Precision = Literal["fp32", "fp16", "int8", "int8-static", "int8-weights", "int4"]
Level = Literal["basic", "extended"]


@dataclass(frozen=True)
class OrtExporter(OnnxExporter):
    """ONNX Runtime's own format for mobile and edge builds, in fp32 or fp16, in int8 of several kinds, or int4.

    Attributes:
        level: what is done to the graph ahead of time, for it is not optimized again when it is loaded. "extended":
            operators fused as ONNX Runtime's CPU provider fuses them; "basic": operators of ONNX alone, which
            providers of mobile hardware can take. Both run on every CPU; the level above fixes the vector width of
            the exporting machine and is not offered.

    `export` writes `model.ort` and the operators that it requires. Its graph is that of the ONNX export in the same
    precision; axes, names and a decoder's cache are the same. Weights over 2 GB are an ExportError.
    """

    precision: Precision = "fp32"
    level: Level = "extended"
    name: ClassVar[str] = "ort"
    precisions: ClassVar[tuple[str, ...]] = get_args(Precision)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level not in get_args(Level):
            raise ExportError(f"The ORT exporter optimizes to the level basic or extended, not '{self.level}'.")

    @property
    def devices(self) -> tuple[Device, ...]:
        """The graph is optimized for the CPU provider."""
        return ("cpu",)

    @property
    def _staged(self) -> bool:
        """The graph is that of the ONNX export in the same precision, in fp32 too."""
        return True

    def _save_config(self, config: Any, folder: Path, told: Mapping[str, Any]) -> None:
        """GenAI's loader takes ONNX alone."""
        save_config(config, folder)

    def load(self, path: Path, session: Session = Session()) -> OnnxRunner:  # noqa: B008 (frozen)
        """A runner for an exported folder, without importing torch; its weights stay in the file, which is mapped.

        Raises:
            ArtifactError: the folder holds no graph.
            DependencyError: CUDA was asked for.
            RuntimeFailure: ONNX Runtime refuses the graph.
        """
        self.require(session)
        return onnx_runtime.load(path, session)

    def _finished(self, start: staged.Traced, folder: Path, samples: Sequence[Arrays]) -> dict[str, Any]:
        """Put the graph into `folder`; returns its facts."""
        told: dict[str, Any] = {}
        figures = staged.made(
            start,
            folder,
            stage=lambda source, place: told.update(self._convert(source, place, samples)),
            load=self.load,
            tolerance=self.tolerance,
            limit=self.tolerance if self.precision == "fp32" else math.inf,
        )
        own = {"level": self.level, "session": dict(MAPPED)}
        return self._knobs | own | facts(self, folder, [ORT_GRAPH], versions()) | told | figures

    def _convert(self, source: Path, folder: Path, samples: Sequence[Arrays]) -> dict[str, Any]:
        """From the fp32 graph in `source` to the file in `folder`; returns the facts of the ONNX graph in between."""
        from exporters.onnx import file as onnx_file
        from exporters.ort import file

        stage, target = PRECISIONS[self.precision].stage, folder / ORT_GRAPH
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            graph = source / GRAPH
            if stage is not None:
                graph = Path(temporary) / GRAPH
                stage(source / GRAPH, graph, self, samples)
            file.convert(graph, target, self.level)
            told = onnx_file.read(graph)
        file.write_operators(target)
        return told | {"nodes": file.nodes(target)}
