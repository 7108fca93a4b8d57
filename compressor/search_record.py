"""search.json: the budgets there are, what every trial gave, and which of them stands. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from compressor import bisection
from compressor.artifact import MANIFEST, SEARCH
from compressor.bisection import Trial, Want
from compressor.errors import ArtifactError, field_faults
from compressor.files import read_object

SCHEMA_VERSION = 1
EVERY = "every export"  # the alternative of a recipe whose exports must all hold
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class FailedGate:
    """A gate that did not hold."""

    export: str
    quantity: str
    text: str  # with the figures and the limit


@dataclass(frozen=True)
class ExportFigures:
    """What was measured of one low-rank export: its findings by quantity, as the trial's report has them."""

    name: str
    findings: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class TrialRecord:
    """What is kept of one trial."""

    budget: Share
    parameters: int  # of all targets
    dense_parameters: Annotated[int, Field(gt=0)]
    seconds: float  # that plan, training and folding took
    wants: Mapping[str, tuple[Want, ...]]  # by alternative, what its failed gates ask for
    failed: tuple[FailedGate, ...]
    winner: str | None  # of `export: auto`, a dense one too
    exports: tuple[ExportFigures, ...]

    @property
    def tried(self) -> Trial:
        """The trial as the bisection reads it."""
        return Trial(self.budget, {alternative: frozenset(wants) for alternative, wants in self.wants.items()})

    @property
    def distance(self) -> tuple[float, tuple[Want, ...]]:
        """How many gates failed, of the best export where one is enough, and what they ask for.

        Infinite where no low-rank export could be measured.
        """
        counts = ((len(self.failures(alternative)), wants) for alternative, wants in self.wants.items())
        return min(counts, default=(math.inf, ()))

    def failures(self, alternative: str) -> list[FailedGate]:
        """The failed gates of one alternative."""
        return [fault for fault in self.failed if alternative in (EVERY, fault.export)]


@dataclass(frozen=True)
class Search:
    """A search as far as it has come; all that it comes to follows from its trials."""

    split: str  # that trials are measured on
    rows: int  # of it
    budgets: Annotated[tuple[Share, ...], Field(min_length=1)]  # that there are, ascending
    trials: tuple[TrialRecord, ...] = ()  # in the order in which they were made

    def with_trial(self, trial: TrialRecord) -> Search:
        """The same with one more trial."""
        return replace(self, trials=(*self.trials, trial))

    @property
    def next_budget(self) -> float | None:
        """What to try next, or None where the search is over."""
        return bisection.next_budget(self.budgets, [trial.tried for trial in self.trials])

    @property
    def chosen(self) -> TrialRecord | None:
        """The smallest budget that holds."""
        found = bisection.chosen([trial.tried for trial in self.trials])
        return next(trial for trial in self.trials if trial.budget == found.budget) if found else None

    @property
    def closest(self) -> TrialRecord:
        """The trial that came closest to holding; there must be one."""
        return _closest(self.trials)

    @property
    def stands(self) -> TrialRecord | None:
        """Whose files stand in the search's own folder: the chosen one's, or the closest's where a dense export won."""
        won = [trial for trial in self.trials if trial.winner]
        return self.chosen or (_closest(won) if won else None)

    def to_dict(self) -> dict[str, Any]:
        """JSON data of a search with a trial."""
        chosen, stands = (trial.budget if trial else None for trial in (self.chosen, self.stands))
        came_to = {"chosen": chosen, "closest": self.closest.budget, "stands": stands}
        return {"schema_version": SCHEMA_VERSION, **asdict(self), **came_to}

    @classmethod
    def read(cls, folder: Path) -> Search:
        """The search of a run folder; what it came to is derived again.

        Raises:
            ArtifactError: search.json is missing, damaged or of another schema; all fields that are wrong are listed.
        """
        path = folder / SEARCH
        try:
            data = read_object(path)
        except ArtifactError as error:
            raise ArtifactError(f"{error} {_repair(folder)}") from error
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{path} has schema version {version!r}; this version reads {SCHEMA_VERSION}. Take the rankfold that "
                "made it, or start again with --overwrite."
            )
        try:
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            said = [f"{path} cannot be read:", *field_faults(error), _repair(folder)]
            raise ArtifactError("\n".join(said)) from error


def _closest(trials: Sequence[TrialRecord]) -> TrialRecord:
    """Of those with the fewest failed gates the largest budget, or the smallest where they only cost too much."""
    fewest = min(trial.distance[0] for trial in trials)
    tied = [trial for trial in trials if trial.distance[0] == fewest]
    nearest = min if all(trial.distance[1] == ("less",) for trial in tied) else max
    return nearest(tied, key=lambda trial: trial.budget)


def _repair(folder: Path) -> str:
    if (folder / MANIFEST).is_file():  # which has its digest
        return "Restore it, or start again with --overwrite."
    return (
        "Restore it, or remove it and go on with --resume: finished trials are measured again, but not trained again."
    )
