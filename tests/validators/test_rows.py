"""Which rows qualities are measured on, and that they are those that the artifact was made with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor import data
from compressor.errors import DataError
from compressor.recipe import Recipe
from validators import rows


class Task:
    """Reads `text` and `label`, and encodes nothing."""

    def columns(self, source: Any) -> dict[str, Any]:
        from compressor.tasks.base import Column

        return {name: Column(name, ("string", "int"), "text") for name in ("text", "label")}

    def labels(self, found: Any) -> None:
        return None

    def encode(self, found: Any, *_: Any) -> Any:
        return found


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    for split, count in (("train", 20), ("test", 5), ("validation", 4)):
        lines = (json.dumps({"text": f"{split} {n}", "label": n}) for n in range(count))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))

    def build(split: str, **section: Any) -> Recipe:
        source = {"path": str(tmp_path), "split": "train"}
        found = {"train": source, "evaluation": source | {"split": "test"}, "holdout": 0.2} | section
        return Recipe.model_validate({"model": {"path": "x"}, "data": found, "validate": {"split": split}})

    return build


def artifact(found: Recipe) -> Any:
    facts = data.prepare(found.data, Task(), None, 8, 0).facts  # type: ignore[arg-type]
    return SimpleNamespace(manifest={"data": facts, "labels": None})


def measured(found: Recipe, made: Any) -> tuple[list[str], Any]:
    encoded, facts = rows.measured(made, found, Task(), None)  # type: ignore[arg-type]
    return sorted(encoded["text"]), facts


def test_the_evaluation_data_is_what_is_measured_on(recipe: Any) -> None:
    texts, facts = measured(recipe("evaluation"), artifact(recipe("evaluation")))
    assert texts == [f"test {n}" for n in range(5)]
    assert facts["rows"] == 5


def test_validation_rows_are_those_that_were_held_out_of_training(recipe: Any) -> None:
    found = recipe("validation")
    texts, facts = measured(found, artifact(found))
    trained = data.prepare(found.data, Task(), None, 8, 0).train["text"]  # type: ignore[arg-type]
    assert len(texts) == facts["rows"] == 4
    assert not set(texts) & set(trained)
    assert set(texts) | set(trained) == {f"train {n}" for n in range(20)}


def test_validation_rows_of_their_own_are_read(recipe: Any, tmp_path: Path) -> None:
    found = recipe("validation", validation={"path": str(tmp_path), "split": "validation"})
    texts, _ = measured(found, artifact(found))
    assert texts == [f"validation {n}" for n in range(4)]


@pytest.mark.parametrize(
    ("split", "changed", "said"), [("evaluation", "test", "evaluation"), ("validation", "train", "training")]
)
def test_data_that_was_changed_since_is_told(recipe: Any, tmp_path: Path, split: str, changed: str, said: str) -> None:
    found = recipe(split)
    made = artifact(found)
    (tmp_path / f"{changed}.jsonl").write_text('{"text": "new", "label": 0}\n{"text": "newer", "label": 1}')
    with pytest.raises(DataError, match=f"is not the {said} data that the artifact was made with"):
        measured(found, made)


def test_a_recipe_without_validation_rows_is_told(recipe: Any) -> None:
    found = recipe("validation", holdout=0)
    with pytest.raises(DataError, match=r"data\.holdout is 0 and data\.validation names no rows"):
        measured(found, artifact(found))
