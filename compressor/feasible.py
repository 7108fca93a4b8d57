"""What cannot work is said before the work: no targets, or a plan, budget or model that does not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compressor import allocation, data, factorize, models, planning, progress
from compressor.errors import InputError, ModelError, some
from compressor.planning import Plan
from compressor.recipe import PlanSection
from compressor.tasks.base import inputs_of
from exporters.verify import is_sequence, positions

if TYPE_CHECKING:
    from compressor.sources import Sources

ROUNDING = 1e-3  # of the largest logit: more than batches of other shapes make, less than any misread text


def require(sources: Sources, model: Any) -> None:
    """Nothing where a recipe suits its dense model and its data.

    Raises:
        ArtifactError, BudgetError, InputError, ModelError: in a sentence, why it does not.
    """
    _require_ranks(sources, model)
    sources.models.require_alike(model)
    splits = (sources.data.train, sources.data.validation, sources.data.calibration, sources.data.evaluation)
    longest = max((split for split in splits if split is not None), key=_longest)
    alone, beside = _padded(sources, longest)
    if "input_ids" in beside:
        _require_known(sources, model, beside)
    models.require_learnable(model, beside, sources.data.labels)
    if "input_ids" in beside:
        _require_unmoved(sources, model, alone, beside)
    if sources.recipe.export and "input_ids" in beside:
        _require_length(sources, model, beside)


def _require_ranks(sources: Sources, model: Any) -> None:
    """A plan that is replayed fits, or a budget can be met."""
    section, targets = sources.recipe.plan, sources.targets(model)
    if section.path:
        plan = Plan.load(Path(section.path))
        _require_layout(plan, section)
        factorize.planned(model, plan)
        _require_targets(plan, {target.name for target in targets}, section)
    elif section.quantity == "parameters":
        flat = [allocation.flat(target.name, target.out_features, target.in_features) for target in targets]
        planning.by_recipe(section, flat)


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
    lacking = sorted(set(targets) - {layer.name for layer in plan.layers})
    if lacking:
        raise InputError(
            f"The plan {section.path} has no row for {some(lacking)}, which are targets: give them one (with rank null "
            "a layer stays dense), or leave them out with model.exclude."
        )


def _padded(sources: Sources, split: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The shortest row of a split alone, and beside the longest, where it is padded most."""
    order = data.batches(split, sources.task, sources.processor, 2).order
    rows = [split[int(order[place])] for place in (0, -1)]
    return sources.task.collate(rows[:1], sources.processor), sources.task.collate(rows, sources.processor)


def _require_known(sources: Sources, model: Any, batch: Mapping[str, Tensor]) -> None:
    """The model has an embedding of every token, that which pads among them."""
    known, section = getattr(getattr(model, "config", None), "vocab_size", None), sources.recipe.model
    highest = int(batch["input_ids"].max())
    if known is not None and highest >= known:
        padding = " (which pads)" if highest == getattr(sources.processor, "pad_token_id", None) else ""
        raise ModelError(
            f"The tokenizer of {section.processor or section.path} has {len(sources.processor)} tokens and the model "
            f"{known}: there is no embedding of token {highest}{padding}. Name the model's own tokenizer as "
            "model.processor, let the tokenizer pad with a token that the model has, or resize_token_embeddings() and "
            "save the model again."
        )


@torch.no_grad()
def _require_unmoved(sources: Sources, model: Any, alone: Mapping[str, Tensor], beside: Mapping[str, Tensor]) -> None:
    """A text's logits are its own, however long its neighbors are.

    Some models (ConvBERT, FNet, modules of one's own) see padding whatever they are told: that is said alone.
    """
    ours, theirs = (
        model(**inputs_of(batch)).logits[:1][sources.task.terms(batch)[:1]].float() for batch in (alone, beside)
    )
    if torch.allclose(theirs, ours, rtol=ROUNDING, atol=ROUNDING * float(ours.abs().max())):
        return
    said = f"gives a text other logits beside a longer one, which it is padded to (by up to {_apart(theirs, ours):.2g})"
    config, processor = getattr(model, "config", None), sources.processor
    pads, knows = getattr(processor, "pad_token_id", None), getattr(config, "pad_token_id", None)
    side = getattr(processor, "padding_side", "right")
    if config is None or (pads == knows and side == "right"):
        progress.note(f"{type(model).__name__} {said}: what is measured depends on the batches.")
        return
    raise ModelError(
        f"{sources.recipe.model.path} {said}: the tokenizer pads with token {pads} on the {side}, the model's config "
        f"has pad_token_id {knows}. Name one token in both (pad_token in tokenizer_config.json, pad_token_id in "
        "config.json), and padding_side: right."
    )


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _require_length(sources: Sources, model: Any, batch: Mapping[str, Tensor]) -> None:
    """The model takes as many tokens as are measured with; one of the user's own code says nowhere how many."""
    section, places = sources.recipe.validation, positions(model)
    asked = section.sequence_length
    if asked > places:
        raise InputError(
            f"validate.sequence_length is {asked}, but the model takes {places} tokens at most: measure with fewer."
        )
    if not sources.models.factory:
        return
    rows = torch.arange(section.batch_size) % len(batch["input_ids"])
    columns = torch.arange(asked) % batch["input_ids"].shape[1]
    tried = {name: one[rows][:, columns] if is_sequence(one) else one[rows] for name, one in batch.items()}
    try:
        models.require_learnable(model, tried, sources.data.labels)
    except ModelError as error:
        raise InputError(
            f"validate.sequence_length is {asked}, and what {sources.recipe.model.path} made fails there: measure with "
            f"fewer. {error}"
        ) from error


def _longest(split: Any) -> int:
    """Tokens of the longest row; 0 of rows without a length."""
    return max(split["length"][:]) if "length" in split.column_names else 0
