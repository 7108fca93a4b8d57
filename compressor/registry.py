"""Literal tables of tasks, methods, exporters and checks: name -> "module:Class", imported when asked for.

Other distributions add rows through the entry-point groups `rankfold.tasks`, `rankfold.methods`,
`rankfold.exporters` and `rankfold.checks`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compressor.errors import DependencyError, ExportError, InputError, did_you_mean

if TYPE_CHECKING:
    from exporters.base import Exporter

Kind = Literal["tasks", "methods", "exporters", "checks"]

SHARED_NAMES = ("exporters", "validators")  # packages of ours that another distribution may overwrite
REINSTALL = "pip install --force-reinstall --no-deps rankfold"

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
        "ort": "exporters.ort:OrtExporter",
        "openvino": "exporters.openvino:OpenvinoExporter",
        "torch-export": "exporters.torch_export:TorchExporter",
        "executorch": "exporters.executorch:ExecutorchExporter",
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
EXPORTER = "exporters.base:Exporter"  # what every exporter derives from
ALIASES = {"moft": "psoft"}  # MOFT is the first name of PSOFT (arXiv 2505.11235 v1)


def names(kind: Kind) -> dict[str, str]:
    """All rows of one table, those of other distributions included."""
    others = importlib.metadata.entry_points(group=f"rankfold.{kind}")
    return TABLES[kind] | {point.name: point.value for point in others}


def load(kind: Kind, name: str) -> Any:
    """The class behind a name; imports its module.

    Raises:
        InputError: the name is in no table (the nearest one is proposed).
        DependencyError: the module cannot be imported, another distribution's package took our place, or the class is
            no `exporters.base.Exporter`.
    """
    table = names(kind)
    key = ALIASES.get(name, name)
    if key not in table:
        raise InputError(
            f"'{name}' is not one of the {kind}: {', '.join(sorted(table))}.{did_you_mean(name, [*table, *ALIASES])}"
        )
    found = _behind(table[key])
    if kind == "exporters" and not (isinstance(found, type) and issubclass(found, _behind(EXPORTER))):
        raise DependencyError(
            f"{table[key]}, which is registered as the exporter '{key}', does not derive from {EXPORTER}: let it, as "
            "docs/add-an-exporter.md of rankfold shows, or update or uninstall the distribution that brings it."
        )
    return found


def _behind(row: str) -> Any:
    """What "module:attribute" means; imports the module."""
    module_name, _, attribute = row.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise DependencyError(_explain(module_name, error)) from error
    if not hasattr(module, attribute):
        raise DependencyError(
            f"{module_name} has no '{attribute}', which is registered of it: update or reinstall the distribution that "
            "brings it."
        )
    return getattr(module, attribute)


def task(name: str) -> Any:
    """The task of a name, with its default knobs."""
    return load("tasks", name)()


def exporter(name: str, precision: str) -> Exporter:
    """The exporter of a name, for one precision.

    Raises:
        InputError: the name is in no table, or the exporter does not write this precision; it says which ones.
        DependencyError: see `load`.
    """
    try:
        return load("exporters", name)(precision=precision)
    except ExportError as error:
        raise InputError(str(error)) from error


def missing(packages: Mapping[str, str]) -> dict[str, str]:
    """Of packages (import name -> the command that installs it) those that are not installed; imports nothing.

    Of a module inside a package the package is looked for, and named.
    """
    return {name: command for name, command in outer(packages).items() if importlib.util.find_spec(name) is None}


def outer(packages: Mapping[str, str]) -> dict[str, str]:
    """The same by the packages that the modules lie in."""
    return {name.partition(".")[0]: command for name, command in packages.items()}


def imported(packages: Mapping[str, str]) -> list[Any]:
    """The modules of packages (import name -> the command that installs it).

    Raises:
        DependencyError: some are not installed, or cannot be imported.
    """
    require(packages)
    try:
        return [importlib.import_module(name) for name in packages]
    except ImportError as error:
        commands = " and ".join(dict.fromkeys(packages.values()))
        raise DependencyError(f"{', '.join(packages)} cannot be imported: {error}. Reinstall: {commands}.") from error


def require(packages: Mapping[str, str]) -> None:
    """Nothing where all packages (import name -> the command that installs it) are installed.

    Raises:
        DependencyError: some are not.
    """
    lacking = missing(packages)
    if lacking:
        commands = " and ".join(f"`{command}`" for command in dict.fromkeys(lacking.values()))
        verb = "is" if len(lacking) == 1 else "are"
        raise DependencyError(f"{' and '.join(lacking)} {verb} not installed: {commands} adds what is missing.")


def foreign(package: str) -> str | None:
    """Where a package of ours was found if not at its place: `nowhere`, or another distribution's; None where it is."""
    found = importlib.util.find_spec(package)
    origin = found.origin if found else None
    ours = origin is not None and Path(origin).parent == Path(__file__).parent.parent / package
    return None if ours else origin or "nowhere"


def _explain(module_name: str, error: ImportError) -> str:
    package = module_name.partition(".")[0]
    if package in SHARED_NAMES and (place := foreign(package)):
        return (
            f"The package '{package}' found at {place} is not rankfold's: another distribution has overwritten it. "
            f"Reinstall with `{REINSTALL}`."
        )
    return f"{module_name} cannot be imported: {error}. `python -m compressor doctor` lists what is missing."
