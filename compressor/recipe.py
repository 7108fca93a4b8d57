"""The YAML recipe, read strictly: every fault is listed at once, with its line and the nearest known key.

Nothing here imports torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from compressor import document, faults, registry, schema
from compressor.conflicts import conflicts, misfits
from compressor.errors import InputError, RecipeError, did_you_mean
from compressor.paths import DATA, MODELS, is_factory, resolve
from compressor.sections.base import Section as Section
from compressor.sections.data import Calibration as Calibration
from compressor.sections.data import DataSection as DataSection
from compressor.sections.data import ModelSection as ModelSection
from compressor.sections.data import Source as Source
from compressor.sections.method import Method as Method
from compressor.sections.method import default_method
from compressor.sections.plan import Budget as Budget
from compressor.sections.plan import PlanSection as PlanSection
from compressor.sections.proof import AUTO_RUNTIME
from compressor.sections.proof import ExportSection as ExportSection
from compressor.sections.proof import Gate as Gate
from compressor.sections.proof import Quantity as Quantity
from compressor.sections.proof import ValidateSection as ValidateSection
from compressor.sections.training import AdaptSection as AdaptSection
from compressor.sections.training import BaselineSection as BaselineSection
from compressor.sections.training import Distillation as Distillation
from compressor.sections.training import Training as Training

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
LATER = "gates.*, validate.* and where the data lies (data.evaluation.path, ...) can be."


class Recipe(Section):
    """The whole recipe; relative paths are resolved by `read`."""

    version: Literal[1] = Field(default=1, description="of the recipe format")
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="of every random choice; the same seed gives the same artifact"
    )
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

    @property
    def exports(self) -> list[ExportSection]:
        """What is exported; of `auto` every precision of ONNX that runs on the device and suits the layout."""
        if self.export != "auto":
            return self.export
        exporter = registry.load("exporters", AUTO_RUNTIME)
        every = [ExportSection(runtime=AUTO_RUNTIME, precision=precision) for precision in exporter.precisions]
        return [one for one in every if not any(misfits(self, one))]

    @property
    def starts_adapted(self) -> bool:
        """Whether the adapted baseline's weights are compressed, or the pretrained ones."""
        return self.model.start == "adapted" and self.baseline.adapted

    @property
    def distillation(self) -> Distillation | None:
        """What the cores are taught by the baseline; nothing by one that has not learned the task itself."""
        return self.adapt.distill if self.baseline.adapted else None


def read(path: Path | str, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; `settings` are overrides of the form `plan.budget.parameters=0.3`.

    Local paths in the result are absolute.

    Raises:
        RecipeError: the file is missing, is no YAML, or has faults; all of them are listed with their lines.
        DependencyError: the method is registered but cannot be imported.
    """
    path = Path(path)
    text = _text(path)
    found = document.parse(text, str(path))
    for setting in settings:
        found.override(setting)
    return _checked(found, path.parent, PATHS)


def judged_by(made: Mapping[str, Any], settings: Sequence[str], folder: Path) -> Recipe:
    """The recipe that an artifact was made by, dumped, with other gates, other measuring or data that lies elsewhere.

    Relative paths in the `settings` are taken from the current folder.

    Raises:
        RecipeError: a setting is of what the artifact was made with, or has faults; all of them are listed.
    """
    if not settings:
        return Recipe.model_validate(made)  # which was checked when the run was begun, on the machine where it was
    found = document.Document(str(folder), copy.deepcopy(dict(made)), {})
    asked = [tuple(setting.partition("=")[0].strip().split(".")) for setting in settings]
    found.faults += [(key, f"cannot be changed in what is made already; {LATER}") for key in asked if not _later(key)]
    for setting in settings:
        found.override(setting)
    return _checked(found, Path.cwd(), [key for key in PATHS if key in asked])


def _later(key: tuple[str, ...]) -> bool:
    return key[0] in ("gates", "validate") or (key[0] == "data" and key in PATHS)


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
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, beside) or f" `python -m compressor init {path}` writes one to start from."
        raise RecipeError(f"{path}: there is no such file.{hint}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is no UTF-8 text, so it cannot be a recipe.") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}.") from error


def _checked(found: document.Document, base: Path, locations: Iterable[document.Location]) -> Recipe:
    """The recipe in a document, its paths at these locations made absolute; raises RecipeError with all its faults."""
    _check(found)
    unresolved = list(_resolve_all(found, base, locations))
    recipe = Recipe.model_validate(found.data)
    if contradictions := unresolved + list(conflicts(recipe)):
        raise faults.recipe_error(found, contradictions)
    return recipe


def _check(found: document.Document) -> None:
    shape: list[faults.Fault] = []
    try:
        Recipe.model_validate(found.data)
    except ValidationError as error:
        shape = faults.translate(error.errors(), found.data, json_schema())
    if found.faults or shape:
        raise faults.recipe_error(found, [*found.faults, *shape])


def _resolve_all(
    found: document.Document, base: Path, locations: Iterable[document.Location]
) -> Iterator[faults.Fault]:
    """Make the paths in the data absolute; those that lead nowhere come back as faults."""
    for location in locations:
        section: Any = found.data
        *parents, key = location
        for parent in parents:
            section = (section or {}).get(parent)
        if section and section.get(key) is not None:
            try:
                section[key] = resolve(section[key], base, PATHS[location], code=location == ("model", "path"))
            except InputError as error:
                yield location, str(error)
    if is_factory(found.data["model"]["path"]):
        found.data["model"]["code"] = str(base.joinpath(found.data["model"].get("code") or ".").resolve())
