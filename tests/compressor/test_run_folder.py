"""The run folder: stages that finish whole or not at all, and one process at a time."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compressor import run_folder
from compressor.errors import ArtifactError, InputError
from compressor.run_folder import Run, alone

RECIPE: dict[str, Any] = {"seed": 0, "plan": {"budget": {"parameters": 0.5}}, "export": ["onnx"]}


def make(run: Run, name: str, **files: str) -> None:
    """A stage that writes files; `__` in a name is a folder."""
    names = {key.replace("__", "/"): text for key, text in files.items()}
    with run.stage(name, name.capitalize(), sorted({path.partition("/")[0] for path in names})) as scratch:
        for path, text in names.items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with two finished stages."""
    run = Run(tmp_path / "run", RECIPE)
    make(run, "probe", head="h")
    make(run, "baseline", dense__weights="w", dense__config="c")
    return tmp_path / "run"


def test_a_new_run_makes_its_folder_and_has_finished_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "deep" / "run", RECIPE)
    assert json.loads((run.folder / "run.json").read_text())["recipe"] == RECIPE
    assert not run.finished("probe")


def test_a_resumed_run_knows_what_is_finished(folder: Path) -> None:
    run = Run(folder, RECIPE, resume=True)
    assert [stage for stage in ("probe", "baseline", "plan") if run.finished(stage)] == ["probe", "baseline"]
    assert run.seconds.keys() == {"probe", "baseline"}
    assert (folder / "dense" / "weights").read_text() == "w"


def test_a_folder_with_a_run_is_not_begun_again_by_accident(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds a run \(finished: probe, baseline\)\. Add --resume .* --overwrite"):
        Run(folder, RECIPE)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ArtifactError, match=r"no run made"):
        Run(tmp_path, RECIPE)


@pytest.mark.parametrize("state", ['{"name": "my experiment"}', '"text"', '{"recipe": 1, "stages": {}}'])
@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_somebody_elses_run_json_is_no_run(tmp_path: Path, state: str, flags: dict[str, bool]) -> None:
    (tmp_path / "run.json").write_text(state)
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(ArtifactError, match="no run made"):
        Run(tmp_path, RECIPE, **flags)
    assert {path.name for path in tmp_path.iterdir()} >= {"run.json", "thesis.txt"}


def test_overwriting_starts_again(folder: Path) -> None:
    run = Run(folder, {"seed": 1}, overwrite=True)
    assert not run.finished("probe")
    make(run, "probe", head="h")
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".work", "head", "run.json"]
    assert set(json.loads((folder / "run.json").read_text())["stages"]) == {"probe"}


def test_an_overwriting_that_is_killed_can_be_begun_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, left = Path.unlink, ["head"]

    def killed(path: Path) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        unlink(path)

    monkeypatch.setattr(Path, "unlink", killed)
    (folder / "zz").write_text("of the run")
    with pytest.raises(KeyboardInterrupt):
        make(Run(folder, RECIPE, overwrite=True), "probe", head="h")
    monkeypatch.setattr(Path, "unlink", unlink)
    make(Run(folder, RECIPE, overwrite=True), "probe", head="h")
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".work", "head", "run.json"]


def test_what_is_to_be_overwritten_stays_until_the_first_stage_begins(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    Run(folder, {"seed": 1}, overwrite=True).require_same_data({"train": {"digest": "a"}})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_going_on_and_starting_again_cannot_both_be_meant(folder: Path) -> None:
    with pytest.raises(InputError, match="--resume goes on with a run and --overwrite starts it again: give one"):
        Run(folder, RECIPE, resume=True, overwrite=True)


@pytest.mark.parametrize("flag", ["overwrite", "resume"])
def test_no_flag_lets_a_run_into_a_folder_of_other_files(tmp_path: Path, flag: str) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ArtifactError, match="no run made"):
        Run(tmp_path, RECIPE, **{flag: True})
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_run_of_another_recipe_is_not_resumed_and_the_key_is_named(folder: Path) -> None:
    other = RECIPE | {"plan": {"budget": {"parameters": 0.3}}}
    with pytest.raises(ArtifactError, match=r"another recipe: plan\.budget\.parameters was 0\.5, is 0\.3\."):
        Run(folder, other, resume=True)


def test_a_run_is_not_resumed_with_other_rows(folder: Path) -> None:
    facts = {"train": {"digest": "a", "rows": 2}, "evaluation": {"digest": "b", "rows": 1}, "labels": 3}
    Run(folder, RECIPE, resume=True).require_same_data(facts)
    Run(folder, RECIPE, resume=True).require_same_data({**facts, "labels": 4})
    with pytest.raises(ArtifactError, match=r"begun with other rows of data\.train: .*--overwrite"):
        Run(folder, RECIPE, resume=True).require_same_data({**facts, "train": {"digest": "c", "rows": 2}})


def test_a_changed_and_a_missing_file_of_a_finished_stage_are_named(folder: Path) -> None:
    (folder / "dense" / "config").write_text("edited")
    (folder / "head").unlink()
    with pytest.raises(ArtifactError, match=r"head is missing; dense/config has been changed since.*plan\.path"):
        Run(folder, RECIPE, resume=True)


def test_a_damaged_state_is_one_sentence(folder: Path) -> None:
    (folder / "run.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"run\.json cannot be read"):
        Run(folder, RECIPE, resume=True)


# ---- one process at a time ----

HOLD = """
import sys, time
from pathlib import Path
from compressor.run_folder import Run
run = Run(Path(sys.argv[1]), {"seed": 0}, resume=True)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A second process at work in `tmp_path / "run"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_second_process_is_turned_away_until_the_first_has_ended_or_was_killed(
    holder: subprocess.Popen[str], tmp_path: Path, flag: str
) -> None:
    folder = tmp_path / "run"
    before = (folder / "run.json").read_bytes()
    with pytest.raises(
        ArtifactError, match=rf"Another process is at work in {folder}\. Wait .* another --out"
    ) as caught:
        Run(folder, {"seed": 0}, **{flag: True})
    assert caught.value.exit_code == 2
    assert (folder / "run.json").read_bytes() == before
    with pytest.raises(ArtifactError, match="Another process"), alone(folder):
        pytest.fail("two processes were let in")
    holder.kill()
    holder.wait()
    assert not Run(folder, {"seed": 0}, **{flag: True}).finished("probe")


def test_one_process_may_hold_its_run_more_than_once(folder: Path) -> None:
    first, second = Run(folder, RECIPE, resume=True), Run(folder, RECIPE, resume=True)
    with alone(folder):
        assert first.finished("probe")
    assert second.finished("probe")


def test_who_only_reads_goes_on_where_no_lock_can_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / ".lock"))

    monkeypatch.setattr(run_folder, "_lock", refuse)
    with alone(folder, writes=False):
        pass
    with pytest.raises(PermissionError), alone(folder):
        pytest.fail("let in without a lock")


def test_a_run_that_is_no_longer_in_use_lets_others_in(folder: Path) -> None:
    run = Run(folder, {**RECIPE}, resume=True)
    code = "import sys, pathlib, compressor.run_folder as f; f.alone(pathlib.Path(sys.argv[1])).__enter__()"
    command = [sys.executable, "-c", code, str(folder)]
    assert b"Another process" in subprocess.run(command, capture_output=True, check=False).stderr
    del run
    assert subprocess.run(command, check=False).returncode == 0


def test_what_was_read_when_a_run_was_begun_has_to_be_the_same_when_it_goes_on(folder: Path) -> None:
    said = "another {}: what is finished there was made of that one"
    Run(folder, RECIPE, resume=True).require_same("sources", {"model.path": "a", "plan.path": "b"}, said)
    Run(folder, RECIPE, resume=True).require_same("sources", {"plan.path": "b", "model.path": "a"}, said)
    for changed in ({"model.path": "a", "plan.path": "c"}, {"model.path": "a"}):
        with pytest.raises(ArtifactError, match=r"was begun with another plan\.path: what is finished.*--overwrite"):
            Run(folder, RECIPE, resume=True).require_same("sources", changed, said)
    Run(folder, RECIPE, overwrite=True).require_same("sources", {"model.path": "z"}, said)


def test_a_start_that_failed_before_it_had_anything_does_not_occupy_its_folder(tmp_path: Path) -> None:
    Run(tmp_path / "new", {"seed": 1})
    again = Run(tmp_path / "new", {"seed": 2})
    assert again.state["recipe"] == {"seed": 2}
    make(again, "probe", head="h")
    with pytest.raises(ArtifactError, match="holds a run"):
        Run(tmp_path / "new", {"seed": 2})


def test_nothing_is_overwritten_while_a_trial_is_in_use(folder: Path) -> None:
    trial = folder / "trials" / "0.500"
    Run(trial, RECIPE)
    (trial / "weights").write_text("w")
    code = (
        "import sys, pathlib, compressor.run_folder as f\nwith f.alone(pathlib.Path(sys.argv[1])):\n"
        "    print('in', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(trial)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(ArtifactError, match=r"Another process is at work in .*0\.500"):
            make(Run(folder, RECIPE, overwrite=True), "probe", head="h")
        assert (trial / "weights").read_text() == "w"
        other.communicate()
    make(Run(folder, RECIPE, overwrite=True), "probe", head="h")
    assert not trial.exists()


# ---- stages ----


def interrupted(run: Run) -> None:
    with run.stage("plan", "Planning", ["plan.json"]) as scratch:
        (scratch / "plan.json").write_text("half")
        raise KeyboardInterrupt


def test_a_stage_that_raises_leaves_nothing_of_its_outputs(folder: Path) -> None:
    run = Run(folder, RECIPE, resume=True)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        interrupted(run)
    outside = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and run.scratch not in p.parents}
    assert outside == before
    assert not Run(folder, RECIPE, resume=True).finished("plan")


def test_a_stage_that_is_tried_again_starts_from_an_empty_scratch(folder: Path) -> None:
    run = Run(folder, RECIPE, resume=True)
    (run.scratch / "plan").mkdir(parents=True)
    (run.scratch / "plan" / "half").write_text("left by a kill")
    with run.stage("plan", "Planning", ["plan.json"]) as scratch:
        assert list(scratch.iterdir()) == []
        (scratch / "plan.json").write_text("whole")
    assert run.finished("plan")
    assert (folder / "plan.json").read_text() == "whole"
    assert not list(run.scratch.iterdir())


def test_a_stage_replaces_a_folder_as_a_whole(folder: Path) -> None:
    run = Run(folder, RECIPE, resume=True)
    make(run, "baseline", dense__other="o")
    assert [path.name for path in (folder / "dense").iterdir()] == ["other"]
    assert Run(folder, RECIPE, resume=True).finished("baseline")


def test_a_stage_without_its_output_is_not_finished(folder: Path) -> None:
    run = Run(folder, RECIPE, resume=True)
    with pytest.raises(FileNotFoundError), run.stage("plan", "Planning", ["plan.json"]):
        pass
    assert not run.finished("plan")
