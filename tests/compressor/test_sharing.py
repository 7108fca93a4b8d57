"""Large files are there once, small ones in each place, and a stage that is taken over is a finished one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compressor import sharing
from compressor.errors import ArtifactError
from compressor.run_folder import Run
from compressor.sharing import LARGE, share, share_folder


def same_file(one: Path, other: Path) -> bool:
    return one.stat().st_ino == other.stat().st_ino


def test_a_large_file_takes_no_room_twice_and_a_small_one_is_a_copy(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * LARGE)
    (tmp_path / "small").write_bytes(b"x")
    for name in ("large", "small"):
        share(tmp_path / name, tmp_path / "there" / name)
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert same_file(tmp_path / "large", tmp_path / "there" / "large")
    assert not same_file(tmp_path / "small", tmp_path / "there" / "small")


def test_what_was_there_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    for name, content in (("first", b"1" * LARGE), ("second", b"2" * LARGE)):
        (tmp_path / name).write_bytes(content)
        share(tmp_path / name, tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"2" * LARGE
    assert (tmp_path / "first").read_bytes() == b"1" * LARGE


def test_a_file_system_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "large").write_bytes(b"x" * LARGE)
    share(tmp_path / "large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"x" * LARGE
    assert not same_file(tmp_path / "large", tmp_path / "copy")


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b/c"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text(name)
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "share", lambda source, target: share(source, target) if source.name == "a" else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            share_folder(tmp_path / "source", tmp_path / "target")
    assert not (tmp_path / "target").exists()
    share_folder(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target" / "b" / "c").read_text() == "b/c"
    (tmp_path / "source" / "a").write_text("changed")
    share_folder(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target" / "a").read_text() == "a", "what is there stays"


def test_a_stage_that_is_taken_over_is_finished_with_the_same_digests(tmp_path: Path) -> None:
    first = Run(tmp_path / "first", {"seed": 0})
    with first.stage("baseline", "Training", ["baseline"]) as scratch:
        (scratch / "baseline").mkdir()
        (scratch / "baseline" / "model.safetensors").write_text("weights")
    second = Run(tmp_path / "second", {"seed": 1})
    second.adopt("baseline", first)
    assert second.state["stages"] == first.state["stages"]
    assert (tmp_path / "second" / "baseline" / "model.safetensors").read_text() == "weights"
    assert Run(tmp_path / "second", {"seed": 1}, resume=True).finished("baseline")
    (tmp_path / "second" / "baseline" / "model.safetensors").write_text("others")
    with pytest.raises(ArtifactError, match=r"baseline/model\.safetensors has been changed"):
        Run(tmp_path / "second", {"seed": 1}, resume=True)
