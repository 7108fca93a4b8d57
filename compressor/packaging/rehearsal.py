"""A package is tried before it is written: predict.py must make the inputs that the model was measured with."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compressor import registry
from compressor.children import import_path
from compressor.errors import ExportError
from compressor.packaging.contents import MODEL, RUNNER, read_facts
from compressor.tasks import image, language
from compressor.tasks.text import EXAMPLE

ODD = "  Ünïcode, CAPITALS \N{EM DASH} 3.14%;   wide  spaces\nand a new line, \N{GRINNING FACE} "
TEXTS = (*EXAMPLE, ODD, EXAMPLE[0] + ODD * 200)  # the last one is cut
LARGE = (333, 500)  # height and width of an image beside the small ones


def rehearse(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Run predict.py once as its user will, and hold its inputs against the task's own.

    Args:
        folder: the package.
        trust_remote_code: run the code that the tokenizer or image processor of the measured model comes with.

    Raises:
        ExportError: it fails, or makes other inputs: this model needs code of its own.
        ModelError: there is no tokenizer or image processor, or it needs code that is not trusted.
    """
    task = read_facts(folder)["task"]
    with tempfile.TemporaryDirectory() as scratch:
        _run(folder, _words(task, Path(scratch)))
    processor = registry.task(task).processor(str(folder / MODEL), trust_remote_code=trust_remote_code)
    try:
        same = COMPARED[task](folder, processor)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # settings that predict.py does not know
        raise ExportError(_different(processor, f" ({type(error).__name__}: {error})")) from error
    if not same:
        raise ExportError(_different(processor))


def _different(processor: Any, why: str = "") -> str:
    return (
        f"{RUNNER} does not make the inputs that {type(processor).__name__} makes{why}, so the package would predict "
        "something else than what was measured. Deploy the export with code of your own."
    )


def _words(task: str, scratch: Path) -> list[str]:
    """What a user may type."""
    if task == "image-classification":
        image.samples()[0].save(scratch / "sample.png")
        return [str(scratch / "sample.png")]
    if task == "multiple-choice":
        return list(EXAMPLE)
    return [EXAMPLE[1], "--new-tokens=1"] if task == "text-generation" else [EXAMPLE[1]]


def _run(folder: Path, words: list[str]) -> None:
    if read_facts(folder).get("pair"):
        words = [*words, EXAMPLE[2]]
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


def _same_images(folder: Path, processor: Any) -> bool:
    from PIL import Image

    from compressor.packaging import predict

    settings = predict.read(folder / MODEL / "preprocessor_config.json")
    noise = np.random.default_rng(0).integers(0, 256, (*LARGE, 3), dtype=np.uint8)
    found = [*image.samples(), Image.fromarray(noise)]
    expected = [processor([one], return_tensors="np")["pixel_values"][0] for one in found]
    return all(np.array_equal(predict.pixels(one, settings), two) for one, two in zip(found, expected, strict=True))


def _same_texts(folder: Path, processor: Any) -> bool:
    from compressor.packaging import predict

    model = predict.Model(folder)
    length = model.facts["max_length"]
    pairs = [(text, EXAMPLE[2]) if model.facts["pair"] else (text,) for text in TEXTS]
    expected = [processor(*pair, truncation=True, max_length=length)["input_ids"] for pair in pairs]
    return [predict.encode(model, pair).ids for pair in pairs] == expected


def _same_prompts(folder: Path, processor: Any) -> bool:
    from compressor.packaging import predict

    model = predict.Model(folder)
    opening = model.facts.get("opening")
    tokenizer = model.tokenizer
    expected = [processor(text)["input_ids"] for text in TEXTS]
    return [tokenizer.encode(text).ids for text in TEXTS] == expected and opening in (None, language.opening(processor))


COMPARED: dict[str, Callable[[Path, Any], bool]] = {
    "text-classification": _same_texts,
    "image-classification": _same_images,
    "text-generation": _same_prompts,
    "multiple-choice": _same_prompts,
}
