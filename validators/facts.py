"""What was measured on what: the context of a report as titled groups of label and text, ready to be shown.

Every key is optional, and fields of a group that are not known here are shown under their own name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressor import progress

Pairs = list[tuple[str, str]]

GROUPS = {
    "model": "Model",
    "method": "Method",
    "plan": "Plan",
    "data": "Data",
    "machine": "Machine",
    "versions": "Versions",
    "seconds": "Durations",
}
BRIEF = (
    ("CPU", "machine", "cpu"),
    ("GPU", "machine", "gpu"),
    ("threads", "machine", "threads"),
    ("evaluation rows", "data", "evaluation", "rows"),
    ("onnxruntime", "versions", "onnxruntime"),
    ("rankfold", "versions", "rankfold"),
    ("seed", "seed"),
    ("created", "created"),
)
LINEAR_HEADERS = ("Linear layer", "Out", "In", "Target", "Why")
LAYER_HEADERS = ("Layer", "Out", "In", "Rank", "Break-even", "Parameters", "Why")
WORDS = {
    "cpu": "CPU",
    "gpu": "GPU",
    "memory gib": "Memory, GiB",
    "trust remote code": "Trusts remote code",
    "evaluation rows": "Evaluation rows",
}


def title(context: Mapping[str, Any]) -> str:
    """The model's name, the method and the budget, as far as they are known."""
    path, method = look(context, "model", "path"), look(context, "method", "name")
    budget = look(context, "plan", "budget")
    shares = budget if isinstance(budget, Mapping) else {"parameters": budget}
    name = str(path).rpartition("/")[2] if str(path).startswith("/") else path
    kept = [f"{share:.0%} of the {what}" for what, share in shares.items() if _is_share(share)]
    return " · ".join(str(part) for part in (name, method, *kept) if part)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value <= 1


def brief(context: Mapping[str, Any]) -> Pairs:
    """The few facts that a short summary has room for."""
    split = look(context, "recipe", "validate", "split") or "evaluation"
    found = ((name, look(context, *keys)) for name, *keys in BRIEF)
    return [(name.replace("evaluation", split), text(value)) for name, value in found if value is not None]


def groups(context: Mapping[str, Any]) -> list[tuple[str, Pairs]]:
    """All facts but layers, plots and recipe."""
    run = {key: context[key] for key in ("seed", "created") if key in context}
    found = [("Run", list(_flat(run)))]
    for key, name in GROUPS.items():
        section = context.get(key)
        if isinstance(section, Mapping):
            found.append((name, _group(key, section)))
    return [(name, pairs) for name, pairs in found if pairs]


def layers(context: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row of LAYER_HEADERS for each layer, headers first; empty without layers."""
    found = records(context, "layers")
    return [LAYER_HEADERS, *map(_layer, found)] if found else []


def linear_layers(context: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row of LINEAR_HEADERS for each linear layer of the model, headers first; empty where none are listed."""
    found = records(context, "linear_layers")
    return [LINEAR_HEADERS, *map(_linear_layer, found)] if found else []


def records(context: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """A list of mappings in the context; whatever else stands there is left out."""
    found = context.get(key)
    return [record for record in found if isinstance(record, Mapping)] if isinstance(found, list | tuple) else []


def _linear_layer(layer: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = [text(layer[key]) if key in layer else "-" for key in ("out_features", "in_features")]
    target = text(bool(layer["target"])) if "target" in layer else "-"
    return (str(layer.get("name", "?")), *sizes, target, str(layer.get("reason") or ""))


def recipe(context: Mapping[str, Any]) -> str:
    """The recipe as YAML, or an empty string."""
    import yaml

    found = context.get("recipe")
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True) if found else ""


def look(context: Mapping[str, Any], *keys: str) -> Any:
    """The value at a path of keys, or None."""
    found: Any = context
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def text(value: Any) -> str:
    """A value in words: yes and no, thousands apart, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    return "none" if value is None else str(value)


def _layer(layer: Mapping[str, Any]) -> tuple[str, ...]:
    rank = "dense" if layer.get("rank") is None else text(layer["rank"])
    numbers = [text(layer[key]) if key in layer else "-" for key in ("out_features", "in_features")]
    cost = [text(layer[key]) if key in layer else "-" for key in ("break_even", "parameters")]
    return (str(layer.get("name", "?")), *numbers, rank, *cost, str(layer.get("reason") or ""))


def _group(key: str, section: Mapping[str, Any]) -> Pairs:
    if key == "seconds":
        return [(_label((str(stage),)), _duration(spent)) for stage, spent in section.items()]
    if key == "versions":
        return [(str(package), str(version)) for package, version in section.items()]
    counts = section.get("parameters")
    if not isinstance(counts, Mapping):
        return list(_flat(section))
    rest = {key: value for key, value in section.items() if key != "parameters"}
    return [*_flat(rest), *_parameters(counts)]


def _parameters(counts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """`22,713,216 → 15,000,000 (66.0%)` for the whole model and for its targets."""
    for key, name in (("model", "Parameters"), ("targets", "Parameters of the targets")):
        before, after = counts.get(key), counts.get(f"{key}_deployed")
        if isinstance(before, int) and isinstance(after, int) and before:
            yield name, f"{before:,} → {after:,} ({100 * after / before:.1f}%)"


def _duration(spent: Any) -> str:
    return progress.seconds(spent) if isinstance(spent, int | float) else text(spent)


def _flat(section: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        here = (*path, str(key))
        if isinstance(value, Mapping):
            yield from _flat(value, here)
        else:
            yield _label(here), str(value) if key == "seed" else text(value)


def _label(path: tuple[str, ...]) -> str:
    words = " ".join(path[-2:]).replace("_", " ")
    last = path[-1].replace("_", " ")
    return WORDS.get(last) or WORDS.get(words) or " ".join(path).replace("_", " ").capitalize()
