"""Which export is packaged where none is named, and what is said where the report advises another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor import progress
from compressor.errors import ArtifactError
from compressor.packaging import proof
from compressor.recipe import Gate
from validators.base import Finding
from validators.export_report import ExportReport
from validators.report import Report


def export(name: str, size: float) -> ExportReport:
    """A low-rank export that holds its gate; in MiB, dense has 100."""
    accuracy = Finding("accuracy", "share", "higher", 0.95, 0.95).judged(Gate(type="threshold", value=0.9))
    runtime, _, precision = name.partition("-")
    return ExportReport(name, runtime, precision, "candidate", (accuracy, Finding("size", "MiB", "lower", 100.0, size)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with exports of two runtimes."""
    for name in ("onnx-int8", "openvino-int8"):
        (tmp_path / "exports" / name).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def _told() -> Iterator[None]:
    progress.set_level("normal")
    yield
    progress.set_level("off")


def test_a_winner_that_packages_cannot_run_is_named_with_the_exports_that_they_can(run: Path) -> None:
    from validators import contest

    exports = contest.crowned([export("onnx-int8", 40), export("openvino-int8", 20)])
    report = Report(exports, {"recipe": {"export": "auto"}})
    assert report.winner is not None
    assert report.winner.name == "openvino-int8"
    with pytest.raises(ArtifactError, match=r"openvino-int8 has won.*ONNX Runtime.*--export exports/onnx-int8"):
        proof.choose(report, run)
    assert proof.choose(report, run, "exports/onnx-int8").name == "onnx-int8"


@pytest.mark.usefixtures("_told")
def test_an_advised_export_that_packages_cannot_run_is_not_offered(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert proof.choose(Report((export("onnx-int8", 40), export("openvino-int8", 20))), run).name == "onnx-int8"
    said = capsys.readouterr().err
    assert "the report advises openvino-int8, which runs on openvino and cannot be packaged" in said
    assert "--export" not in said


@pytest.mark.usefixtures("_told")
def test_an_advised_export_that_packages_can_run_is_offered(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "exports" / "onnx-fp32").mkdir()
    (run / "exports" / "onnx-int8" / "model.onnx").write_bytes(bytes(9))  # what is chosen by, whatever was measured
    assert proof.choose(Report((export("onnx-int8", 40), export("onnx-fp32", 20))), run).name == "onnx-fp32"
    (run / "exports" / "onnx-fp32" / "model.onnx").write_bytes(bytes(99))
    assert proof.choose(Report((export("onnx-int8", 40), export("onnx-fp32", 20))), run).name == "onnx-int8"
    assert "the report advises onnx-fp32: --export exports/onnx-fp32" in capsys.readouterr().err
