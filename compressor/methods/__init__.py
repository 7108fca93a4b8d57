"""One method, one file: a frozen dataclass whose fields are its knobs. Importing one does not import torch."""

from __future__ import annotations

from typing import Any

from compressor import registry


def __getattr__(name: str) -> Any:
    if name not in __dir__():  # a module of a method has its name in small letters
        raise AttributeError(f"module 'compressor.methods' has no method '{name}'")
    return registry.load("methods", name.lower())


def __dir__() -> list[str]:
    return [name.capitalize() for name in registry.names("methods")]
