"""Does a trial of a search gain from the cores that a neighboring trial has trained? Compares it with a fresh start.

    python benchmarks/warm_start.py SEARCH FROM TO [TO...]      a search's folder, a finished trial, and others

Bases of two budgets differ by prefix only, so what training did to the first trial's weight, W - W0, is carried over by
projecting it onto the other's bases: core += left^T (W - W0) right^T. Layers that are dense in either plan start fresh,
trained heads are copied. Prints one JSON object for each: accuracy on the validation rows before and after training.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from compressor import adapt, data, targets, tensors
from compressor.cores import FreeCore
from compressor.files import read_json
from compressor.layers import CoreLinear
from compressor.line import Line
from compressor.machine import versions
from compressor.recipe import Recipe
from compressor.run_folder import STATE, Run


def line_of(folder: Path) -> Line:
    """The line of a run folder that is there."""
    settings = read_json(folder / STATE)["recipe"]
    return Line(Recipe.model_validate(settings), Run(folder, settings, resume=True))


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Of every layer with a core, the matrix (m, n) that it applies."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, CoreLinear):
            down, up = layer.factors()
            found[name] = up @ down
    return found


@torch.no_grad()
def warm_(model: Any, changes: dict[str, torch.Tensor], head: dict[str, torch.Tensor]) -> None:
    """Carry over what training changed elsewhere."""
    for name, layer in model.named_modules():
        if isinstance(layer, CoreLinear) and isinstance(layer.core, FreeCore) and name in changes:
            assert layer.core.block is not None
            projected = layer.left.double().mT @ changes[name] @ layer.right.double().mT
            layer.core.block += projected[: layer.core.free, : layer.core.free].float()
    for name, parameter in targets.head_parameters(model).items():
        parameter.copy_(head[name])


def accuracy(line: Line, model: Any) -> float:
    """Share of the validation rows that are right."""
    batches = data.posed(line.sources.data.validation, line.sources.task, line.sources.processor)
    found = data.outcomes(model, line.sources.task, batches)
    return round(float((found.predictions == found.labels).mean()), 5)


def train(line: Line, model: Any) -> None:
    """As the line does."""
    recipe = line.recipe
    with tempfile.TemporaryDirectory() as scratch:
        adapt.adapt_(
            model,
            line.sources.task,
            line.sources.processor,
            line.sources.data.train,
            line.sources.data.validation,
            recipe.adapt,
            folder=Path(scratch) / "checkpoints",
            seed=recipe.seed,
            teacher=line.sources.models.adapted if recipe.distillation else None,
            distillation=recipe.distillation,
        )


def main() -> None:
    """Fresh and warm, before and after training."""
    search, start, *others = sys.argv[1:]
    first = line_of(Path(search) / "trials" / start)
    model = first.factorized()
    before = weights(model)
    tensors.load_tensors_(model, first.folder / "cores.safetensors")
    changes = {name: weight - before[name] for name, weight in weights(model).items()}
    head = {name: parameter.detach().clone() for name, parameter in targets.head_parameters(model).items()}
    for budget in others:
        line = line_of(Path(search) / "trials" / budget)
        line.sources, line.__dict__["subspaces"] = first.sources, first.subspaces
        row: dict[str, Any] = {"from": float(start), "budget": float(budget)}
        for name in ("fresh", "warm"):
            model = line.factorized()
            if name == "warm":
                warm_(model, changes, head)
            row[f"{name}_untrained"] = accuracy(line, model)
            train(line, model)
            row[name] = accuracy(line, model)
        print(json.dumps(row | {"versions": versions()}), flush=True)


if __name__ == "__main__":
    main()
