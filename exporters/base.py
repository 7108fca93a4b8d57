"""What every exporter is: a frozen dataclass whose fields are its knobs, with `export` and `load`.

Nothing in this file imports torch, nor does `load` of an exporter whose runtime is not torch: measuring processes must
stay free of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np

from compressor.errors import ExportError, RankfoldError, ResourceError, RuntimeFailure
from compressor.failures import out_of_memory

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, np.ndarray]
Device = Literal["cpu", "cuda"]

DAMAGED = "If a file was cut off or edited, restore it or export the model again."


@dataclass(frozen=True)
class Session:
    """How an export is to be run; `threads` counts intra-op threads, 0 = all that this process may use."""

    device: Device = "cpu"
    threads: int = 0


class Runner(Protocol):
    """A loaded export: named arrays in, named arrays out.

    One that runs on a GPU may also have `bound(inputs, *, replayed=False)`: a run () -> anything on these inputs that
    copies nothing, recorded as a CUDA graph where `replayed`; RuntimeFailure where it cannot be. Latency is timed so.
    """

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """`input_ids (B, T)`, ... -> `logits (B, labels)`; inputs that the graph does not take are ignored.

        Raises:
            ResourceError: memory is wanting.
            RuntimeFailure: an input is missing, or the runtime fails on these inputs.
        """
        ...

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers in use, most preferred first."""
        ...


@dataclass(frozen=True)
class Exported:
    """What an export left behind; the same facts stand in its `export.json`."""

    path: Path
    model_files: tuple[str, ...]  # graph and weights, without config and tokenizer files
    facts: dict[str, Any] = field(default_factory=dict)


def require_precision(title: str, precision: str, written: Sequence[str]) -> None:
    """Raises ExportError where an exporter, called `title`, does not write a precision; it says which it does."""
    if precision not in written:
        *most, last = written
        raise ExportError(f"The {title} exporter writes {', '.join(most)} and {last}, not '{precision}'.")


class Exporter(Protocol):
    """One runtime: a frozen dataclass.

    Six attributes may be left out: `devices`, where its precision does not run on every device; `calibrated`, true
    where its precision looks at activations: then `export` is also given `samples`, a sequence of batches
    of the task's inputs as named arrays; `beside`, the precisions that are always exported beside this one; `packages`,
    what has to be installed for it, by the name of its import; `require`, a method session -> None that raises
    DependencyError where that session's device is not there, before hours of work; and `timer`, a method session ->
    `compressor.timings.Timer`, without which no plan can measure this runtime's layers.
    """

    @property
    def name(self) -> str:
        """Its row in the registry."""
        ...

    @property
    def precision(self) -> str:
        """One of the precisions that it writes."""
        ...

    def export(self, model: torch.nn.Module, example: Mapping[str, torch.Tensor], path: Path) -> Exported:
        """Write `model` as a new folder `path`; `example` has batch >= 2 and an odd length.

        Raises:
            ExportError: the graph cannot be written, or computes something else at one of the shapes tried.
        """
        ...

    def load(self, path: Path, session: Session = Session()) -> Runner:
        """A runner for an exported folder, without importing torch.

        Raises:
            ArtifactError: the folder holds no such export.
            DependencyError: the runtime or the asked device is not there.
            ResourceError: memory is wanting.
            RuntimeFailure: the runtime refuses the file.
        """
        ...


def failed(what: str, error: Exception, advice: str = "") -> RankfoldError:
    """What a runtime's own error is raised as: `what` failed and why; `advice` helps where memory was not wanting."""
    if out_of_memory(error):
        return ResourceError(f"{what}. Free memory, or lower `validate.batch_size` and `validate.sequence_length`.")
    return RuntimeFailure(f"{what}. {advice}" if advice else what)


def write(
    exporter: Any,
    model: Callable[[], torch.nn.Module],
    example: Mapping[str, torch.Tensor],
    path: Path,
    samples: Callable[[], Sequence[Arrays]],
) -> Exported:
    """An export by any exporter; no name keeps the model that is made here, so that the exporter can let go of it.

    Args:
        exporter: an `Exporter`.
        model: makes the model.
        example: its inputs.
        path: the new folder.
        samples: makes batches of the task's inputs, where the precision is calibrated.

    Raises:
        ExportError, ResourceError: see `Exporter.export`.
    """
    extra = [samples()] if getattr(exporter, "calibrated", False) else []
    return cast("Exported", exporter.export(model(), example, path, *extra))
