"""Imports go one way: what a run is made of <- exporters <- validators <- the runs themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS = {"__main__", "cli", "exporting", "feasible", "line", "measured", "opening", "pipeline", "proving", "search"}
RUNS |= {"trials"}
LAYERS = ["library", "exporters", "validators", "runs"]


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name; a package is called by its own."""
    files = (file for package in ("compressor", "exporters", "validators") for file in (ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


MODULES = modules()


def layer_of(module: str) -> str:
    package, _, rest = module.partition(".")
    if package != "compressor":
        return package
    part = rest.partition(".")[0]
    return "runs" if part in RUNS or part == "packaging" else "library"


def imported(tree: ast.AST, *, inside: bool) -> Iterator[str]:
    """The product's modules that a module imports when it is run; `inside` functions, too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        if isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in submodules if name in MODULES]
            yield from found
            if len(found) < len(submodules) and node.module in MODULES:
                yield node.module
        if inside or not isinstance(node, ast.FunctionDef):
            yield from imported(node, inside=inside)


def graph(*, inside: bool) -> dict[str, set[str]]:
    return {name: {*imported(ast.parse(file.read_text()), inside=inside)} - {name} for name, file in MODULES.items()}


def test_imports_go_one_way() -> None:
    wrong = [
        f"{name} ({layer_of(name)}) imports {other} ({layer_of(other)})"
        for name, others in graph(inside=True).items()
        for other in sorted(others)
        if LAYERS.index(layer_of(other)) > LAYERS.index(layer_of(name))
    ]
    assert wrong == []


def test_no_module_needs_itself_to_be_imported() -> None:
    assert len([*TopologicalSorter(graph(inside=False)).static_order()]) >= len(MODULES)
