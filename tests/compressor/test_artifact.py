"""The artifact: a manifest of every file, by which each change is noticed and named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from compressor.artifact import Artifact, require_ours, require_whole, reseal, seal, verify
from compressor.errors import ArtifactError, IntegrityError
from compressor.planning import Plan
from compressor.run_folder import Run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with two finished stages."""
    run = Run(tmp_path / "run", {"seed": 0})
    with run.stage("probe", "Probe", ["head"]) as scratch:
        (scratch / "head").write_text("h")
    with run.stage("baseline", "Baseline", ["dense"]) as scratch:
        (scratch / "dense").mkdir()
        (scratch / "dense" / "weights").write_text("w")
        (scratch / "dense" / "config").write_text("c")
    return tmp_path / "run"


@pytest.fixture
def sealed(folder: Path) -> Path:
    Plan("gain", 0.5, "two-factor", 8, ()).save(folder / "plan.json")
    seal(folder, {"task": "text-classification"})
    return folder


def test_a_sealed_artifact_verifies_and_tells_what_it_was_given(sealed: Path) -> None:
    verify(sealed)
    found = Artifact.open(sealed)
    assert found.manifest["task"] == "text-classification"
    assert found.manifest["files"].keys() == {"head", "dense/weights", "dense/config", "plan.json"}
    assert found.plan.strategy == "gain"


def test_what_no_run_made_is_named_before_it_would_be_overwritten(sealed: Path) -> None:
    for name in ("exports/onnx-fp32", "trials/0.500", "baseline"):
        (sealed / name).mkdir(parents=True)
    for name in ("search.json", "report.html", "junit.xml", ".report.json.12", ".model.safetensors.partial"):
        (sealed / name).touch()
    (sealed / "plan.json").unlink()  # of no stage here
    require_ours(sealed)
    (sealed / "my-notes.md").touch()
    (sealed / "mine").mkdir()
    reseal(sealed)
    with pytest.raises(
        ArtifactError, match=r"run holds 'mine', 'my-notes\.md' of no run, which --overwrite would remove"
    ):
        require_ours(sealed)
    require_ours(sealed / "nowhere")


def test_changed_missing_and_added_files_are_all_named(sealed: Path) -> None:
    (sealed / "dense" / "weights").write_text("other")
    (sealed / "head").unlink()
    (sealed / "extra.bin").write_text("new")
    with pytest.raises(ArtifactError) as caught:
        verify(sealed)
    assert str(caught.value).splitlines()[1:] == [
        "  dense/weights has been changed",
        "  head is missing",
        "  extra.bin is not in the manifest",
    ]


def test_links_and_files_beside_the_scratch_folder_are_named(sealed: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (sealed / "exports").mkdir(exist_ok=True)
    (sealed / "exports" / "onnx-evil").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (sealed / "dangling").symlink_to(tmp_path / "nowhere")
    (sealed / ".worker.py").write_text("import os")
    with pytest.raises(IntegrityError) as caught:
        verify(sealed)
    assert str(caught.value).splitlines()[1:] == [
        "  .worker.py is not in the manifest",
        "  dangling is a link, which may lead anywhere",
        "  exports/onnx-evil is a link, which may lead anywhere",
    ]


def test_reports_and_scratch_may_come_and_go(sealed: Path) -> None:
    for name in ("report.json", "report.html", "report.md", "junit.xml"):
        (sealed / name).write_text("x")
    (sealed / ".work").mkdir(exist_ok=True)
    (sealed / ".work" / "checkpoint").write_text("x")
    verify(sealed)


def test_a_file_that_was_added_on_purpose_is_sealed_again(sealed: Path) -> None:
    (sealed / "exports").mkdir()
    (sealed / "exports" / "model.onnx").write_text("graph")
    with pytest.raises(ArtifactError, match=r"exports/model\.onnx is not in the manifest"):
        verify(sealed)
    reseal(sealed)
    verify(sealed)
    assert Artifact.open(sealed).manifest["task"] == "text-classification"


def test_sealing_again_hides_no_damage(sealed: Path) -> None:
    (sealed / "head").write_text("changed")
    made = sealed / "exports" / "onnx-fp32"
    made.mkdir(parents=True)
    (made / "model.onnx").write_text("graph")
    reseal(sealed)
    with pytest.raises(IntegrityError, match="head has been changed"):
        verify(sealed)
    with pytest.raises(ArtifactError, match="head has been changed since it was made"):
        require_whole(Artifact.open(sealed))
    require_whole(Artifact.open(sealed), "dense")
    (sealed / "head").write_text("h")
    (made / "model.onnx").write_text("another graph")
    with pytest.raises(IntegrityError, match=r"exports/onnx-fp32/model\.onnx has been changed"):
        verify(sealed)
    reseal(sealed, [made])
    verify(sealed)
    shutil.rmtree(made)
    with pytest.raises(IntegrityError, match=r"model\.onnx is missing"):
        verify(sealed)
    reseal(sealed)
    verify(sealed)


def test_what_a_killed_process_left_half_written_is_no_part_of_an_artifact(sealed: Path) -> None:
    for name in ("exports/.onnx-int8/model.onnx", "dense/.config.4711", ".artifact.json.12"):
        (sealed / name).parent.mkdir(parents=True, exist_ok=True)
        (sealed / name).write_text("half")
    verify(sealed)
    before = Artifact.open(sealed).manifest["files"].keys()
    reseal(sealed)
    assert Artifact.open(sealed).manifest["files"].keys() == before


def test_an_unfinished_run_is_no_artifact_and_says_how_to_go_on(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is an unfinished run.*--resume"):
        Artifact.open(folder)


def test_a_folder_that_is_neither_run_nor_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no run or artifact folder"):
        verify(tmp_path)


def test_an_artifact_of_another_schema_is_refused(sealed: Path) -> None:
    manifest = json.loads((sealed / "artifact.json").read_text())
    (sealed / "artifact.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(ArtifactError, match="schema version 99; this version reads 1"):
        Artifact.open(sealed)


def test_a_manifest_is_written_whole_or_not_at_all(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (sealed / "artifact.json").read_bytes()
    monkeypatch.setattr(Path, "write_text", Mock(side_effect=OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        seal(sealed, {})
    assert (sealed / "artifact.json").read_bytes() == before


def test_verifying_needs_no_torch(sealed: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from compressor.artifact import verify; "
        "verify(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(sealed)], check=False).returncode == 0
