"""A YAML document that remembers where each value stands, with `--set` overrides laid over it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from compressor.errors import RecipeError

Location = tuple[str, ...]  # keys and list indices as text: ("export", "0", "runtime")
MOST_VALUES = 5_000  # anchors can make a small file expand without end


@dataclass
class Document:
    """The data of a file, the place of each value (a line or a setting), and the faults found on the way."""

    name: str
    data: dict[str, Any]
    places: dict[Location, int | str]
    faults: list[tuple[Location, str]] = field(default_factory=list)

    def place(self, location: Location) -> int | str:
        """Line or setting of the value at a location, or of the nearest section around it."""
        while location and location not in self.places:
            location = location[:-1]
        return self.places.get(location, 1)

    def override(self, setting: str) -> None:
        """Lay `a.b.0.c=value` over the data; a setting that cannot be laid becomes a fault."""
        path, equals, text = setting.partition("=")
        location = tuple(path.strip().split("."))
        self.places = {known: place for known, place in self.places.items() if known[: len(location)] != location}
        self.places[location] = f"--set {setting}"
        for end in range(1, len(location)):
            self.places.setdefault(location[:end], f"--set {setting}")  # sections that the setting makes
        try:
            if not equals or not all(location):
                raise ValueError("must have the form key.key=value, such as plan.budget.parameters=0.3")
            _put(self.data, location, yaml.safe_load(text))
        except (ValueError, yaml.YAMLError) as error:
            self.faults.append((location, str(error).partition("\n")[0]))


def parse(text: str, name: str) -> Document:
    """Read YAML text whose top level is a mapping; `name` stands before the line numbers.

    Raises:
        RecipeError: no YAML, no mapping, or more values than a recipe can have.
    """
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{name}: must hold sections such as `model:` and `data:`; it holds {_kind(root)}.")
        document = Document(name, {}, *_survey(root, name))
        document.data = _unshared(loader.construct_document(root))
    except RecursionError as error:
        raise RecipeError(f"{name}: nested too deeply for a recipe.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(_syntax(error, name)) from error
    return document


def _survey(root: yaml.MappingNode, name: str) -> tuple[dict[Location, int | str], list[tuple[Location, str]]]:
    places: dict[Location, int | str] = {}
    faults: list[tuple[Location, str]] = []
    todo: list[tuple[Location, int, yaml.Node]] = [((), root.start_mark.line + 1, root)]
    while todo:
        location, line, node = todo.pop()
        if location in places:
            faults.append((location, f"stands on line {places[location]} and on line {line}: keep one of them."))
            continue
        places[location] = line
        faults += [((*location, key), "is no text to YAML: put the key in quotes.") for key in _odd(node)]
        if len(places) > MOST_VALUES:
            raise RecipeError(f"{name}: holds more than {MOST_VALUES} values; an anchor may refer to itself.")
        todo.extend(reversed([((*location, key), at, child) for key, at, child in _children(node)]))
    return places, faults


def _odd(node: yaml.Node) -> Iterator[str]:
    """Keys of a mapping that YAML reads as something else than text, such as null or true."""
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            yield str(key.value)


def _children(node: yaml.Node) -> Iterator[tuple[str, int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                yield str(key.value), key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield str(index), item.start_mark.line + 1, item


def _put(data: dict[str, Any], location: Location, value: Any) -> None:
    node: Any = data
    for depth, key in enumerate(location[:-1], 1):
        node = _step(node, key, ".".join(location[:depth]))
    _step(node, location[-1], ".".join(location))
    node[_key(node, location[-1])] = value


def _step(node: Any, key: str, path: str) -> Any:
    """The section under a key; made where it is missing or empty."""
    parent = path.rpartition(".")[0]
    if isinstance(node, list):
        if not (key.isdecimal() and int(key) < len(node)):
            raise ValueError(f"'{parent}' is a list of {len(node)} here: '{key}' must be an index from 0.")
        return node[int(key)]
    if not isinstance(node, dict):
        raise ValueError(f"'{parent}' is a single value here, so '{path}' cannot be set.")
    if key.isdecimal():
        raise ValueError(f"'{parent}' is no list in the file; give all of it, as in {parent}=[...].")
    if node.get(key) is None:
        node[key] = {}
    return node[key]


def _key(node: Any, key: str) -> Any:
    return int(key) if isinstance(node, list) else key


def _unshared(value: Any) -> Any:
    """A copy in which anchors are written out, so that an override touches one place only."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items() if isinstance(key, str)}  # others are faults
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _kind(node: yaml.Node | None) -> str:
    if node is None:
        return "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _syntax(error: Exception, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{name}:{mark.line + 1}" if mark else name
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return f"{place}: not valid YAML: {problem}."
