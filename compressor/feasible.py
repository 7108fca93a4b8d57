"""What cannot work is said before the work: no targets, or a plan, budget or model that does not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compressor import data, factorize, models, planning
from compressor.errors import InputError, ModelError, some
from compressor.planning import Plan
from compressor.recipe import PlanSection
from exporters.verify import is_sequence, positions

if TYPE_CHECKING:
    from compressor.line import Line


def require(line: Line, model: Any) -> None:
    """Nothing where a line's recipe suits its dense model and its data.

    Raises:
        ArtifactError, BudgetError, InputError, ModelError: in a sentence, why it does not.
    """
    _require_ranks(line, model)
    splits = (line.data.train, line.data.validation, line.data.calibration, line.data.evaluation)
    longest = max((split for split in splits if split is not None), key=_longest)
    batch = data.batches(longest, line.task, line.processor, 2)[-1]
    models.require_learnable(model, batch, line.data.labels)
    if line.recipe.export and "input_ids" in batch:
        _require_length(line, model, batch)


def _require_ranks(line: Line, model: Any) -> None:
    """A plan that is replayed fits, or a budget can be met."""
    section, targets = line.recipe.plan, line.targets(model)
    if section.path:
        plan = Plan.load(Path(section.path))
        _require_layout(plan, section)
        factorize.planned(model, plan)
        _require_targets(plan, {target.name for target in targets}, section)
    elif section.quantity == "parameters":
        line.allocate([planning.flat(target.name, target.out_features, target.in_features) for target in targets])


def _require_layout(plan: Plan, section: PlanSection) -> None:
    if plan.layout != section.layout:
        raise InputError(
            f"The plan {section.path} is of the layout {plan.layout}, but plan.layout is {section.layout}, the "
            f"default where a recipe says nothing: set plan.layout: {plan.layout}."
        )


def _require_targets(plan: Plan, targets: Collection[str], section: PlanSection) -> None:
    if not plan.layers:
        raise InputError(
            f"The plan {section.path} lists no layers: `python -m compressor plan RECIPE` writes a whole one."
        )
    others = [name for name in plan.ranks if name not in targets]
    if others:
        raise InputError(
            f"The plan {section.path} gives a rank to {some(others)}, which model.targets and model.exclude leave out: "
            "take their ranks out (null), or make them targets."
        )


def _require_length(line: Line, model: Any, batch: Mapping[str, Tensor]) -> None:
    """The model takes as many tokens as are measured with; one of the user's own code says nowhere how many."""
    section, places = line.recipe.validation, positions(model)
    asked = section.sequence_length
    if asked > places:
        raise InputError(
            f"validate.sequence_length is {asked}, but the model takes {places} tokens at most: measure with fewer."
        )
    if not line.source.factory:
        return
    rows = torch.arange(section.batch_size) % len(batch["input_ids"])
    columns = torch.arange(asked) % batch["input_ids"].shape[1]
    tried = {name: one[rows][:, columns] if is_sequence(one) else one[rows] for name, one in batch.items()}
    try:
        models.require_learnable(model, tried, line.data.labels)
    except ModelError as error:
        raise InputError(
            f"validate.sequence_length is {asked}, and what {line.recipe.model.path} made fails there: measure with "
            f"fewer. {error}"
        ) from error


def _longest(split: Any) -> int:
    """Tokens of the longest row; 0 of rows without a length."""
    return max(split["length"]) if "length" in split.column_names else 0
