"""Size: what a deployment has to ship, the graph and its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from compressor.errors import ArtifactError
from exporters import record
from exporters.record import EXPORT_FILE
from validators.base import Finding, Subject
from validators.process_memory import MIB

FACTS = ("matmul_weight_bytes", "initializer_bytes")  # what an exporter may tell beside its files


@dataclass(frozen=True)
class Size:
    """Size of the export's model files on disk, without configuration and tokenizer."""

    quantities: ClassVar[tuple[str, ...]] = ("size",)

    def run(self, dense: Subject, candidate: Subject) -> tuple[Finding, ...]:
        """Finding `size` (MiB); details hold the bytes of all weights and of those that are multiplied with.

        Raises:
            ArtifactError: an export has no readable export.json, or lacks a file that it names.
        """
        sizes = file_bytes(dense.path) / MIB, file_bytes(candidate.path) / MIB
        details = _facts("dense", dense.path) | _facts("candidate", candidate.path)
        return (Finding("size", "MiB", "lower", *sizes, details=details),)


def file_bytes(path: Path) -> int:
    """Bytes of the model files that the export's own list names.

    Raises:
        ArtifactError: the list or one of the files is missing.
    """
    names = record.read(path).model_files
    if not names:
        raise ArtifactError(f"{path / EXPORT_FILE} names no model_files: export again.")
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise ArtifactError(f"{path} lacks {', '.join(missing)}, named in its {EXPORT_FILE}: export again.")
    return sum((path / name).stat().st_size for name in names)


def _facts(prefix: str, path: Path) -> dict[str, float]:
    facts = record.read(path).facts
    return {f"{prefix}_{name}": float(facts[name]) for name in FACTS if name in facts}
