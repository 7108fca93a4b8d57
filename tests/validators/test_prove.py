"""What a proof is of, and what it leaves where an export cannot be run: on a finished run of seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from compressor import exporting, pipeline, proving, registry, storage
from compressor.artifact import Artifact, verify
from compressor.errors import ArtifactError, DependencyError, RankfoldError, ResourceError, RuntimeFailure
from compressor.recipe import ValidateSection, read
from validators import measure, prove
from validators.base import Subject
from validators.measure import checks
from validators.report import Report


@pytest.fixture
def copied(tiny_run: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run[1], tmp_path / "run"))


@pytest.fixture
def two(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with onnx-fp32 and onnx-int8, whose proof takes no time: only sizes are measured."""
    exporting.export(copied, "onnx", precision="int8")
    monkeypatch.setattr(registry, "TABLES", registry.TABLES | {"checks": {"size": "validators.size:Size"}})
    return copied


def without_gates(folder: Path, **changes: Any) -> Artifact:
    """The artifact as if its recipe had no gates but what else is given."""
    artifact = Artifact.open(folder)
    artifact.manifest["recipe"].update({"gates": {}} | changes)
    return artifact


def failing(names: Sequence[str], error: RankfoldError) -> Callable[..., Any]:
    """`measure`, to which these exports cannot be run."""

    def run(dense: Subject, candidates: Sequence[Subject], *more: Any) -> Any:
        if candidates[0].name in names:
            raise error
        return measure.measure(dense, candidates, *more)

    return run


def test_a_part_of_the_exports_is_no_proof_of_the_run(two: Path) -> None:
    artifact = without_gates(two)
    proving.validate(artifact, ["onnx-int8"])
    assert proving.measured(two) is None
    proving.validate(artifact)
    found = proving.measured(two)
    assert found is not None
    assert [export.name for export in found.exports] == ["onnx-fp32", "onnx-int8", "dense-onnx-int8"]


def test_one_that_cannot_be_run_loses_no_other_measurement(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "measure", failing(["onnx-int8"], ResourceError("onnx-int8 was killed.")))
    with pytest.raises(ResourceError, match="was killed"):
        proving.validate(without_gates(two))
    report = Report.read(two)
    assert [export.name for export in report.exports] == ["onnx-fp32", "dense-onnx-int8"]
    assert (report.verdict, report.headline) == ("fail", "Fail: onnx-int8 could not be measured")
    assert "onnx-int8 could not be measured, so nothing here is said of it: onnx-int8 was killed." in report.remarks
    assert "onnx-int8 was killed." in (two / "junit.xml").read_text()
    assert proving.measured(two) is None


def test_a_reference_that_cannot_be_run_is_left_out_and_said(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "measure", failing(["dense-onnx-int8"], RuntimeFailure("an odd graph")))
    report = proving.validate(without_gates(two))
    assert [export.name for export in report.exports] == ["onnx-fp32", "onnx-int8"]
    assert report.verdict == "pass"
    assert any("dense-onnx-int8 could not be measured" in remark for remark in report.remarks)
    assert proving.measured(two) is not None


def test_of_the_best_of_many_those_that_run_compete(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "measure", failing(["onnx-fp32"], RuntimeFailure("an odd graph")))
    artifact = without_gates(two, export="auto")
    assert [export.name for export in proving.validate(artifact).exports] == ["onnx-int8", "dense-onnx-int8"]
    every = ["onnx-fp32", "onnx-int8", "dense-onnx-int8"]
    monkeypatch.setattr(prove, "measure", failing(every, RuntimeFailure("an odd graph")))
    with pytest.raises(RuntimeFailure, match="an odd graph"):
        proving.validate(artifact)


def test_the_best_of_many_is_proven_by_the_confidence_of_all_together() -> None:
    task = registry.task("text-classification")
    for contestants, confidence in ((1, 0.95), (10, 0.995)):
        found = {type(check).__name__: check for check in checks(ValidateSection(), task, contestants)}
        assert [found[name].confidence for name in ("Accuracy", "Parity")] == pytest.approx([confidence] * 2)  # type: ignore[attr-defined]
        assert found["Latency"].confidence == 0.95  # type: ignore[attr-defined]


def test_a_missing_dense_export_is_told_before_any_work_and_made_again_by_the_run(
    tiny_run: tuple[Path, Path], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / "baseline" / "onnx-fp32")
    monkeypatch.setattr(storage, "load", lambda *_, **__: pytest.fail("a model was loaded first"))
    with pytest.raises(ArtifactError, match=r"onnx-fp32 is no export.*--to onnx --precision fp32 --overwrite"):
        proving.validate(copied)
    monkeypatch.undo()
    exporting.export_all(Artifact.open(copied), read(tiny_run[0]))
    assert (copied / "baseline" / "onnx-fp32" / "model.onnx").is_file()
    verify(copied)


def test_a_system_that_does_not_tell_memory_is_told_before_any_work(
    tiny_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking() -> Any:
        raise DependencyError("Peak memory cannot be measured here.")

    monkeypatch.setattr("validators.process_memory.resident", lacking)
    with pytest.raises(DependencyError, match="cannot be measured here"):
        pipeline.run(read(tiny_run[0]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
