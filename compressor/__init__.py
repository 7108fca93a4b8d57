"""Rankfold: compress and adapt a pretrained model jointly, fold it, export it, prove it.

The names here are the only ones promised; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "read_recipe": "compressor.recipe:read",
    "Recipe": "compressor.recipe:Recipe",
    "compress": "compressor.pipeline:compress",
    "run": "compressor.pipeline:run",
    "export": "compressor.exporting:export",
    "validate": "compressor.proving:validate",
    "load": "compressor.storage:load",
    "package": "compressor.packaging.assemble:package",
    "unpack": "compressor.packaging.archive:unpack",
    "verify": "compressor.packaging.verification:verify",
    "Artifact": "compressor.artifact:Artifact",
    "methods": "compressor.methods:",
    "find_targets": "compressor.targets:find_targets",
    "consider": "compressor.targets:consider",
    "calibrate": "compressor.calibration:calibrate",
    "Statistics": "compressor.calibration:Statistics",
    "decompose": "compressor.factorize:decompose",
    "plan": "compressor.factorize:plan",
    "Plan": "compressor.planning:Plan",
    "factorize_": "compressor.factorize:factorize_",
    "correct_": "compressor.correction:correct_",
    "adapt_": "compressor.adapt:adapt_",
    "fold_": "compressor.factorize:fold_",
    "restructure_": "compressor.factorize:restructure_",
    "RankfoldError": "compressor.errors:RankfoldError",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'compressor' has no attribute '{name}'")
    module_name, _, attribute = _PUBLIC[name].partition(":")
    module = importlib.import_module(module_name)
    return getattr(module, attribute) if attribute else module


def __dir__() -> list[str]:
    return __all__
