"""Faults of a recipe as sentences: where, what was wrong, what is allowed, and the nearest known key."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from compressor import schema
from compressor.document import Document, Location
from compressor.errors import RecipeError, did_you_mean

Fault = tuple[Location, str]
UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument", "invalid_key"}
LONGEST_VALUE = 60  # characters of a wrong value that a message repeats


def recipe_error(document: Document, faults: Iterable[Fault]) -> RecipeError:
    """One error that lists every fault in the order of the file, settings last."""
    placed = [(document.place(location), location, text) for location, text in faults]
    placed.sort(key=lambda fault: (isinstance(fault[0], str), fault[0] if isinstance(fault[0], int) else 0))
    lines = [_line(document.name, *fault) for fault in placed]
    if len(lines) == 1:
        return RecipeError(lines[0])
    return RecipeError("\n  ".join([f"{document.name} has {len(lines)} faults:", *lines]))


def translate(errors: Iterable[Any], data: Any, known: schema.Schema) -> list[Fault]:
    """pydantic's error details as faults; the alternatives of one value become one fault."""
    texts: dict[Location, list[str]] = {}
    tagged: set[Location] = set()  # a union names its alternatives inside the location
    for error in errors:
        location = _location(error, data)
        texts.setdefault(location, []).append(_sentence(error, location, data, known))
        if len(location) < len(error["loc"]):
            tagged.add(location)
    inner = {at for at in tagged for other in texts if other != at and other[: len(at)] == at}  # told further inside
    return [
        (location, "; or ".join(said).replace(".;", ";"))
        for location, said in texts.items()
        if location not in tagged & inner
    ]


def _line(name: str, place: int | str, location: Location, text: str) -> str:
    where = f"{name}:{place}" if isinstance(place, int) else place
    return f"{where}: {'.'.join(location)}: {text}" if location else f"{where}: {text}"


def _location(error: Any, data: Any) -> Location:
    """The keys of pydantic's location that stand in the data, and the missing one at its end."""
    location: list[str] = []
    for key in error["loc"]:
        if _has(data, key):
            data = data[key]
            location.append(str(key))
        elif error["type"] == "missing" and key == error["loc"][-1]:
            location.append(str(key))
    return tuple(location)


def _has(data: Any, key: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(key, int) and key < len(data)
    return isinstance(data, dict) and key in data


def _sentence(error: Any, location: Location, data: Any, known: schema.Schema) -> str:
    kind = error["type"]
    if kind in UNKNOWN or error["loc"][-1:] == ("[key]",):
        return _unknown(location, schema.keys(schema.find(known, location[:-1], data)))
    if kind == "missing":
        meaning = schema.find(known, location, data).get("description", "").rstrip(".")
        return "is missing" + (f": {meaning}." if meaning else ".")
    if kind == "literal_error":
        expected = error["ctx"]["expected"]
        return f"{_shown(error['input'])} is not allowed; allowed is {expected}." + _near(error["input"], expected)
    if kind in ("rankfold", "value_error"):
        return error["msg"].removeprefix("Value error, ")
    if kind in ("model_type", "model_attributes_type", "dataclass_type", "dict_type"):
        return f"must be a section with keys of its own, not {_shown(error['input'])}."
    return f"{error['msg'].replace('Input should', 'must')}, not {_shown(error['input'])}."


def _unknown(location: Location, allowed: list[str]) -> str:
    near = did_you_mean(location[-1], allowed)
    return "unknown key." + (near or f" Allowed: {', '.join(allowed)}.")


def _near(value: Any, expected: str) -> str:
    return did_you_mean(str(value), re.findall(r"'([^']*)'", expected))


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
