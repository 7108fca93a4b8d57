"""What whole exports cost beside dense fp32, measured as `validate` does, before there is an artifact: for budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from compressor import registry
from compressor.recipe import ValidateSection
from compressor.tasks.base import Task
from exporters.base import Arrays, Session
from validators.base import NO_OUTCOMES, Evaluation, Finding, Subject
from validators.child import tiled
from validators.measure import configured
from validators.size import file_bytes


class Cost(NamedTuple):
    """What dense fp32 takes undisturbed, in milliseconds or in MiB over the floor, and the candidate's share of it.

    The share is the check's, of medians. The time beside it is the least of all runs: medians of models hold the waits
    of a busy machine, which single layers are too quick to meet, so that the two could not be compared.
    """

    dense: float
    ratio: float


@dataclass(frozen=True)
class EndToEnd:
    """Costs of exports of one runtime.

    Attributes:
        runtime: row of the exporter table.
        task: whose inputs the models take.
        batches: posed batches that inputs are made of.
        validation: the recipe's knobs, the same as for `validate`.
        dense: the folder of the dense export in fp32.
    """

    runtime: str
    task: Task
    batches: Sequence[Arrays]
    validation: ValidateSection
    dense: Path
    session: Session = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "session", Session(self.validation.device, self.validation.threads))

    def inputs(self) -> Arrays:
        """What the models are measured on."""
        return tiled(self._evaluation, self.validation.batch_size, self.validation.sequence_length)

    def cost(self, quantity: str, candidate: Path) -> Cost:
        """`latency`, the 50th percentile, or `memory`, the peak over the floor, of the export in a folder.

        Raises:
            DependencyError, ResourceError, RuntimeFailure: as the measuring process failed.
        """
        check = configured(registry.load("checks", quantity), self.validation)
        return READ[quantity](check.run(self._subject(self.dense), self._subject(candidate))[0])

    def size(self, export: Path) -> int:
        """Bytes of an export's model files."""
        return file_bytes(export)

    @property
    def _evaluation(self) -> Evaluation:
        return Evaluation(self.task, self.batches)

    def _subject(self, folder: Path) -> Subject:
        return Subject(folder.name, self.runtime, folder, self._evaluation, self.session, NO_OUTCOMES)


def _latency(found: Finding) -> Cost:
    return Cost(found.details["dense_min"], found.ratio)


def _memory(found: Finding) -> Cost:
    dense, ours = (found.details[f"{name}_peak"] - found.details[f"{name}_floor"] for name in ("dense", "candidate"))
    return Cost(dense, ours / dense)


READ: dict[str, Callable[[Finding], Cost]] = {"latency": _latency, "memory": _memory}
