"""A package is tried before it is written: predict.py must make the inputs that the model was measured with."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from compressor import registry
from compressor.children import import_path
from compressor.errors import ExportError
from compressor.packaging.contents import MODEL, RUNNER, read_facts
from compressor.packaging.tasks import PACKAGED


def rehearse(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Run predict.py once as its user will, and hold its inputs against the task's own.

    Args:
        folder: the package.
        trust_remote_code: run the code that the tokenizer or image processor of the measured model comes with.

    Raises:
        ExportError: it fails, or makes other inputs: this model needs code of its own.
        ModelError: there is no tokenizer or image processor, or it needs code that is not trusted.
    """
    facts = read_facts(folder)
    inputs = PACKAGED[facts["task"]].inputs
    with tempfile.TemporaryDirectory() as scratch:
        _run(folder, inputs.words(facts, Path(scratch)))
    processor = registry.task(facts["task"]).processor(str(folder / MODEL), trust_remote_code=trust_remote_code)
    try:
        same = inputs.same(folder, processor)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # settings that predict.py does not know
        raise ExportError(_different(processor, f" ({type(error).__name__}: {error})")) from error
    if not same:
        raise ExportError(_different(processor))


def _different(processor: Any, why: str = "") -> str:
    return (
        f"{RUNNER} does not make the inputs that {type(processor).__name__} makes{why}, so the package would predict "
        "something else than what was measured. Deploy the export with code of your own."
    )


def _run(folder: Path, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", folder / RUNNER, *words],
        env=os.environ | {"PYTHONPATH": import_path()},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ExportError(f"{RUNNER} fails with this export: {said}")
