"""What packages know by task: one row each. A row's task stands in predict.py too, which ships alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from compressor.packaging.inputs import Images, Inputs, Prompts, Questions, Texts

VERSIONS = {"numpy": ">=2.0", "onnxruntime": ">=1.24", "tokenizers": ">=0.21", "pillow": ">=10.3"}
READERS = {"text": "tokenizers", "image": "pillow"}  # what turns an input into arrays


@dataclass(frozen=True)
class Packaged:
    """One task.

    Attributes:
        reads: what a user gives.
        says: what comes back.
        approach: how it was learned, in CycloneDX's words.
        typed: an example of what follows predict.py on the command line.
        answer: what is printed then, in a sentence.
        limits: what the figures do not say of such a model, in sentences.
        inputs: what predict.py is told of what it reads, and how it is tried before it ships.
        second: what is typed behind the example where the recipe has pairs.
    """

    reads: Literal["text", "image"]
    says: Literal["label", "text"]
    approach: Literal["supervised", "self-supervised"]
    typed: str
    answer: str
    limits: tuple[str, ...]
    inputs: Inputs
    second: str = ""

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
        reads="text",
        says="label",
        approach="supervised",
        typed='"a text"',
        second=' "another"',
        answer=LABEL,
        limits=(ALWAYS_ONE.format("a text"), "Long texts are cut to the length that it was trained with."),
        inputs=Texts(),
    ),
    "image-classification": Packaged(
        reads="image",
        says="label",
        approach="supervised",
        typed="image.png",
        answer=LABEL,
        limits=(ALWAYS_ONE.format("an image"),),
        inputs=Images(),
    ),
    "text-generation": Packaged(
        reads="text",
        says="text",
        approach="self-supervised",
        typed='"Once upon a time" --new-tokens 40',
        answer="The text is continued with the likeliest token, again and again.",
        limits=(
            "What it writes may be wrong, harmful or invented: measured was how well it predicts text, not what "
            "it says.",
        ),
        inputs=Prompts(),
    ),
    "multiple-choice": Packaged(
        reads="text",
        says="label",
        approach="supervised",
        typed='"a question" "one choice" "another"',
        answer="The answer is one line of JSON: the likeliest choice, and the log-likelihood per character.",
        limits=(
            "It names the likeliest of the choices that it is given, also where none is right.",
            "Long questions lose their beginning.",
        ),
        inputs=Questions(),
    ),
}
