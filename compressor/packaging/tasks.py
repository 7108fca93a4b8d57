"""What a package says and needs by its task: one row each. What predict.py is told of a model is in `facts.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

VERSIONS = {"numpy": ">=2.0", "onnxruntime": ">=1.24", "tokenizers": ">=0.21", "pillow": ">=10.3"}
READERS = {"text": "tokenizers", "image": "pillow"}  # what turns an input into arrays


@dataclass(frozen=True)
class Packaged:
    """One task.

    Attributes:
        reads: what a user gives.
        says: what comes back.
        typed: an example of what follows predict.py on the command line.
        answer: what is printed then, in a sentence.
        limits: what the figures do not say of such a model, in sentences.
    """

    reads: Literal["text", "image"]
    says: Literal["label", "text"]
    typed: str
    answer: str
    limits: tuple[str, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """The packages that predict.py imports."""
        return ("numpy", "onnxruntime", READERS[self.reads])

    @property
    def requirements(self) -> str:
        """requirements.txt of a package."""
        return "".join(f"{name}{VERSIONS[name]}\n" for name in self.needs)


LABEL = "The answer is one line of JSON: the label, and the probability of every label."
ALWAYS_ONE = "It knows the labels of its training data alone and always names one of them, also for {} that fits none."
PACKAGED: Mapping[str, Packaged] = {
    "text-classification": Packaged(
        "text",
        "label",
        '"a text"',
        LABEL,
        (ALWAYS_ONE.format("a text"), "Long texts are cut to the length that it was trained with."),
    ),
    "image-classification": Packaged("image", "label", "image.png", LABEL, (ALWAYS_ONE.format("an image"),)),
    "text-generation": Packaged(
        "text",
        "text",
        '"Once upon a time" --new-tokens 40',
        "The text is continued with the likeliest token, again and again.",
        (
            "What it writes may be wrong, harmful or invented: measured was how well it predicts text, not what "
            "it says.",
        ),
    ),
    "multiple-choice": Packaged(
        "text",
        "label",
        '"a question" "one choice" "another"',
        "The answer is one line of JSON: the likeliest choice, and the log-likelihood per character.",
        (
            "It names the likeliest of the choices that it is given, also where none is right.",
            "Long questions lose their beginning.",
        ),
    ),
}
