"""What a report was measured on, from the artifact's own records; docs/report.md lists the keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compressor import adapt
from compressor.artifact import SEARCH, Artifact, files_of
from compressor.files import file_digest, read_json
from compressor.machine import machine, versions
from compressor.planning import Plan, PlanLayer
from compressor.recipe import Recipe, dump
from compressor.run_folder import STATE
from validators.process_memory import used

KEPT = "the rank it asks for costs as much as"  # the dense layer, where the plan keeps that


def context(artifact: Artifact, recipe: Recipe, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured on what: docs/report.md lists the keys. `measured` is said of the rows behind the qualities."""
    manifest, path = artifact.manifest, artifact.path
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    architectures = config.get("architectures") or [config.get("model_type", "")]
    settings = dump(recipe)
    return {
        "model": {
            "path": recipe.model.path,
            "class": (manifest.get("factory") or {}).get("class") or ", ".join(architectures),
            "digest": manifest["base_digest"],
            "task": manifest["task"],
            "parameters": manifest["parameters"],
            "trust_remote_code": manifest["trust_remote_code"],
        },
        "method": settings["method"],
        "plan": {**settings["plan"], **_budget(artifact.plan)},
        "layers": [_layer(layer, artifact.plan.strategy) for layer in artifact.plan.layers],
        "linear_layers": read_json(path / "layers.json") if (path / "layers.json").is_file() else [],
        "spectra": read_json(path / "spectra.json"),
        "history": adapt.load_history(path / "history.json"),
        "baseline_history": adapt.load_history(path / "baseline" / "history.json"),
        "data": {**manifest["data"], "evaluation": measured},
        "files": exported(path),
        "machine": machine() | used(recipe.validation.device, recipe.validation.threads),
        "versions": versions(),
        "seed": recipe.seed,
        "seconds": {name: found["seconds"] for name, found in read_json(path / STATE)["stages"].items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": settings,
        "judged_otherwise": list(_otherwise(manifest["recipe"], settings)),
        **({"search": read_json(path / SEARCH)} if (path / SEARCH).is_file() else {}),
    }


def _otherwise(made: Mapping[str, Any], judged: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the gates and of the measuring that are not those that the run was made with."""
    for section in ("gates", "validate"):
        mine, theirs = judged.get(section, {}), made.get(section, {})
        yield from (f"{section}.{key}" for key in {**theirs, **mine} if mine.get(key) != theirs.get(key))


def exported(folder: Path) -> dict[str, str]:
    """The digests of all files of all exports."""
    return {name: file_digest(folder / name) for name in files_of(folder) if _exported(name)}


def _budget(plan: Plan) -> dict[str, Any]:
    if plan.quantity == "parameters":
        return {"budget": plan.budget}
    figures = {"predicted": plan.predicted, "measured_untrained": plan.measured}
    return {"budget": {plan.quantity: plan.budget}} | {name: value for name, value in figures.items() if value}


def _exported(name: str) -> bool:
    """Whether a file belongs to an export: under exports/, or in a folder beside the dense baseline."""
    return name.startswith("exports/") or (name.startswith("baseline/") and name.count("/") > 1)


def _layer(layer: PlanLayer, strategy: str) -> dict[str, Any]:
    kept = layer.rank is None
    reason = "factors of the rank it asks for take as long as" if strategy == "measured" else KEPT
    return {
        "name": layer.name,
        "out_features": layer.out_features,
        "in_features": layer.in_features,
        "rank": layer.rank,
        "break_even": layer.break_even,
        "parameters": layer.parameters,
        "energy": layer.energy,
        "kept": kept,
        "reason": f"{reason} the dense layer" if kept else "",
    }
