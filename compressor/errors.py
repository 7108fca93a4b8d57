"""Every error a user can reach, with the exit code that the command line returns for it.

    RankfoldError
    ├── GateError            1   a gate failed
    ├── InputError           2   bad usage or input
    │   ├── RecipeError          the recipe
    │   ├── ModelError           the model or its checkpoint
    │   ├── DataError            a data set
    │   ├── BudgetError          a budget that cannot be met
    │   └── ArtifactError        an artifact, run folder or package
    │       └── IntegrityError  1    it is not what was made
    ├── DependencyError      3   environment: a package, a provider or a device is missing
    ├── ExportError          4   a graph that could not be written or does not compute the same
    ├── RuntimeFailure       4   an inference runtime that failed
    └── ResourceError        5   memory, disk or an interruption: finished stages are kept, `--resume` goes on

A message is a sentence that says what was wrong, where, what is allowed and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class RankfoldError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 2


class GateError(RankfoldError):
    """A gate failed (or was unsure where the recipe does not accept that)."""

    exit_code = 1


class InputError(RankfoldError):
    """Bad usage or input."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe that cannot be read or has faults; all of them are listed."""


class ModelError(InputError):
    """A model that cannot be loaded safely, or has nothing to compress."""


class DataError(InputError):
    """A data set that is missing, empty or lacks what the recipe names."""


class BudgetError(InputError):
    """A budget that no choice of ranks meets."""


class ArtifactError(InputError):
    """An artifact, run folder or package that is missing, incomplete, edited or in the way."""


class IntegrityError(ArtifactError):
    """A file that is missing, changed or new since it was recorded, an unsafe archive, or a signature that fails."""

    exit_code = 1


class DependencyError(RankfoldError):
    """A package, provider or device that this machine lacks."""

    exit_code = 3


class ExportError(RankfoldError):
    """An export that failed or does not compute what the model computes."""

    exit_code = 4


class RuntimeFailure(RankfoldError):
    """An inference runtime that failed while loading or running an export."""

    exit_code = 4


class ResourceError(RankfoldError):
    """Out of memory or disk, or interrupted; what was finished is kept."""

    exit_code = 5


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest allowed word, else an empty string."""
    import difflib

    near = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def some(names: Sequence[object], most: int = 5) -> str:
    """`a, b, c, ...`: the first few of many."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """What an exception says first."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def interrupted(error: BaseException) -> bool:
    """Whether an interruption lies behind it: what was cut off while it wrote, say, fails in words of its own."""
    behind = error.__context__
    return isinstance(error, KeyboardInterrupt) or (behind is not None and interrupted(behind))


def field_faults(error: Any) -> list[str]:
    """A line for each fault of a pydantic.ValidationError: the field, what it must be, and a plain value it has."""
    return [
        f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}{_instead(fault['input'])}" for fault in error.errors()
    ]


def _instead(value: Any) -> str:
    return f", not {value!r}" if isinstance(value, str | int | float) else ""
