"""A dense export as the one file that ships: where it won or was named, and nothing low-rank is said of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from compressor.artifact import files_of, reseal
from compressor.errors import GateError
from compressor.files import file_digest
from compressor.packaging import assemble, rehearsal
from compressor.packaging.archive import unpack
from compressor.packaging.verification import verify
from validators.base import Finding
from validators.export_report import ExportReport
from validators.report import Report

GATES = {"accuracy": {"type": "max-degradation", "value": 0.02}, "size": {"type": "threshold", "value": 4}}


def findings(accuracy: float, size: float, judged: bool) -> tuple[Finding, ...]:
    """Gates as in GATES, dense at 0.95 and 10 MiB."""
    verdicts: tuple[Any, Any] = ("pass" if accuracy >= 0.93 else "fail", "pass" if size <= 4 else "fail")
    limits = (0.93, 4.0) if judged else (None, None)
    found = (
        Finding("accuracy", "", "higher", 0.95, accuracy, limit=limits[0]),
        Finding("size", "MiB", "lower", 10.0, size, limit=limits[1]),
    )
    return (
        tuple(replace(one, verdict=verdict) for one, verdict in zip(found, verdicts, strict=True)) if judged else found
    )


@pytest.fixture
def settle(run: Path, reported: Callable[..., Report]) -> Callable[..., Path]:
    """Gives the run a dense int8 export and a report in which it won, or was only shown beside the others."""

    def settle(*, auto: bool, accuracy: float = 0.95) -> Path:
        shutil.copytree(run / "exports" / "onnx-int8", run / "baseline" / "onnx-int8")
        (run / "baseline" / "config.json").write_text("{}")
        reseal(run)
        dense = findings(accuracy, 2.5, judged=auto)
        exports = (
            ExportReport("onnx-fp32", "onnx", "fp32", "reference" if auto else "candidate", findings(0.9, 6, True)),
            ExportReport("dense-onnx-int8", "onnx", "int8", "candidate" if auto else "reference", dense),
        )
        listed = {name: file_digest(run / name) for name in files_of(run) if "/onnx-" in name}
        recipe = {"export": "auto" if auto else [], "gates": GATES}
        Report(exports, {**reported(run).context, "files": listed, "recipe": recipe}).save(run)
        return run

    return settle


@pytest.fixture
def _unrehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "rehearse", lambda folder, **trust: None)


unrehearsed = pytest.mark.usefixtures("_unrehearsed")


def test_a_dense_winner_is_packaged_unasked_and_works(settle: Callable[..., Path], tmp_path: Path) -> None:
    run = settle(auto=True)
    made = assemble.package(run, tmp_path / "dense.tar.gz")
    assert made.export == "dense-onnx-int8"
    verify(made.path)
    folder = unpack(made.path, tmp_path / "there")
    assert folder.name == "tiny-base-dense-onnx-int8"
    for path in (run / "baseline" / "onnx-int8").iterdir():
        assert (folder / "model" / path.name).read_bytes() == path.read_bytes()


@unrehearsed
def test_card_and_bill_of_materials_claim_nothing_low_rank(settle: Callable[..., Path], tmp_path: Path) -> None:
    folder = unpack(assemble.package(settle(auto=True)).path, tmp_path)
    card = (folder / "README.md").read_text()
    bill = json.loads((folder / "bom.cdx.json").read_text())["metadata"]["component"]
    assert "dense, adapted in full and not compressed to low rank, exported for ONNX Runtime\n(int8)" in card
    assert "2,000 parameters, none left out; int8 is what makes it smaller" in card
    assert "All 2 gates that were set hold." in card
    assert yaml.safe_load(card.split("---\n")[1])["tags"] == ["onnx", "int8"]
    assert bill["description"].endswith("dense, adapted in full and not compressed to low rank, for ONNX Runtime")
    for told in (card, json.dumps(bill)):
        assert "jactus" not in told.lower()
        assert "1,200" not in told


@unrehearsed
@pytest.mark.parametrize("name", ["dense-onnx-int8", "baseline/onnx-int8", "baseline/onnx-int8/"])
def test_a_dense_export_is_packaged_where_it_is_named_and_is_held_to_the_gates(
    settle: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    made = assemble.package(settle(auto=False), export=name)
    assert made.export == "dense-onnx-int8"
    card = (unpack(made.path, tmp_path / "there") / "README.md").read_text()
    assert "| Size | 10.00 MiB | 2.500 MiB | 0.250 | - | max 4.000 MiB | pass |" in card


@unrehearsed
def test_a_dense_export_that_does_not_hold_the_recipes_gates_is_refused(settle: Callable[..., Path]) -> None:
    with pytest.raises(GateError, match=r"dense-onnx-int8: accuracy fails: candidate 92\.00%"):
        assemble.package(settle(auto=False, accuracy=0.92), export="baseline/onnx-int8")


@unrehearsed
def test_a_dense_export_that_is_not_named_is_not_taken_for_a_candidate(settle: Callable[..., Path]) -> None:
    with pytest.raises(GateError, match="onnx-fp32: size fails"):
        assemble.package(settle(auto=False))


def test_a_dense_export_that_was_changed_after_it_was_measured_is_refused(settle: Callable[..., Path]) -> None:
    run = settle(auto=True)
    (run / "baseline" / "onnx-int8" / "config.json").write_text("{}")
    with pytest.raises(GateError, match=r"not about the export dense-onnx-int8 as it is now: config\.json has changed"):
        assemble.package(run)


def test_dense_fp32_is_said_to_be_what_all_is_held_against(settle: Callable[..., Path]) -> None:
    run = settle(auto=False)
    shutil.copytree(run / "exports" / "onnx-fp32", run / "baseline" / "onnx-fp32")
    with pytest.raises(GateError, match="it is what all exports are held against"):
        assemble.package(run, export="baseline/onnx-fp32")
