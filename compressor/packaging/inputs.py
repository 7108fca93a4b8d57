"""A task's inputs: what predict.py is told of them, what a user may type, and whether it makes them as the task does.

Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from compressor.packaging.contents import MODEL, read_facts
from compressor.tasks import image, language
from compressor.tasks.multiple_choice import PROMPT
from compressor.tasks.text import EXAMPLE
from exporters.generate import ends, places, turn

Facts = Mapping[str, Any]  # package.json, or the part of it that is the inputs'
ODD = "  Ünïcode, CAPITALS \N{EM DASH} 3.14%;   wide  spaces\nand a new line, \N{GRINNING FACE} "
TEXTS = (*EXAMPLE, ODD, EXAMPLE[0] + ODD * 200)  # the last one is cut
LARGE = (333, 500)  # height and width of an image beside the small ones


class Inputs(Protocol):
    """One kind of inputs."""

    def facts(self, recipe: Mapping[str, Any], folder: Path) -> Facts:
        """What predict.py has to know of them beside labels and names, for the model in a folder."""
        ...

    def words(self, facts: Facts, scratch: Path) -> list[str]:
        """What a user may type; files are made in `scratch`."""
        ...

    def same(self, folder: Path, processor: Any) -> bool:
        """Whether a package's predict.py makes of samples what the model's tokenizer or image processor does."""
        ...


class Texts:
    """A text, or a pair of texts."""

    def facts(self, recipe: Mapping[str, Any], folder: Path) -> Facts:
        """Where they are cut, and whether there are two."""
        return {
            "max_length": _length(recipe, folder),
            "truncation_side": _settings(folder).get("truncation_side") or "right",
            "pair": bool(recipe["data"]["train"].get("text_pair")),
        }

    def words(self, facts: Facts, scratch: Path) -> list[str]:
        """A text or two."""
        return list(EXAMPLE[1:]) if facts["pair"] else [EXAMPLE[1]]

    def same(self, folder: Path, processor: Any) -> bool:
        """Tokens."""
        from compressor.packaging import predict

        model = predict.Model(folder)
        length = model.facts["max_length"]
        pairs = [(text, EXAMPLE[2]) if model.facts["pair"] else (text,) for text in TEXTS]
        expected = [processor(*pair, truncation=True, max_length=length)["input_ids"] for pair in pairs]
        return [predict.encode(model, pair).ids for pair in pairs] == expected


class Images:
    """The name of an image's file."""

    def facts(self, recipe: Mapping[str, Any], folder: Path) -> Facts:
        """None: all stands in the image processor's own file."""
        return {}

    def words(self, facts: Facts, scratch: Path) -> list[str]:
        """A file of noise."""
        image.samples()[0].save(scratch / "sample.png")
        return [str(scratch / "sample.png")]

    def same(self, folder: Path, processor: Any) -> bool:
        """Pixels, (3, H, W)."""
        import numpy as np
        from PIL import Image

        from compressor.packaging import predict

        settings = predict.read(folder / MODEL / image.SETTINGS)
        noise = np.random.default_rng(0).integers(0, 256, (*LARGE, 3), dtype=np.uint8)
        found = [*image.samples(), Image.fromarray(noise)]
        expected = [processor([one], return_tensors="np")["pixel_values"][0] for one in found]
        return all(np.array_equal(predict.pixels(one, settings), two) for one, two in zip(found, expected, strict=True))


class Prompts:
    """The beginning of a text."""

    def facts(self, recipe: Mapping[str, Any], folder: Path) -> Facts:
        """Where a text ends."""
        config = _read(folder / "config.json")
        limits = [limit for limit in (places(config), turn(config)) if limit]
        return {"longest": min(limits, default=None), "stop": ends(config)}

    def words(self, facts: Facts, scratch: Path) -> list[str]:
        """A prompt, to be continued by one token."""
        return [EXAMPLE[1], "--new-tokens=1"]

    def same(self, folder: Path, processor: Any) -> bool:
        """Tokens."""
        from compressor.packaging import predict

        tokenizer = predict.Model(folder).tokenizer
        return [tokenizer.encode(text).ids for text in TEXTS] == [processor(text)["input_ids"] for text in TEXTS]


class Questions(Prompts):
    """A question and its choices."""

    def facts(self, recipe: Mapping[str, Any], folder: Path) -> Facts:
        """Where they are cut, and how a question is asked."""
        return {"max_length": _length(recipe, folder), "prompt": PROMPT, "opening": _opening(folder)}

    def words(self, facts: Facts, scratch: Path) -> list[str]:
        """A question and two choices."""
        return list(EXAMPLE)

    def same(self, folder: Path, processor: Any) -> bool:
        """Tokens, and the one that a question begins with."""
        return read_facts(folder)["opening"] == language.opening(processor) and super().same(folder, processor)


def _length(recipe: Mapping[str, Any], folder: Path) -> int:
    """Where texts are cut: as for training, but not behind what the model and its tokenizer take."""
    limits = (places(_read(folder / "config.json")), _settings(folder).get("model_max_length"))
    return int(min([recipe["model"]["max_length"], *(limit for limit in limits if limit)]))


def _opening(folder: Path) -> list[int]:
    """The token that the tokenizer begins every text with, where it has one."""
    from tokenizers import Tokenizer

    named = _settings(folder).get("bos_token")
    token = named.get("content") if isinstance(named, Mapping) else named
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first = tokenizer.encode("").ids[:1]
    return first if token and first == [tokenizer.token_to_id(token)] else []


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json."""
    return _read(folder / "tokenizer_config.json")


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
