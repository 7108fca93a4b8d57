"""What can be named in a recipe: the registered tasks, methods, exporters and checks with their fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from compressor import registry
from compressor.sections.proof import ExportSection, Quantity, ValidateSection

SETTING: Mapping[str, Any] = {"exporters": ExportSection, "checks": ValidateSection}  # by which a recipe does


class Field(NamedTuple):
    """One knob of a registered class that a recipe sets."""

    name: str
    type: str
    default: Any
    description: str


class Entry(NamedTuple):
    """One row of a registry table."""

    name: str
    summary: str  # first line of the docstring
    fields: tuple[Field, ...]
    install: tuple[str, ...] = ()  # commands that bring what it needs and is not here; empty where it can be used
    gates: tuple[str, ...] = ()  # of a check: the quantities that a recipe can limit


def entries(kind: registry.Kind) -> list[Entry]:
    """All rows of a table; imports the modules that they point to.

    Raises:
        DependencyError: one of them cannot be imported.
    """
    return [_entry(kind, name) for name in registry.names(kind)]


def to_dict(entry: Entry) -> dict[str, Any]:
    """JSON-able data."""
    return entry._asdict() | {"fields": [field._asdict() for field in entry.fields]}


def _entry(kind: registry.Kind, name: str) -> Entry:
    cls, section = registry.load(kind, name), SETTING.get(kind)
    summary = (cls.__doc__ or "").strip().partition("\n")[0]
    described = getattr(cls, "__pydantic_fields__", {})
    hints = _hints(cls)
    knobs = [one for one in dataclasses.fields(cls) if one.init]
    fields = [one for one in knobs if section is None or one.name in section.model_fields]
    gates = [quantity for quantity in cls.quantities if quantity in get_args(Quantity)] if kind == "checks" else []
    lacking = registry.missing(cls.packages) if kind == "exporters" else {}
    return Entry(
        name,
        summary,
        tuple(_field(one, described.get(one.name), hints) for one in fields),
        tuple(dict.fromkeys(lacking.values())),
        tuple(gates),
    )


def _hints(cls: Any) -> dict[str, Any]:
    """The types of its fields with their names resolved, as far as they can be at run time."""
    try:
        return get_type_hints(cls)
    except NameError:  # imported for type checkers only
        return {}


def _field(field: dataclasses.Field[Any], described: Any, hints: Mapping[str, Any]) -> Field:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    plain = default if isinstance(default, bool | int | float | str) else None
    annotation = described.annotation if described else hints.get(field.name, field.type)
    return Field(field.name, _type_name(annotation), plain, (described and described.description) or "")


def _type_name(annotation: Any) -> str:
    """As a recipe's author reads it: `plain | input`, `float | null`."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(_type_name, get_args(annotation)))
    if annotation is NoneType:
        return "null"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
