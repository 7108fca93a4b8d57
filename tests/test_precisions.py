"""The line's exports in other precisions than fp32: calibrated on the recipe's data, proven, refused in sentences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compressor import data, exporting, progress, proving
from compressor.artifact import Artifact
from compressor.errors import DataError, ExportError, InputError
from compressor.recipe import ExportSection, Recipe
from validators.report import Report


@pytest.fixture
def copied(tiny_run: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the finished run, which may be changed."""
    return Path(shutil.copytree(tiny_run[1], tmp_path / "run"))


def scales(folder: Path) -> dict[str, np.ndarray]:
    """What activations are divided by, by name."""
    graph = onnx.load(folder / "model.onnx").graph
    inputs = {node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"}
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in inputs}


def test_static_int8_is_calibrated_on_the_recipes_data_and_proven_beside_the_dense_one(copied: Path) -> None:
    made = exporting.export(copied, precision="int8-static")
    assert made == copied / "exports" / "onnx-int8-static"
    assert scales(made)
    assert scales(copied / "baseline" / "onnx-int8-static")
    report: Report = proving.validate(copied)
    found = {export.name: export for export in report.exports}
    assert found["onnx-int8-static"].role == "candidate"
    assert found["dense-onnx-int8-static"].role == "reference"
    for name in ("onnx-int8-static", "dense-onnx-int8-static"):
        parity_of_it = found[name].finding("parity")
        assert parity_of_it is not None
        assert parity_of_it.candidate > 0.9  # of the rows get the label that torch gives them
    parity = json.loads((made / "export.json").read_text())["parity"]
    assert all(np.isfinite(figure["max_difference"]) for figure in parity)


def test_calibration_on_other_data_is_refused_and_leaves_nothing(copied: Path, tmp_path: Path) -> None:
    state = copied / "artifact.json"
    manifest = json.loads(state.read_text())
    manifest["data"]["train"]["digest"] = "0" * 64
    state.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="is not the training data that the artifact was made with"):
        exporting.export(copied, precision="int8-static")
    assert not (copied / "exports" / "onnx-int8-static").exists()


def test_a_precision_that_no_exporter_writes_is_refused_before_the_run_is_read(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match="int8-static, int8-weights, int4, fp32-fused and int8-fused, not 'int3'",
    ):
        exporting.export(tmp_path / "nothing", precision="int3")


def test_the_best_of_all_exports_is_found_on_real_measurements(copied: Path) -> None:
    state = copied / "artifact.json"
    manifest = json.loads(state.read_text())
    manifest["recipe"] |= {"export": "auto", "gates": {"size": {"type": "percent-min-improvement", "value": 1}}}
    state.write_text(json.dumps(manifest))
    report: Report = proving.validate(copied)
    assert report.winner is not None
    assert [export.name for export in report.exports if export.role == "candidate"] == [report.winner.name]
    assert all(export.finding("size").limit is not None for export in report.exports)  # type: ignore[union-attr]
    written = json.loads((copied / "report.json").read_text())
    assert written["winner"] in written["front"]


def test_a_precision_that_a_model_cannot_have_is_left_out_of_a_contest_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing:
        def make(self, *_: object, **__: object) -> None:
            raise ExportError("The quantizer fails on this graph.")

    said: list[str] = []
    monkeypatch.setattr(progress, "note", said.append)
    section, failing = ExportSection(precision="int4"), cast("exporting.Exporting", Failing())
    exporting._try(failing, section, required=False, overwrite=False)
    assert said == ["onnx-int4 is left out: The quantizer fails on this graph."]
    with pytest.raises(ExportError):
        exporting._try(failing, section, required=True, overwrite=False)


def test_the_data_is_read_once_for_all_calibrated_exports(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    real = data.prepare

    def counted(*given: Any) -> data.Data:
        calls.append(given)
        return real(*given)

    monkeypatch.setattr(data, "prepare", counted)
    artifact = Artifact.open(copied)
    recipe = Recipe.model_validate(
        artifact.manifest["recipe"] | {"export": [{"precision": "int8"}, {"precision": "int4"}]}
    )
    exporting.export_all(artifact, recipe)
    assert (copied / "exports" / "onnx-int8").is_dir()
    assert (copied / "exports" / "onnx-int4").is_dir()
    assert len(calls) == 1
