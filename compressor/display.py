"""Results as plain text for stdout: aligned columns that stay whole in a pipe."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.bisection import TRIALS
from compressor.paths import is_factory

if TYPE_CHECKING:
    from compressor.catalog import Entry
    from compressor.doctor import Diagnosis
    from compressor.planning import Plan
    from compressor.recipe import BaselineSection, PlanSection, Recipe
    from compressor.targets import Considered

STAGE_HEADER = ("stage", "what", "path")
MARKS = {"ok": "ok", "note": "note", "warning": "WARNING", "broken": "BROKEN"}


def columns(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers are aligned on the right, text on the left."""
    table = [[_cell(value) for value in row] for row in rows]
    numeric = [all(isinstance(value, int | float | None) for value in column) for column in zip(*rows, strict=True)]
    widths = [max(map(len, column)) for column in zip(header, *table, strict=True)]
    lines = []
    for row in [list(header), *table]:
        cells = zip(row, widths, numeric or [False] * len(widths), strict=True)
        lines.append("  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells))
    return "\n".join(line.rstrip() for line in lines)


def to_json(data: Any) -> str:
    """One JSON object."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False, default=str)


def plan_table(plan: Plan) -> str:
    """Ranks of all targets, and what they come to."""
    header = ("target", "out", "in", "rank", "break-even", "parameters", "energy")
    rows = [
        (row.name, row.out_features, row.in_features, row.rank or "dense", row.break_even, row.parameters, row.energy)
        for row in plan.layers
    ]
    share = plan.parameters / plan.dense_parameters
    total = f"{plan.strategy}: {plan.parameters:,} of {plan.dense_parameters:,} parameters ({share:.1%})"
    return f"{columns(header, rows)}\n\n{total}, {_budget(plan)}"


def _budget(plan: Plan) -> str:
    if plan.quantity == "parameters":
        return f"budget {plan.budget:.1%}"
    figures = {"predicted": plan.predicted, "measured untrained": plan.measured}
    known = "".join(f", {value:.1%} {name}" for name, value in figures.items() if value is not None)
    return f"budget {plan.budget:.1%} of dense fp32's {plan.quantity}{known}"


def layer_table(layers: Sequence[Considered]) -> str:
    """Every linear layer of a model: its shape, and whether it is a target or why not."""
    rows = [
        (one.name, one.out_features, one.in_features, one.parameters, one.break_even, _mark(one), one.reason)
        for one in layers
    ]
    table = columns(("layer", "out", "in", "parameters", "break-even", "target", "why"), rows)
    targets = [one for one in layers if one.target]
    total = sum(one.parameters for one in targets)
    return f"{table}\n\n{len(targets)} of {len(layers)} linear layers are targets, {total:,} parameters"


def _mark(layer: Considered) -> str:
    return "yes" if layer.target else "no"


def diagnosis_list(found: Sequence[Diagnosis]) -> str:
    """What doctor found, each with what to do."""
    width = max(len(one.topic) for one in found)
    lines = []
    for one in found:
        lines.append(f"{MARKS[one.status]:8}{one.topic:{width}}  {one.text}")
        lines += [f"{'':{8 + width}}  -> {one.remedy}"] if one.remedy else []
    return "\n".join(lines)


def catalog_list(found: Sequence[Entry]) -> str:
    """Registered names, each with its summary, its gates and its fields."""
    lines = []
    for entry in found:
        lines.append(f"{entry.name}: {entry.summary}")
        lines += [f"  not installed here: {command}" for command in entry.install]
        lines += [f"  gates: {', '.join(entry.gates)}"] if entry.gates else []
        lines += [
            f"  {one.name}: {one.type} = {_plain(one.default)}  {one.description}".rstrip() for one in entry.fields
        ]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """As a recipe writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def dry_run(recipe: Recipe, out: Path | None) -> dict[str, Any]:
    """The resolved recipe and the stages, as JSON-able data."""
    from compressor.recipe import dump

    steps = [dict(zip(STAGE_HEADER, row, strict=True)) for row in stages(recipe, out)]
    return {"recipe": dump(recipe), "stages": steps}


def dry_run_text(recipe: Recipe, out: Path | None) -> str:
    """The resolved recipe as YAML, and a table of the stages."""
    import yaml

    from compressor.recipe import dump

    return f"{yaml.safe_dump(dump(recipe), sort_keys=False)}\n{columns(STAGE_HEADER, stages(recipe, out))}"


def stages(recipe: Recipe, out: Path | None) -> list[tuple[str, str, str]]:
    """What a run of this recipe does: stage, what happens, and where its result goes."""
    run, base, plan = out or Path("DIR"), recipe.baseline, recipe.plan
    ranks = f"replay {plan.path}" if plan.path else f"{plan.strategy}, keep {_kept(plan)}"
    exports = [("export", f"{one.runtime} {one.precision}", str(run / "exports" / one.name)) for one in recipe.exports]
    return [
        ("read", _kind(recipe.model.path), recipe.model.path),
        *(("read", _kind(path), path) for path in dict.fromkeys((recipe.data.train.path, recipe.data.evaluation.path))),
        ("probe", "train the head alone", str(run / "head.safetensors")),
        ("baseline", _dense(base), str(run / "baseline")),
        ("calibrate", _sample(recipe), str(run / "statistics")),
        *_search(recipe, run),
        ("plan", ranks, str(run / "plan.json")),
        *_correction(recipe, run),
        ("adapt", f"{type(recipe.method).__name__}, {recipe.adapt.epochs:g} epochs", str(run / "history.json")),
        ("fold", plan.layout, str(run / "model.safetensors")),
        *exports,
        ("validate", f"{len(recipe.gates)} gates on {recipe.validation.device}", str(run / "report.json")),
    ]


def _correction(recipe: Recipe, run: Path) -> list[tuple[str, str, str]]:
    if not recipe.adapt.correct:
        return []
    return [("correct", f"{recipe.data.calibration.samples} examples, in order", str(run / "corrected.safetensors"))]


def _kept(plan: PlanSection) -> str:
    return "what the search chose" if plan.budget == "auto" else f"{plan.share:.1%} of the {plan.quantity}"


def _search(recipe: Recipe, run: Path) -> list[tuple[str, str, str]]:
    """What comes before the plan where the budget is searched."""
    if recipe.plan.budget != "auto":
        return []
    what = f"at most {TRIALS} budgets, each from its plan to its exports, measured on the validation rows"
    return [("search", what, str(run / "trials"))]


def _sample(recipe: Recipe) -> str:
    return f"{recipe.data.calibration.samples} examples, {'adapted' if recipe.starts_adapted else 'pretrained'} weights"


def _dense(baseline: BaselineSection) -> str:
    if baseline.path:
        return f"take {baseline.path}"
    return f"train it, {baseline.epochs:g} epochs" if baseline.train == "full" else "take the checkpoint as it is"


def _kind(path: str) -> str:
    if is_factory(path):
        return "your own code"
    return "local" if Path(path).is_absolute() else "from the hub"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
