"""Does an export compute what the model computes? Both are run at shapes that the export has not seen.

Among them are those just outside of the lengths that its tracing is sure of. An export with a cache also has to
continue from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.errors import ExportError, RuntimeFailure
from compressor.failures import out_of_memory
from exporters.base import Arrays, Runner
from exporters.feed import PAST, PRESENT

Inputs = Mapping[str, Tensor]
Run = Callable[[Arrays], Mapping[str, np.ndarray]]
Spans = Mapping[int, tuple[int, int]]  # by the example's lengths: least and most tokens that a tracing is sure of
ENDLESS = 2**31  # tokens, where nothing says how many
FAILURES = (RuntimeError, IndexError, TypeError, ValueError)  # of a model at a shape that it does not take
RELATIVE = 1e-4  # of the largest logit: what float32 may differ by where logits are large
MASKED = -5e3  # what a model gives a logit beside others to say "never", or less: how much less says nothing


def is_sequence(tensor: Tensor) -> bool:
    """Whether axis 1 counts tokens: integer tensors (B, T, ...) do, float features do not."""
    return tensor.ndim > 1 and not tensor.is_floating_point()


def logits_of(output: Any) -> Tensor:
    """The logits of a model's output: its `.logits`, its first element, or the tensor itself.

    Raises:
        ExportError: there are no logits.
    """
    found = getattr(output, "logits", output[0] if isinstance(output, (tuple, list)) else output)
    if not isinstance(found, Tensor):
        raise ExportError(
            f"The model returned {type(output).__name__} without logits. Its forward must return a tensor, a tuple "
            "that starts with one, or an output with `.logits`."
        )
    return found


def sequences(inputs: Inputs) -> dict[str, int]:
    """How many tokens axis 1 counts, of inputs where it does: integers (B, T, ...), and floats (B, T) beside them."""
    whole = {tensor.shape[1] for tensor in inputs.values() if is_sequence(tensor)}
    return {
        name: tensor.shape[1]
        for name, tensor in inputs.items()
        if is_sequence(tensor) or (tensor.ndim == 2 and tensor.shape[1] in whole)
    }


def trials(model: nn.Module, example: Inputs) -> list[dict[str, Tensor]]:
    """Three inputs made of the example's own values: batch 1, a shorter padded batch, a larger and longer one.

    That is no longer than the example where the model takes no more.
    """
    batch, same = len(next(iter(example.values()))), {length: length for length in sequences(example).values()}
    longer = {length: max(length, min(2 * length, positions(model) - 2)) for length in same}  # RoBERTa starts at 2
    if longer != same and not _takes(model, _resized(example, 1, longer, 2)):
        longer = same
    shapes = [(1, same), (batch, {length: length // 2 + 1 for length in same}), (batch + 1, longer)]
    return [_resized(example, rows, lengths, seed) for seed, (rows, lengths) in enumerate(shapes)]


def beyond(model: nn.Module, example: Inputs, spans: Spans) -> tuple[list[dict[str, Tensor]], dict[str, int]]:
    """What lies just outside of the lengths that a tracing is sure of: where the model runs, so must its export.

    torch narrows an axis where a forward branches on it, of which it keeps one branch, and where a table ends.

    Returns:
        Inputs of one row; and `max_length`, where the model is known to take no more tokens than the tracing.
    """
    tried: list[dict[str, Tensor]] = []
    last: dict[str, int] = {}
    for length, (least, most) in spans.items():
        if least > 2:  # torch always takes a length of 1 for a case of its own
            tried += _outside(model, example, {length: least - 1})
        if most < positions(model):
            tried += (longer := _outside(model, example, {length: most + 1}))
            last |= {} if longer else {"max_length": min(most, last.get("max_length", most))}
    return tried, last


def _outside(model: nn.Module, example: Inputs, lengths: Mapping[int, int]) -> list[dict[str, Tensor]]:
    """One row of these lengths instead of the example's, where the model takes it."""
    trial = _resized(example, 1, {length: length for length in sequences(example).values()} | dict(lengths), 0)
    return [trial] if _takes(model, trial) else []


def _takes(model: nn.Module, trial: Inputs) -> bool:
    try:
        model(**trial)
    except FAILURES as error:
        if out_of_memory(error):
            raise
        return False
    return True


def positions(model: nn.Module) -> int:
    """The most tokens that the model takes, as its config says; ENDLESS where it does not, or says -1 (XLNet)."""
    found = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return found if found and found > 0 else ENDLESS


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Raises ExportError where the model has put other modules into the place of its own meanwhile."""
    before = _kinds(model)
    try:
        yield
    except Exception as error:
        _require_kinds(model, before, error)
        raise
    _require_kinds(model, before)


def _kinds(model: nn.Module) -> dict[str, type[nn.Module]]:
    return {name: type(module) for name, module in model.named_modules()}


def _require_kinds(model: nn.Module, before: Mapping[str, type[nn.Module]], failure: Exception | None = None) -> None:
    after = _kinds(model)
    moved = [name for name in {**before, **after} if before.get(name) is not after.get(name)]
    if moved:
        raise ExportError(
            f"{type(model).__name__} replaces its own modules when it is run ({moved[0]} first), so what it computes "
            "depends on what it has read before, and no graph can say so. Choose one way in its config (BigBird: "
            "attention_type: original_full)."
        ) from failure


def _resized(example: Inputs, rows: int, lengths: Mapping[int, int], seed: int) -> dict[str, Tensor]:
    """Rows and columns of the example drawn anew, so that every value is one that the model accepts.

    `lengths` has the new length of each of the example's.

    Padding is never drawn as if it were text: on runs of it float32 itself is too coarse in some language models. The
    last real token stays the last and is drawn nowhere else: some classifiers read where the text ends (BART).
    """
    generator = torch.Generator().manual_seed(seed)
    pick_rows = torch.randint(len(next(iter(example.values()))), (rows,), generator=generator)
    shares = {old: torch.rand(new, generator=generator) for old, new in lengths.items()}  # of each row's length
    resized, counted = {}, sequences(example)
    for name, tensor in example.items():
        drawn = tensor[pick_rows.to(tensor.device)]
        if name in counted:
            real = _lengths(example, tensor)[pick_rows]
            pick_columns = (shares[counted[name]] * (real[:, None] - 1)).long()  # (rows, columns)
            pick_columns[:, -1] = real - 1
            pick_columns = pick_columns.to(tensor.device)
            drawn = drawn[torch.arange(rows, device=tensor.device)[:, None], pick_columns]  # (rows, columns, ...)
        resized[name] = _padding(drawn) if name == "attention_mask" else drawn
    return resized


def _lengths(example: Inputs, tensor: Tensor) -> Tensor:
    """Real tokens of each row (B,), which come first where the mask is padded on the right."""
    mask = example.get("attention_mask")
    if mask is None or mask.shape != tensor.shape[:2] or not bool(mask[:, 0].all()):
        return torch.full((len(tensor),), tensor.shape[1])
    return mask.sum(dim=1).long().cpu()


def _padding(mask: Tensor) -> Tensor:
    """A mask (B, T) whose row b ends in b padded tokens, at least one token kept."""
    rows, columns = mask.shape
    kept = (columns - torch.arange(rows, device=mask.device)).clamp(min=1)
    return (torch.arange(columns, device=mask.device) < kept[:, None]).to(mask.dtype)


@dataclass(frozen=True, eq=False)
class Reference:
    """One of the inputs, and the logits that the torch model gives for it."""

    inputs: Mapping[str, np.ndarray]
    logits: np.ndarray


def references(model: nn.Module, inputs: Sequence[Inputs]) -> tuple[Reference, ...]:
    """What the model computes, for exports to be held against when it is no longer in memory.

    Raises:
        ExportError: the model fails at one of the shapes.
    """
    return tuple(
        Reference({name: tensor.cpu().numpy() for name, tensor in trial.items()}, _expected(model, trial))
        for trial in inputs
    )


def compare(model: nn.Module, runner: Runner, inputs: Sequence[Inputs], limit: float) -> list[dict[str, Any]]:
    """`held` for a model that is still in memory."""
    return held(references(model, inputs), runner, limit)


def held(expected: Sequence[Reference], runner: Runner, limit: float) -> list[dict[str, Any]]:
    """Per input: its shape, the largest absolute difference of the logits, and the largest logit to set it against.

    An export with a cache also reads the first input in two steps, the second behind what the first left there. The
    limit rises to RELATIVE of the largest logit where that is more: language models' logits are tens, and float32
    itself is no closer to float64 after thirty layers. Logits that both sides mask, with MASKED or less, are equal.

    Raises:
        ExportError: the export fails at a shape, gives numbers that are not finite, or differs by more than `limit`.
    """
    figures = [_figures(one, runner, expected) for one in expected]
    if getattr(runner, "cached", False):
        figures.append(_figures(expected[0], partial(_in_two_steps, runner), expected) | {"cached": True})
    worst = max(figures, key=lambda figure: figure["max_difference"] / max(limit, RELATIVE * figure["largest_logit"]))
    limit = max(limit, RELATIVE * worst["largest_logit"])
    if worst["max_difference"] > limit:
        listed = "; ".join(f"{_named(figure)}: {figure['max_difference']:.2e}" for figure in figures)
        raise ExportError(
            f"The export differs from the model by {worst['max_difference']:.2e} (largest logit "
            f"{worst['largest_logit']:.2e}), more than the {limit:.0e} allowed; by shape: {listed}. Look for "
            "randomness, branches on values or lengths, or sizes that the export has fixed."
        )
    return figures


def _named(figure: Mapping[str, Any]) -> str:
    return f"{figure['shape']}{' from its cache' if figure.get('cached') else ''}"


def _in_two_steps(runner: Any, inputs: Arrays) -> dict[str, np.ndarray]:
    """The logits (B, T, V) of half the tokens, then of the rest behind the cache that they left."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask", np.ones_like(inputs["input_ids"]))
    half = ids.shape[1] // 2
    first = runner.step({"input_ids": ids[:, :half], "attention_mask": mask[:, :half]})
    cache = {PAST + name.removeprefix(PRESENT): value for name, value in first.items() if name != "logits"}
    second = runner.step({"input_ids": ids[:, half:], "attention_mask": mask} | cache)
    return {"logits": np.concatenate([first["logits"], second["logits"]], axis=1)}


def _figures(reference: Reference, runner: Run, everything: Sequence[Reference]) -> dict[str, Any]:
    expected = reference.logits
    shape = list(next(iter(reference.inputs.values())).shape)
    try:
        found = runner(reference.inputs)["logits"]
    except RuntimeFailure as error:
        fixed = any(_runs(one, runner) for one in everything)
        cause = (
            ", though at another, so probably an axis was fixed to the example's size, or a branch to its length"
            if fixed
            else ""
        )
        raise ExportError(f"The export does not run at the shape {shape}{cause}: {error}") from error
    if found.shape != expected.shape:
        raise ExportError(f"At the shape {shape} the export gives logits {found.shape}, the model {expected.shape}.")
    real = _real(reference.inputs, found)
    if not np.isfinite(expected[real]).all():
        raise ExportError(
            f"At the shape {shape} the model itself gives logits that are not finite, so no export can be held against "
            "them. Look for overflow, and for a training that diverged."
        )
    if not np.isfinite(found[real]).all():
        raise ExportError(f"At the shape {shape} the export gives logits that are not finite.")
    rows = list(zip(found, expected, real, strict=True))  # one at a time: those of a language model are large
    difference = max(float(_apart(ours, theirs)[kept].max(initial=0)) for ours, theirs, kept in rows)
    largest = max(float(np.abs(np.where(_masked(theirs), 0, theirs))[kept].max(initial=0)) for _, theirs, kept in rows)
    return {"shape": shape, "max_difference": difference, "largest_logit": largest}


def _runs(reference: Reference, runner: Run) -> bool:
    try:
        runner(reference.inputs)
    except RuntimeFailure:
        return False
    return True


def _apart(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """|ours - theirs|, none of logits that both mask."""
    return np.where(_masked(theirs) & (ours <= MASKED), 0, np.abs(ours - theirs))


def _masked(logits: np.ndarray) -> np.ndarray:
    """Which of logits (..., C) are masked: not those of a row in which all are so low."""
    return (logits <= MASKED) & (logits.max(-1, keepdims=True) > MASKED)


def _real(trial: Mapping[str, np.ndarray], logits: np.ndarray) -> np.ndarray:
    """Which rows of logits are no padding's: those (B, T) of a token each, or all."""
    mask = trial.get("attention_mask")
    if mask is None or logits.ndim != 3 or logits.shape[:2] != mask.shape:
        return np.ones(logits.shape[: max(1, logits.ndim - 1)], bool)
    return mask.astype(bool)


def _expected(model: nn.Module, trial: Inputs) -> np.ndarray:
    try:
        return logits_of(model(**trial)).float().cpu().numpy()
    except FAILURES as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in trial.items()}
        raise ExportError(
            f"The torch model itself fails at {shapes}, so its axes are not free: {error}. Give an example of the "
            "shapes that it takes."
        ) from error
