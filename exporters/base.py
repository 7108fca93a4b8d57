"""What every exporter derives from, and what it is given and gives.

Nothing in this file imports torch, nor does `load` of an exporter whose runtime is not torch: measuring processes must
stay free of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args

import numpy as np

from compressor.errors import DependencyError, ExportError, InputError, RankfoldError, ResourceError, RuntimeFailure
from compressor.failures import out_of_memory

if TYPE_CHECKING:
    import torch

    from compressor.timings import Timer

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


@dataclass(frozen=True)
class Exporter(ABC):
    """One runtime, in one precision. What derives from it is a frozen dataclass too, and its fields are its knobs.

    `name`, `export` and `load` are to be given; the rest has a default, for what a runtime need not say of itself.

    Attributes:
        precision: one of `precisions`.
        name: its row in the registry.
        precisions: all that it writes.
        packages: what `load` imports and may not be installed: by the name of its import, the command that installs it.
    """

    precision: str = "fp32"
    name: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    packages: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        """Raises ExportError where the precision is not written; it says which are."""
        if self.precision not in self.precisions:
            written = " and ".join(filter(None, (", ".join(self.precisions[:-1]), self.precisions[-1])))
            raise ExportError(f"The {self.name} exporter writes {written}, not '{self.precision}'.")

    @property
    def devices(self) -> tuple[Device, ...]:
        """Where an export of this precision runs, the likeliest first; everywhere by default."""
        return get_args(Device)

    @property
    def calibrated(self) -> bool:
        """Whether this precision looks at activations, so that `export` is to be given samples; by default not."""
        return False

    @property
    def beside(self) -> tuple[str, ...]:
        """Precisions that are always exported beside this one, where other runtimes do not load it; by default none."""
        return ()

    @abstractmethod
    def export(
        self,
        model: torch.nn.Module,
        example: Mapping[str, torch.Tensor],
        path: Path,
        samples: Sequence[Arrays] = (),
    ) -> Exported:
        """Write `model` as a new folder `path`.

        Args:
            model: computes in float32.
            example: its inputs by name, of batch >= 2 and an odd length.
            path: the folder.
            samples: batches of the task's inputs, where the precision is `calibrated`; else nothing.

        Raises:
            DependencyError: what writes it is not installed.
            ExportError: `path` exists, the graph cannot be written, or it computes something else at one of the shapes
                tried.
            ResourceError: the disk refuses the files.
        """

    @abstractmethod
    def load(self, path: Path, session: Session = Session()) -> Runner:
        """A runner for an exported folder of any precision, without importing torch.

        Raises:
            ArtifactError: the folder holds no such export.
            DependencyError: the runtime or the asked device is not there.
            ResourceError: memory is wanting.
            RuntimeFailure: the runtime refuses the file.
        """

    def require(self, session: Session) -> None:
        """Nothing where an export of this precision can run on a session's device; asked before hours of work.

        By default `devices` says where. A runtime that may lack one of them here asks for it too.

        Raises:
            DependencyError: it cannot.
        """
        if session.device not in self.devices:
            raise DependencyError(
                f"This export of {self.name} runs on the {' and '.join(self.devices)}, not on {session.device}: set "
                f"`validate.device: {self.devices[0]}`, or export another precision or runtime."
            )

    def timer(self, session: Session) -> Timer:
        """What times single layers in this precision, for plans that measure.

        Raises:
            InputError: the runtime cannot; that is the default.
        """
        raise InputError(f"Layers cannot be timed on {self.name}: measure a plan on another runtime.")

    @classmethod
    def times_layers(cls) -> bool:
        """Whether it has a `timer` of its own."""
        return cls.timer is not Exporter.timer


def failed(what: str, error: Exception, advice: str = "") -> RankfoldError:
    """What a runtime's own error is raised as: `what` failed and why; `advice` helps where memory was not wanting."""
    if out_of_memory(error):
        return ResourceError(f"{what}. Free memory, or lower `validate.batch_size` and `validate.sequence_length`.")
    return RuntimeFailure(f"{what}. {advice}" if advice else what)


def write(
    exporter: Exporter,
    model: Callable[[], torch.nn.Module],
    example: Mapping[str, torch.Tensor],
    path: Path,
    samples: Callable[[], Sequence[Arrays]],
) -> Exported:
    """An export by any exporter; no name keeps the model that is made here, so that the exporter can let go of it.

    Args:
        exporter: whose export it is.
        model: makes the model.
        example: its inputs.
        path: the new folder.
        samples: makes batches of the task's inputs; asked only where the precision is calibrated.

    Raises:
        DependencyError, ExportError, ResourceError: see `Exporter.export`.
    """
    given = samples() if exporter.calibrated else ()
    return exporter.export(model(), example, path, given)
