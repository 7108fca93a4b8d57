"""Literal tables of tasks, methods, exporters and checks: name -> "module:Class", imported when asked for.

Other distributions add rows through the entry-point groups `rankfold.tasks`, `rankfold.methods`,
`rankfold.exporters` and `rankfold.checks`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any, Literal

from compressor.errors import DependencyError, InputError, did_you_mean

Kind = Literal["tasks", "methods", "exporters", "checks"]

TABLES: dict[Kind, dict[str, str]] = {
    "tasks": {
        "text-classification": "compressor.tasks.text_classification:TextClassification",
        "image-classification": "compressor.tasks.image_classification:ImageClassification",
        "text-generation": "compressor.tasks.text_generation:TextGeneration",
        "multiple-choice": "compressor.tasks.multiple_choice:MultipleChoice",
    },
    "methods": {
        "jactus": "compressor.methods.jactus:Jactus",
        "spectral": "compressor.methods.spectral:Spectral",
        "cersa": "compressor.methods.cersa:Cersa",
        "psoft": "compressor.methods.psoft:Psoft",
    },
    "exporters": {
        "onnx": "exporters.onnx:OnnxExporter",
    },
    "checks": {
        "parity": "validators.parity:Parity",
        "accuracy": "validators.accuracy:Accuracy",
        "perplexity": "validators.perplexity:Perplexity",
        "memory": "validators.memory:Memory",
        "latency": "validators.latency:Latency",
        "size": "validators.size:Size",
    },
}
ALIASES = {"moft": "psoft"}  # MOFT is the first name of PSOFT (arXiv 2505.11235 v1)


def names(kind: Kind) -> dict[str, str]:
    """All rows of one table, those of other distributions included."""
    others = importlib.metadata.entry_points(group=f"rankfold.{kind}")
    return TABLES[kind] | {point.name: point.value for point in others}


def load(kind: Kind, name: str) -> Any:
    """The class behind a name; imports its module.

    Raises:
        InputError: the name is in no table (the nearest one is proposed).
        DependencyError: the module cannot be imported, or another distribution's package took our place.
    """
    table = names(kind)
    key = ALIASES.get(name, name)
    if key not in table:
        raise InputError(
            f"'{name}' is not one of the {kind}: {', '.join(sorted(table))}.{did_you_mean(name, [*table, *ALIASES])}"
        )
    module_name, _, attribute = table[key].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise DependencyError(_explain(module_name, error)) from error
    return getattr(module, attribute)


def task(name: str) -> Any:
    """The task of a name, with its default knobs."""
    return load("tasks", name)()


def _explain(module_name: str, error: ImportError) -> str:
    package = module_name.partition(".")[0]
    ours = Path(__file__).parent.parent / package
    found = importlib.util.find_spec(package)
    if package in {"exporters", "validators"} and (found is None or str(ours) not in (found.origin or "")):
        return (
            f"The package '{package}' found at {found.origin if found else 'nowhere'} is not rankfold's: another "
            "distribution has overwritten it. Reinstall with `pip install --force-reinstall --no-deps rankfold`."
        )
    return f"{module_name} cannot be imported: {error}. `python -m compressor doctor` lists what is missing."
