"""The recipe's JSON Schema, with one alternative for each method and exporter, and the table of keys made from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pydantic

from compressor import registry

Schema = dict[str, Any]
DEFAULT_METHOD = "jactus"


class Row(NamedTuple):
    """One key of the recipe, as the documentation shows it."""

    key: str
    allowed: str
    default: str
    description: str


def build(model: type[pydantic.BaseModel]) -> Schema:
    """JSON Schema (draft 2020-12) of a recipe model, methods and runtimes of other distributions included.

    Raises:
        DependencyError: a registered method cannot be imported.
    """
    schema = model.model_json_schema(by_alias=True)
    alternatives = [_method(name, schema["$defs"]) for name in registry.names("methods")]
    schema["$defs"]["Method"] = {"oneOf": alternatives, "description": "One of the methods, with its own keys."}
    schema["properties"]["method"] = {"$ref": "#/$defs/Method", "default": {"name": DEFAULT_METHOD}}
    schema["$defs"]["ExportSection"]["properties"]["runtime"]["enum"] = sorted(registry.names("exporters"))
    schema["$defs"]["ModelSection"]["properties"]["task"]["enum"] = sorted(registry.names("tasks"))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def find(schema: Schema, location: tuple[str, ...], data: Any) -> Schema:
    """The part of a schema that describes a location of the data; empty where nothing does."""
    node = _resolved(schema, schema, data)
    for key in location:
        data = _child(data, key)
        inner = node.get("properties", {}).get(key) or node.get("items") or node.get("additionalProperties") or {}
        node = _resolved(schema, inner, data) if isinstance(inner, dict) else {}
    return node


def keys(node: Schema) -> list[str]:
    """The keys that a mapping of this schema may have."""
    return [*node.get("properties", {}), *node.get("propertyNames", {}).get("enum", [])]


def rows(schema: Schema) -> list[Row]:
    """Every key of the recipe with its allowed values, default and description, in order."""
    return list(_rows(schema, schema, "", {}))


def markdown(schema: Schema) -> str:
    """The rows as one Markdown table."""
    lines = [f"| `{row.key}` | {row.allowed} | {row.default} | {row.description} |" for row in rows(schema)]
    return "\n".join(["| key | allowed | default | meaning |", "|---|---|---|---|", *lines]) + "\n"


def _method(name: str, definitions: dict[str, Schema]) -> Schema:
    cls = registry.load("methods", name)
    schema = pydantic.TypeAdapter(cls).json_schema(ref_template="#/$defs/{model}")
    definitions |= schema.pop("$defs", {})
    constant: Schema = {"const": name, "description": _first_line(cls.__doc__)}
    required = [] if name == DEFAULT_METHOD else ["name"]
    schema["properties"] = {"name": constant} | schema.get("properties", {})
    return schema | {"required": [*required, *schema.get("required", [])], "description": _first_line(cls.__doc__)}


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _resolved(schema: Schema, node: Schema, data: Any) -> Schema:
    """References followed, and of several alternatives the one that the data names (or the first section).

    What a key says of itself stays.
    """
    own = {key: node[key] for key in ("description",) if key in node}
    if "$ref" in node:
        return _resolved(schema, schema["$defs"][node["$ref"].rpartition("/")[2]], data) | own
    if "oneOf" in node:
        name = _child(data, "name") or DEFAULT_METHOD
        wanted = registry.ALIASES.get(str(name), name)
        return next((one for one in node["oneOf"] if one["properties"]["name"]["const"] == wanted), {})
    sections = [one for one in node.get("anyOf", []) if "$ref" in one or "items" in one]
    return _resolved(schema, sections[0], data) | own if sections else node


def _child(data: Any, key: str) -> Any:
    if isinstance(data, list) and key.isdecimal() and int(key) < len(data):
        return data[int(key)]
    return data.get(key) if isinstance(data, dict) else None


def _rows(schema: Schema, node: Schema, prefix: str, seen: dict[str, str]) -> Iterator[Row]:
    for key, value in node.get("properties", {}).items():
        path = prefix + key
        section, suffix = _section(schema, value)
        default = "required" if key in node.get("required", []) else _default(value)
        if section is None:
            yield Row(path, _allowed(value), default, _text(value))
        elif "oneOf" in section:
            yield from _alternatives(schema, section["oneOf"], path)
        elif section["title"] in seen:
            yield Row(path, f"keys as of `{seen[section['title']]}`", default, _text(value))
        else:
            seen[section["title"]] = path
            yield Row(path + suffix, _allowed(value), default if default == "required" else "", _text(section | value))
            yield from _rows(schema, section, f"{path}{suffix}.", seen)


def _alternatives(schema: Schema, alternatives: list[Schema], path: str) -> Iterator[Row]:
    for one in alternatives:
        name = one["properties"]["name"]["const"]
        yield Row(f"{path}.name", f"`{name}`", "default" if name == DEFAULT_METHOD else "", one["description"])
        fields = {key: value for key, value in one["properties"].items() if key != "name"}
        for row in _rows(schema, {"properties": fields}, f"{path}.", {}):
            yield row._replace(description=f"{name}: {row.description}")


def _section(schema: Schema, value: Schema) -> tuple[Schema | None, str]:
    """The section behind a key, and how its path goes on: items of a list, entries of a mapping."""
    for option in [value, *value.get("anyOf", [])]:
        for inner, suffix in (
            (option, ""),
            (option.get("items"), "[]"),
            (option.get("additionalProperties"), ".<name>"),
        ):
            if isinstance(inner, dict) and "$ref" in inner:
                return schema["$defs"][inner["$ref"].rpartition("/")[2]], suffix
    return None, ""


TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true, false", "null": "null"}
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _allowed(value: Schema) -> str:
    names = (
        value.get("enum") or value.get("propertyNames", {}).get("enum") or [value[k] for k in ("const",) if k in value]
    )
    if names:
        return ", ".join(f"`{name}`" for name in names)
    if "anyOf" in value:
        return " or ".join(_allowed(option) for option in value["anyOf"])
    if value.get("type") == "array":
        return f"list of {_allowed(value['items'])}" if "$ref" not in value["items"] else "list"
    bounds = " and ".join(f"{sign} {value[key]:.10g}" for key, sign in BOUNDS.items() if key in value)
    return f"{TYPES.get(value.get('type', ''), 'section')} {bounds}".strip()


def _default(value: Schema) -> str:
    return "" if value.get("default") is None else f"`{json.dumps(value['default'])}`"


def _text(value: Schema) -> str:
    return value.get("description", "").partition("\n")[0]
