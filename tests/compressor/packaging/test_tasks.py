"""Every row of the table of packaged tasks holds to what is asked of one, and a task without a row is told."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor import registry
from compressor.errors import InputError
from compressor.packaging import assemble, predict, rehearsal
from compressor.packaging.archive import unpack
from compressor.packaging.tasks import PACKAGED, READERS
from compressor.tasks.image import samples

DOCS = Path(__file__).parents[3] / "docs" / "packaging.md"
RUNTIME = {"numpy", "onnxruntime"}
IMPORTED = {"tokenizers": "tokenizers", "pillow": "PIL"}
HIDING = """
import runpy, sys
sys.modules |= dict.fromkeys(sys.argv[1].split(","))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

each_row = pytest.mark.parametrize("task", PACKAGED)


def shown(card: str) -> list[str]:
    """The command of a model card."""
    (line,) = [line for line in card.splitlines() if line.startswith("$ python predict.py ")]
    return shlex.split(line.removeprefix("$ python predict.py "))


@each_row
def test_what_the_card_says_to_type_is_answered_with_what_is_required_alone(
    packaged: Callable[[str], Path], tmp_path: Path, task: str
) -> None:
    folder, row = unpack(packaged(task), tmp_path), PACKAGED[task]
    samples()[0].save(tmp_path / "image.png")
    required = {line.partition(">")[0] for line in (folder / "requirements.txt").read_text().splitlines()}
    assert required == {*RUNTIME, READERS[row.reads]}
    hidden = ",".join(module for name, module in IMPORTED.items() if name not in required)
    command = [sys.executable, "-c", HIDING, hidden, folder / "predict.py", *shown((folder / "README.md").read_text())]
    done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    if row.says == "label":
        assert {"label", "choice"} & json.loads(done.stdout).keys()
    else:
        assert done.stdout.decode().startswith(shown((folder / "README.md").read_text())[0])


@each_row
def test_card_and_bill_of_materials_say_what_the_row_says(
    packaged: Callable[[str], Path], tmp_path: Path, task: str
) -> None:
    folder, row = unpack(packaged(task), tmp_path), PACKAGED[task]
    card = (folder / "README.md").read_text()
    assert row.answer in card
    assert all(limit in card for limit in row.limits)
    model = json.loads((folder / "bom.cdx.json").read_text())["metadata"]["component"]["modelCard"]["modelParameters"]
    assert (model["task"], model["approach"]["type"]) == (task, row.approach)
    assert (model["inputs"], model["outputs"]) == ([{"format": row.reads}], [{"format": row.says}])


def test_predict_knows_the_tasks_that_have_a_row() -> None:
    assert predict.INPUTS.keys() == PACKAGED.keys()


@each_row
def test_predicts_help_and_the_docs_show_every_task(task: str) -> None:
    assert task.replace("-", " ") in str(predict.__doc__)
    assert f"| {task.replace('-', ' ')} | `predict.py " in DOCS.read_text()


def test_every_row_is_of_a_task_that_there_is() -> None:
    assert PACKAGED.keys() <= registry.names("tasks").keys()


@pytest.mark.parametrize("task", [*registry.names("tasks"), "feature-extraction"])
def test_a_task_without_a_row_is_refused_with_where_its_export_lies(
    run: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    manifest = json.loads((run / "artifact.json").read_text())
    (run / "artifact.json").write_text(json.dumps(manifest | {"task": task}))
    monkeypatch.delitem(PACKAGED, task, raising=False)
    others = ", ".join(PACKAGED)
    with pytest.raises(InputError, match=f"^Packages are made for {others}, not for {task}: deploy {run}/exports/onnx"):
        assemble.package(run)


def test_a_model_of_pairs_is_tried_and_shown_with_two_texts(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[list[str]] = []
    step = rehearsal._run
    monkeypatch.setattr(rehearsal, "_run", lambda folder, words: (tried.append(words), step(folder, words)))
    manifest = json.loads((run / "artifact.json").read_text())
    manifest["recipe"]["data"]["train"]["text_pair"] = "second"
    (run / "artifact.json").write_text(json.dumps(manifest))
    folder = unpack(assemble.package(run, export="onnx-fp32").path, tmp_path / "there")
    assert [len(words) for words in tried] == [2]
    assert shown((folder / "README.md").read_text()) == ["a text", "another"]
