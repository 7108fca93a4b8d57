"""What is valid key by key in a recipe and still cannot be meant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from compressor import faults, registry
from compressor.paths import is_factory
from compressor.sections.data import COLUMNS, ONLY_SPLIT, DataSection, ModelSection, Source
from compressor.sections.proof import AUTO_RUNTIME, SHARES, ExportSection
from compressor.tasks.base import QUALITIES

if TYPE_CHECKING:
    from compressor.recipe import Recipe

NO_VALIDATION = "of which there are none: name data.validation, or hold some of train out with data.holdout."


def conflicts(recipe: Recipe) -> Iterator[faults.Fault]:
    """What is valid key by key and still cannot be meant."""
    yield from _leaks(recipe.data)
    yield from _unread(recipe)
    yield from _own_code(recipe.model)
    if recipe.baseline.path and recipe.baseline.train != "none":
        text = (
            "cannot stand beside baseline.path, which names a dense model that is already trained; remove one of them."
        )
        yield ("baseline", "train"), text
    if not recipe.baseline.adapted:
        yield from _unadapted(recipe)
    if recipe.gates and not recipe.export:
        yield ("gates",), "limit what exports do, but `export` is empty; add an export or remove the gates."
    yield from _ungateable(recipe)
    yield from _impossible(recipe)
    yield from _exports(recipe)
    yield from _validated(recipe)
    yield from _unmeasurable(recipe)
    if recipe.plan.budget == "auto":
        yield from _searched(recipe)


def _ungateable(recipe: Recipe) -> Iterator[faults.Fault]:
    """Gates on qualities that the task has not."""
    measured = registry.load("tasks", recipe.model.task).qualities
    for name in sorted(set(QUALITIES) & recipe.gates.keys() - set(measured)):
        text = f"is not measured for the task {recipe.model.task}, which has {' and '.join(measured)}; take it out."
        yield ("gates", name), text


def _impossible(recipe: Recipe) -> Iterator[faults.Fault]:
    """Gates that nothing can hold, or nothing can fail."""
    for name, gate in recipe.gates.items():
        place, value = ("gates", name, "value"), gate.value
        if name in SHARES and gate.type == "threshold" and not 0 <= value <= 1:
            yield place, f"is a share between 0 and 1: a threshold of 90 % is 0.9, not {value:g}."
        elif name in SHARES and not gate.type.startswith("percent-") and abs(value) >= 1:
            yield place, f"is a difference of shares, within -1 and 1: two points are 0.02, not {value:g}."
        elif name in SHARES and gate.type == "percent-max-degradation" and value >= 100:
            yield place, f"lets {value:g} percent of a share be lost, all of it; write less than 100."
        elif name not in SHARES and gate.type == "threshold" and value < 0:
            yield place, f"is {value:g}, and nothing that is measured is less than 0."
        elif name not in SHARES and gate.type == "percent-min-improvement" and value > 100:
            yield place, f"is {value:g} percent less than dense, which nothing can be; write at most 100."


def _unmeasurable(recipe: Recipe) -> Iterator[faults.Fault]:
    """What keeps a plan from measuring the first export."""
    plan = recipe.plan
    asks = ("plan", "strategy") if plan.quantity == "parameters" else ("plan", "budget", plan.quantity)
    if plan.measures and not recipe.export:
        yield asks, "is measured on the first export, but `export` is empty; add an export."
    if not plan.times_layers:
        return
    runtime = recipe.exports[0].runtime if recipe.export else AUTO_RUNTIME
    if not registry.load("exporters", runtime).times_layers():
        able = [name for name in registry.names("exporters") if registry.load("exporters", name).times_layers()]
        text = f"times layers on the runtime of the first export, {runtime}, which cannot time them; put an export of"
        yield asks, f"{text} {' or '.join(able)} first."
    if plan.layout == "pivoted":
        yield ("plan", "layout"), "pivoted layers cannot be timed: use two-factor, or a budget of memory or parameters."
    if recipe.validation.device != "cpu":
        text = "layers are timed on the cpu only: validate there, or use a budget of memory or parameters and another"
        yield ("validate", "device"), f"{text} plan.strategy than measured."


def _unadapted(recipe: Recipe) -> Iterator[faults.Fault]:
    """What is asked of a baseline that has not learned the task; as a default it is simply left out."""
    ways = "which baseline.train: none leaves without the task; train it, name an adapted one with baseline.path, or"
    if recipe.adapt.distill and "distill" in recipe.adapt.model_fields_set:
        yield ("adapt", "distill"), f"is taught by the dense baseline, {ways} write distill: null."
    if recipe.model.start == "adapted" and "start" in recipe.model.model_fields_set:
        yield ("model", "start"), f"compresses the dense baseline, {ways} write start: pretrained."


def _own_code(model: ModelSection) -> Iterator[faults.Fault]:
    """What a factory needs, and what only one can use."""
    if not is_factory(model.path):
        if model.code:
            yield ("model", "code"), f"is where the code of a factory lies, but {model.path} is none; take it out."
        if model.revision and Path(model.path).is_dir():
            yield ("model", "revision"), f"is one of a hub id, but {model.path} is a folder; take it out."
        return
    if model.processor is None:
        text = f"is missing: {model.path} makes the model alone. Name the folder or hub id of its tokenizer or image"
        yield ("model", "processor"), f"{text} processor."
    if model.revision:
        yield ("model", "revision"), f"is one of a hub id, but {model.path} is code; take it out."
    if model.code and not Path(model.code).is_dir():
        yield ("model", "code"), f"'{model.code}' is no folder."


def _validated(recipe: Recipe) -> Iterator[faults.Fault]:
    if recipe.validation.split == "validation" and not _has_validation(recipe.data):
        yield ("validate", "split"), f"is validation, {NO_VALIDATION}"


def _searched(recipe: Recipe) -> Iterator[faults.Fault]:
    """What a search for the smallest budget needs, and what leaves nothing to search."""
    here = ("plan", "budget")
    if not set(QUALITIES) & recipe.gates.keys():
        yield here, f"is auto, but no gate limits {' or '.join(QUALITIES)}, so that the smallest is best: add one."
    if not _has_validation(recipe.data):
        yield here, f"is auto and chosen on validation rows, {NO_VALIDATION}"
    if recipe.validation.split == "validation":
        yield (
            ("validate", "split"),
            "is validation, but plan.budget: auto proves its winner on evaluation; remove it.",
        )
    if recipe.plan.path:
        yield ("plan", "path"), "replays ranks, so plan.budget: auto has nothing to choose; remove one of them."
    if recipe.plan.strategy == "measured":
        yield ("plan", "strategy"), "times layers, but plan.budget: auto looks for a share of the parameters; use gain."


def _has_validation(data: DataSection) -> bool:
    return data.validation is not None or data.holdout > 0


def _leaks(data: DataSection) -> Iterator[faults.Fault]:
    """The same rows on two sides: what is trained on proves nothing, and chooses nothing."""
    place, trained = _place(data.evaluation), _place(data.train)
    others = {"train": data.train, "validation": data.validation, "calibration": data.calibration.source}
    for name, source in others.items():
        if source and _place(source) == place:
            text = f"evaluates on its own training data: the same rows as data.{name}. Name another file or split."
            yield ("data", "evaluation"), text
    if data.validation and _place(data.validation) == trained:
        text = "chooses by the rows that are trained on, data.train. Name another file or split, or take it out: then"
        yield ("data", "validation"), f"{text} data.holdout of train is kept aside."


def _unread(recipe: Recipe) -> Iterator[faults.Fault]:
    """Keys of a source that nothing reads: columns of other tasks, or what a file has not; and texts without pairs."""
    data, task = recipe.data, registry.task(recipe.model.task)
    sources = {"train": data.train, "evaluation": data.evaluation, "validation": data.validation}
    for key, source in {**sources, "calibration.source": data.calibration.source}.items():
        if source is None:
            continue
        here, read = ("data", *key.split(".")), task.columns(source)
        if source.subset and source.file:
            yield (*here, "subset"), f"is one of a hub data set, but {source.file} is a file; take it out."
        if source.split != ONLY_SPLIT and Path(source.path).is_file():
            yield (*here, "split"), f"is one of a folder or hub data set, but {source.path} is a file; take it out."
        for role in COLUMNS:
            if role not in read and getattr(source, role) != Source.model_fields[role].default:
                yield (*here, role), f"is not read for the task {recipe.model.task}; take it out."
        if others := sorted(read.keys() ^ task.columns(data.train).keys()):
            text = f"must be named for all sources or for none, data.train and {'.'.join(here)} alike."
            yield from (((*here, role), text) for role in others)


def _place(source: Source) -> object:
    """What tells one source from another: its file, which has no other split, or path, subset and split."""
    file = source.file
    return file.resolve() if file else (os.path.realpath(source.path), source.subset, source.split)


def _exports(recipe: Recipe) -> Iterator[faults.Fault]:
    seen: set[str] = set()
    for index, export in enumerate(recipe.exports):
        if export.name in seen:
            yield ("export", str(index)), f"{export.name} stands twice; keep one of them."
        seen.add(export.name)
        yield from ((("export", str(index), "precision"), text) for text in misfits(recipe, export))


def misfits(recipe: Recipe, export: ExportSection) -> Iterator[str]:
    """Why an export goes with neither the plan's layout nor the device that it is measured on."""
    if recipe.plan.layout == "pivoted" and export.precision.startswith("int"):
        yield (
            f"{export.precision} does not go with the pivoted layout, which magnifies rounding (int8 agreed with "
            "fp32 on 40 %, two-factor on 99 %); use plan.layout: two-factor, fp16 or fp32."
        )
    device = recipe.validation.device
    devices = registry.exporter(export.runtime, export.precision).devices
    if device not in devices:
        yield (
            f"{export.precision} of {export.runtime} runs on the {' and '.join(devices)} only, but validate.device "
            f"is {device}; name another precision or runtime, or validate on the {devices[0]}."
        )
