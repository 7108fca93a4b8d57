"""Any export as a subject, without a recipe: folders that rankfold wrote, and ONNX files that others did."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor import registry
from compressor.errors import InputError, first_line
from exporters import record
from exporters.base import Arrays, Session
from exporters.onnx.runtime import GRAPH
from exporters.record import EXPORT_FILE
from validators.base import NO_OUTCOMES, Evaluation, Subject

TOKENS = 100  # that inputs are drawn from where no config says how many a model knows


@dataclass(frozen=True)
class Entrant:
    """One export; `facts` is its `export.json`."""

    name: str
    folder: Path
    facts: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        """How many tokens the model knows, as the config beside it says.

        Raises:
            InputError: the config cannot be read.
        """
        file = self.folder / "config.json"
        try:
            config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            return int(config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size") or TOKENS)
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"The config.json beside {self.name} cannot be read ({error!r}).") from error

    def subject(self, inputs: Arrays, session: Session) -> Subject:
        """What checks measure; they ask for no outcome, so any task will do."""
        evaluation = Evaluation(registry.task("text-classification"), (inputs,), shaped=True)
        return Subject(self.name, self.facts["runtime"], self.folder, evaluation, session, NO_OUTCOMES)


def names(paths: Sequence[Path]) -> list[str]:
    """What each is called: its path below the folder that they have in common."""
    whole = [path.absolute() for path in paths]
    common = Path(os.path.commonpath([path.parent for path in whole]))
    return [str(path.relative_to(common)) for path in whole]


def entrant(name: str, path: Path, scratch: Path) -> Entrant:
    """The export in a folder, or an ONNX file of anybody's, which is laid into `scratch` as an export.

    Raises:
        InputError: there is no such path, no export and no single ONNX file in it, or the file cannot be read.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: name a folder with an export, or an ONNX file.")
    folder = path if path.is_dir() else path.parent
    facts = _told(folder)
    if facts and (path.is_dir() or path.name in facts["model_files"]):
        return Entrant(name, folder, facts)
    return _foreign(name, _graph(path), scratch)


def _told(folder: Path) -> dict[str, Any]:
    if not (folder / EXPORT_FILE).is_file():
        return {}
    try:
        told = record.read(folder)
        registry.load("exporters", told.runtime)
    except InputError as error:
        raise InputError(f"{error} Or name an ONNX file itself.") from error
    return {**told.facts, "model_files": list(told.model_files), "inputs": list(told.inputs)}


def _graph(path: Path) -> Path:
    """The ONNX file that a path means."""
    if path.is_file():
        if path.suffix != ".onnx":
            raise InputError(f"{path} is no ONNX file: name one that ends in .onnx, or a folder with {EXPORT_FILE}.")
        return path
    files = sorted(path.glob("*.onnx"))
    if len(files) != 1:
        there = f"it holds {', '.join(file.name for file in files)}: name one of them" if files else "it holds none"
        raise InputError(f"{path} has no {EXPORT_FILE}, so it must hold one ONNX file; {there}.")
    return files[0]


def _foreign(name: str, file: Path, scratch: Path) -> Entrant:
    """Somebody's graph and the files of its weights in a new folder under the names that an export has."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    from exporters.onnx import file as onnx_file

    try:
        tensors = onnx.load(file, load_external_data=False).graph.initializer
        facts = onnx_file.read(file)
    except Exception as error:  # protobuf raises kinds of its own; each becomes a sentence
        raise InputError(f"{file} cannot be read as ONNX: {first_line(error)}") from error
    data = sorted({ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)})
    _require_beside(file, data)
    folder = scratch / str(len(list(scratch.iterdir())))
    folder.mkdir()
    facts |= {"runtime": "onnx", "precision": "", "model_files": [GRAPH, *data]}
    (folder / EXPORT_FILE).write_text(json.dumps(facts))
    for source, place in ((file, GRAPH), *((file.parent / other, other) for other in data)):
        _lay(source, folder / place)
    if (file.parent / "config.json").is_file():
        _lay(file.parent / "config.json", folder / "config.json")
    return Entrant(name, folder, facts)


def _require_beside(file: Path, names: Sequence[str]) -> None:
    """Weights lie beside the graph or below it: a name may not lead to where others are overwritten or read."""
    odd = [
        name for name in names if "\\" in name or ":" in name or Path(name).is_absolute() or ".." in Path(name).parts
    ]
    if odd:
        raise InputError(
            f"{file} names {', '.join(map(repr, odd))} for its weights, which is no file beside it: refused. Get the "
            "model from whom you trust."
        )


def _lay(source: Path, place: Path) -> None:
    """The same file under another name; copied where it lies on another disk. Nothing is overwritten.

    Raises:
        InputError: weights are not where the graph says, or have a name that something else has.
    """
    if not source.is_file():
        raise InputError(f"{source} does not exist, although the graph beside it names it for its weights.")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), place)
    except FileExistsError as error:
        raise InputError(f"{source} cannot be weights: a graph's folder has a {place.name} of another kind.") from error
    except OSError:
        with source.open("rb") as given, place.open("xb") as copy:
            shutil.copyfileobj(given, copy)
