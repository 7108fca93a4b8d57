"""What recipes/prepare_demo.py makes of docstrings; and that recipes/ holds recipes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from compressor import recipe
from compressor.errors import ArtifactError, DependencyError

RECIPES = Path(__file__).parents[1] / "recipes"


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


SOURCE = '''"""Module."""
raise SystemExit
class A:
    """Class."""
    async def f(self):
        """Function."""
'''
demo = _imported(RECIPES / "prepare_demo.py")


def rows(*texts: str, label: str = "torch", file: str = "a.py") -> list[object]:
    return [demo.Row(text, label, Path(file)) for text in texts]


def test_docstrings_of_modules_classes_and_functions_are_found_without_importing(tmp_path: Path) -> None:
    path = tmp_path / "library.py"
    path.write_text(SOURCE)
    assert sorted(filter(None, demo.docstrings(path))) == ["Class.", "Function.", "Module."]


def test_a_file_that_is_no_python_has_no_docstrings(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text("print 'hello'\n")
    assert list(demo.docstrings(tmp_path / "old.py")) == []


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("One\n    line.\n\n    Another.\n\n    Args:\n        x: hidden", "One line. Another."),
        ("Sum.\n\nParameters\n----------\nx : hidden", "Sum."),
        ("Sum.\n\n>>> hidden()", "Sum."),
        ("Sum.\n\n.. note:: hidden", "Sum."),
        ("Short.\n\n" + "too long " * 40, "Short."),
        ("Build a :class:`~torch.nn.Linear` or ``None``.", "Build a Linear or None."),
        ("A PyTorch tensor, `np.array` or torch_dtype from scikit-learn", "A tensor, array or from"),
        ("", ""),
    ],
)
def test_the_prose_before_the_first_section_is_kept_without_markup_and_names(docstring: str, expected: str) -> None:
    assert demo.clean(docstring) == expected


def test_a_text_stands_once_and_one_that_two_libraries_share_not_at_all() -> None:
    same = rows("Return a copy.", "Return a COPY!") + rows("Fit the model.") + rows("Fit the model", label="scipy")
    assert [row.text for row in demo.distinct(same)] == ["Return a copy."]


def test_near_copies_are_told_by_their_common_words() -> None:
    known = rows("one two three four five six seven eight nine ten")
    far, near = "one two three four five six seven eight", "one two three four five six seven"  # 8 and 7 of 10 words
    assert demo.without_near_copies(rows(far, near), known) == []
    apart = "one two three four five six"  # 6 of 10
    assert [row.text for row in demo.without_near_copies(rows(apart), known)] == [apart]


def test_no_file_is_in_both_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TRAIN", 6)
    monkeypatch.setattr(demo, "TEST", 4)
    words = [f"{chr(97 + i)}{chr(97 + j)}" for i in range(26) for j in range(26)]
    pool = [row for k in range(20) for row in rows(" ".join(words[20 * k : 20 * k + 20]), file=f"{k // 3}.py")]
    train, test = demo.split(pool)
    assert (len(train), len(test)) == (6, 4)
    assert {row.file for row in train}.isdisjoint(row.file for row in test)


def test_tests_and_vendored_code_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("core.py", "tests/test_core.py", "externals/other.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(demo, "_package", lambda name: tmp_path)
    assert demo.files("torch") == [tmp_path / "core.py"]


def test_gathering_is_the_same_every_time_and_names_no_library() -> None:
    first = demo.gather("networkx", 60)
    assert first == demo.gather("networkx", 60)
    assert len(first) >= 60
    assert not [row.text for row in first if "networkx" in row.text.lower()]
    assert all(60 <= len(row.text) <= 200 for row in first)


def test_a_missing_library_is_named_with_what_brings_it() -> None:
    with pytest.raises(DependencyError, match=r"'no_such_library'.*rankfold\[cpu,demo\]"):
        demo._package("no_such_library")


def test_nothing_is_overwritten_unasked_and_nothing_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(ArtifactError, match="--overwrite"):
        demo.make_room(tmp_path, overwrite=False)
    with pytest.raises(ArtifactError, match="not made here"):
        demo.make_room(tmp_path, overwrite=True)
    (tmp_path / "data" / "README.md").write_text(demo.TITLE)
    demo.make_room(tmp_path, overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_the_written_data_is_read_as_the_recipes_name_it(tmp_path: Path) -> None:
    from compressor.data import read
    from compressor.tasks.text_classification import TextClassification

    pool = [row for label in ("torch", "scipy") for row in rows("a text", "another", label=label)]
    demo.write(pool, tmp_path / "train.parquet")
    found = read(recipe.Source(path=str(tmp_path), split="train"), TextClassification())
    assert sorted(found["label"]) == ["scipy", "scipy", "torch", "torch"]
    assert sorted(found["text"]) == ["a text", "a text", "another", "another"]


def test_the_data_says_what_it_was_made_of() -> None:
    from importlib.metadata import version

    about = demo.readme(rows("a"), rows("b", "c"))
    assert f"| torch | {version('torch')} | 1 | 2 |" in about


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_worked_recipe_is_a_recipe(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "build/demo/model").mkdir(parents=True)
    (tmp_path / "build/demo/data").mkdir()
    monkeypatch.chdir(tmp_path)
    found = recipe.read(path)
    assert found.gates
    assert found.export
