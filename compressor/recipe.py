"""The YAML recipe, read strictly: every fault is listed at once, with its line and the nearest known key.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError

from compressor import document, faults, registry, schema
from compressor.errors import InputError, RecipeError
from compressor.paths import is_factory
from compressor.paths import resolve as resolve
from compressor.sections import AdaptSection as AdaptSection
from compressor.sections import BaselineSection as BaselineSection
from compressor.sections import Budget as Budget
from compressor.sections import Calibration as Calibration
from compressor.sections import DataSection as DataSection
from compressor.sections import Distillation as Distillation
from compressor.sections import ExportSection as ExportSection
from compressor.sections import Gate as Gate
from compressor.sections import Method as Method
from compressor.sections import ModelSection as ModelSection
from compressor.sections import PlanSection as PlanSection
from compressor.sections import Quantity as Quantity
from compressor.sections import Section as Section
from compressor.sections import Source as Source
from compressor.sections import Training as Training
from compressor.sections import ValidateSection as ValidateSection
from compressor.sections import default_method
from compressor.tasks.base import QUALITIES

NO_VALIDATION = "of which there are none: name data.validation, or hold some of train out with data.holdout."
AUTO_RUNTIME = "onnx"  # that `export: auto` looks for the best in
MODELS, DATA = "RANKFOLD_MODELS", "RANKFOLD_DATA"
PATHS: dict[tuple[str, ...], str | None] = {
    ("plan", "path"): None,
    ("model", "path"): MODELS,
    ("model", "processor"): MODELS,
    ("baseline", "path"): MODELS,
    ("data", "train", "path"): DATA,
    ("data", "evaluation", "path"): DATA,
    ("data", "validation", "path"): DATA,
    ("data", "calibration", "source", "path"): DATA,
}


class Recipe(Section):
    """The whole recipe; relative paths are resolved by `read`."""

    version: Literal[1] = Field(default=1, description="of the recipe format")
    seed: int = Field(default=0, ge=0, description="of every random choice; the same seed gives the same artifact")
    model: ModelSection
    data: DataSection
    method: Method = Field(default_factory=default_method)
    plan: PlanSection = PlanSection()
    adapt: AdaptSection = AdaptSection()
    baseline: BaselineSection = BaselineSection()
    export: list[ExportSection] | Literal["auto"] = Field(
        default=[ExportSection()],
        description="what is exported, from both models; auto: every ONNX precision that fits, and the best wins",
    )
    validation: ValidateSection = Field(default=ValidateSection(), alias="validate")
    gates: dict[Quantity, Gate] = Field(
        default={}, description="limits on what is measured; every export must hold them"
    )
    _source: str = PrivateAttr("")

    @property
    def exports(self) -> list[ExportSection]:
        """What is exported; of `auto` every precision of ONNX that runs on the device and suits the layout."""
        if self.export != "auto":
            return self.export
        exporter = registry.load("exporters", AUTO_RUNTIME)
        every = [ExportSection(runtime=AUTO_RUNTIME, precision=precision) for precision in exporter.precisions]
        return [one for one in every if not any(_misfits(self, one))]

    @property
    def starts_adapted(self) -> bool:
        """Whether the adapted baseline's weights are compressed, or the pretrained ones."""
        return self.model.start == "adapted" and self.baseline.adapted

    @property
    def distillation(self) -> Distillation | None:
        """What the cores are taught by the baseline; nothing by one that has not learned the task itself."""
        return self.adapt.distill if self.baseline.adapted else None

    @property
    def source(self) -> str:
        """The YAML text as read, overrides appended as comments; empty for a recipe that was not read from a file."""
        return self._source


def read(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; `settings` are overrides of the form `plan.budget.parameters=0.3`.

    Local paths in the result are absolute.

    Raises:
        RecipeError: the file is missing, is no YAML, or has faults; all of them are listed with their lines.
        DependencyError: the method is registered but cannot be imported.
    """
    text = _text(path)
    found = document.parse(text, str(path))
    for setting in settings:
        found.override(setting)
    _check(found)
    unresolved = list(_resolve_all(found, path.parent))
    recipe = Recipe.model_validate(found.data)
    if conflicts := unresolved + list(_conflicts(recipe)):
        raise faults.recipe_error(found, conflicts)
    recipe._source = "".join([text, *(f"\n# --set {setting}" for setting in settings)])
    return recipe


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON-able data with every default written out; `Recipe.model_validate` reads it back."""
    return recipe.model_dump(mode="json", by_alias=True)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the recipe, with one alternative for each registered method."""
    return schema.build(Recipe)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        hint = f"`python -m compressor init {path}` writes one to start from."
        raise RecipeError(f"{path}: there is no such file. {hint}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is no UTF-8 text, so it cannot be a recipe.") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}.") from error


def _check(found: document.Document) -> None:
    shape: list[faults.Fault] = []
    try:
        Recipe.model_validate(found.data)
    except ValidationError as error:
        shape = faults.translate(error.errors(), found.data, json_schema())
    if found.faults or shape:
        raise faults.recipe_error(found, [*found.faults, *shape])


def _resolve_all(found: document.Document, base: Path) -> Iterator[faults.Fault]:
    """Make the paths in the data absolute; those that lead nowhere come back as faults."""
    for location, variable in PATHS.items():
        section: Any = found.data
        *parents, key = location
        for parent in parents:
            section = (section or {}).get(parent)
        if section and section.get(key):
            try:
                section[key] = resolve(section[key], base, variable, code=location == ("model", "path"))
            except InputError as error:
                yield location, str(error)
    if is_factory(found.data["model"]["path"]):
        found.data["model"]["code"] = str(base.joinpath(found.data["model"].get("code") or ".").resolve())


def _conflicts(recipe: Recipe) -> Iterator[faults.Fault]:
    """What is valid key by key and still cannot be meant."""
    yield from _leaks(recipe.data)
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
    yield from _exports(recipe)
    yield from _validated(recipe)
    yield from _unmeasurable(recipe)
    if recipe.plan.budget == "auto":
        yield from _searched(recipe)


def _unmeasurable(recipe: Recipe) -> Iterator[faults.Fault]:
    """What keeps a plan from measuring the first export."""
    plan = recipe.plan
    asks = ("plan", "strategy") if plan.quantity == "parameters" else ("plan", "budget", plan.quantity)
    if plan.measures and not recipe.export:
        yield asks, "is measured on the first export, but `export` is empty; add an export."
    if not plan.times_layers:
        return
    runtime = recipe.exports[0].runtime if recipe.export else AUTO_RUNTIME
    if not hasattr(registry.load("exporters", runtime), "timer"):
        able = [name for name in registry.names("exporters") if hasattr(registry.load("exporters", name), "timer")]
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
    others = {"train": data.train, "validation": data.validation, "calibration": data.calibration.source}
    for name, source in others.items():
        if source and (source.path, source.split) == (data.evaluation.path, data.evaluation.split):
            text = f"evaluates on its own training data: the same path and split as data.{name}. Name another split."
            yield ("data", "evaluation"), text


def _exports(recipe: Recipe) -> Iterator[faults.Fault]:
    seen: set[str] = set()
    for index, export in enumerate(recipe.exports):
        if export.name in seen:
            yield ("export", str(index)), f"{export.name} stands twice; keep one of them."
        seen.add(export.name)
        yield from ((("export", str(index), "precision"), text) for text in _misfits(recipe, export))


def _misfits(recipe: Recipe, export: ExportSection) -> Iterator[str]:
    """Why an export goes with neither the plan's layout nor the device that it is measured on."""
    if recipe.plan.layout == "pivoted" and export.precision.startswith("int"):
        yield (
            f"{export.precision} does not go with the pivoted layout, which magnifies rounding (int8 agreed with "
            "fp32 on 40 %, two-factor on 99 %); use plan.layout: two-factor, fp16 or fp32."
        )
    device = recipe.validation.device
    devices = getattr(registry.exporter(export.runtime, export.precision), "devices", (device,))
    if device not in devices:
        yield (
            f"{export.precision} of {export.runtime} runs on the {' and '.join(devices)} only, but validate.device "
            f"is {device}; name another precision or runtime, or validate on the {devices[0]}."
        )
