"""Every check on every candidate, each finding judged by its gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from compressor import progress, registry
from compressor.errors import RecipeError, did_you_mean
from compressor.tasks.base import QUALITIES, Task
from validators.base import Check, Finding, Subject

if TYPE_CHECKING:
    from compressor.recipe import Gate, ValidateSection

Gates = Mapping[Any, "Gate"]  # by quantity; Any, as a mapping of literals is no mapping of str


def measure(
    dense: Subject,
    candidates: Sequence[Subject],
    validation: ValidateSection,
    gates: Gates,
    contestants: int = 1,
) -> dict[str, tuple[Finding, ...]]:
    """Findings by candidate name, judged where a gate names their quantity.

    Args:
        dense: the baseline's export that all candidates are held against.
        candidates: exports with names of their own; device and threads are those of each subject's session.
        validation: the knobs; a check takes those that it has a field for.
        gates: by quantity; pass an empty mapping for what is only compared.
        contestants: among how many exports the best is chosen by the very rows that prove it, see `checks`.

    Raises:
        RecipeError: a gate names a quantity that no check measures for this task.
        DependencyError: the runtime or the device is missing.
        RuntimeFailure, ResourceError: an export cannot be run.
    """
    built = checks(validation, dense.evaluation.task, contestants)
    _refuse_unmeasured(gates, built)
    findings: dict[str, tuple[Finding, ...]] = {candidate.name: () for candidate in candidates}
    jobs = [(candidate, check) for candidate in candidates for check in built]
    for candidate, check in progress.track(jobs, "measuring"):
        findings[candidate.name] += tuple(judged(finding, gates) for finding in check.run(dense, candidate))
    return findings


def checks(validation: ValidateSection, task: Task, contestants: int = 1) -> tuple[Check, ...]:
    """Every check of the registry table that says something about the task's outcomes, or about more than outcomes.

    A check gets the recipe's value for each field that the recipe has too. Of several `contestants` the luckiest on
    these rows may win: the confidence of what is measured on rows is then that of all of them together (Bonferroni).
    """
    found = (registry.load("checks", name) for name in registry.names("checks"))
    shared = validation.model_copy(update={"confidence": 1 - (1 - validation.confidence) / contestants})
    return tuple(
        configured(check, shared if {*check.quantities} & {*QUALITIES, "parity"} else validation)
        for check in found
        if applies(check, task)
    )


def applies(check: Any, task: Task) -> bool:
    """Whether the task's outcomes have the qualities that a check measures; costs and parity are every task's."""
    return not set(check.quantities) & set(QUALITIES) - set(task.qualities)


def configured(check: Any, validation: ValidateSection) -> Check:
    """A check with the recipe's value for each field that the recipe has too."""
    known = type(validation).model_fields
    return check(**{field.name: getattr(validation, field.name) for field in fields(check) if field.name in known})


def judged(finding: Finding, gates: Gates) -> Finding:
    """The finding, judged where a gate names its quantity."""
    gate = gates.get(finding.quantity)
    return finding if gate is None else finding.judged(gate)


def _refuse_unmeasured(gates: Gates, built: Sequence[Check]) -> None:
    measured = [quantity for check in built for quantity in check.quantities]
    for name in gates:
        if name not in measured:
            allowed = ", ".join(sorted(measured))
            raise RecipeError(
                f"gates.{name}: no check measures '{name}' for this task; allowed are {allowed}."
                f"{did_you_mean(name, measured)}"
            )
