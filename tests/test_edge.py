"""The exports for the edge: model.ort and the fused graph are proven, held against their dense peers, and packaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from compressor import artifact, exporting, proving
from compressor.files import file_digest
from compressor.packaging import assemble
from compressor.packaging.archive import unpack
from exporters.base import Session
from exporters.onnx import runtime as onnx_runtime
from validators.report import Report

QUANTITIES = {"accuracy", "parity", "size", "peak_memory", "latency_p50"}


@pytest.fixture(scope="module")
def copied(tiny_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run with both exports in it."""
    run = Path(shutil.copytree(tiny_run[1], tmp_path_factory.mktemp("edge") / "run"))
    shutil.rmtree(run / "exports" / "onnx-fp32")
    artifact.reseal(run)
    exporting.export(run, precision="fp32-fused")
    exporting.export(run, "ort", precision="int8")
    return run


@pytest.fixture(scope="module")
def report(copied: Path) -> Report:
    return proving.validate(copied)


def test_the_portable_graph_is_written_beside_the_fused_one(copied: Path) -> None:
    names = {path.name for path in (copied / "exports").iterdir()}
    assert names == {"onnx-fp32", "onnx-fp32-fused", "ort-int8"}
    dense = {path.name for path in (copied / "baseline").iterdir() if path.is_dir()}
    assert dense >= {"onnx-fp32", "onnx-fp32-fused", "ort-fp32", "ort-int8"}
    portable = json.loads((copied / "exports" / "onnx-fp32" / "export.json").read_text())
    assert "MultiHeadAttention" not in portable["nodes"]


def test_each_is_a_candidate_of_its_own_and_measured_by_every_check(report: Report) -> None:
    found = {export.name: export for export in report.exports}
    assert {name for name, export in found.items() if export.role == "candidate"} == {
        "onnx-fp32",
        "onnx-fp32-fused",
        "ort-int8",
    }
    assert {"dense-onnx-fp32-fused", "dense-ort-int8"} <= {
        name for name, export in found.items() if export.role == "reference"
    }
    for name in ("onnx-fp32-fused", "ort-int8"):
        assert {finding.quantity for finding in found[name].findings} >= QUANTITIES
        parity = found[name].finding("parity")
        assert parity is not None
        assert parity.candidate > 0.9


def test_a_package_of_it_predicts_what_the_export_predicts(copied: Path, report: Report, tmp_path: Path) -> None:
    assert report.exports
    packed = assemble.package(copied, tmp_path / "edge.tar.gz", export="ort-int8", allow_failed_gates=True)
    folder = unpack(packed.path, tmp_path / "there")
    assert {path.name for path in (folder / "model").iterdir()} >= {"model.ort", "required_operators.config"}
    model = json.loads((folder / "bom.cdx.json").read_text())["metadata"]["component"]
    assert model["hashes"][0]["content"] == file_digest(copied / "exports" / "ort-int8" / "model.ort")

    done = subprocess.run(
        [sys.executable, "-I", folder / "predict.py", "word1 word4"], capture_output=True, text=True, check=True
    )
    ids = Tokenizer.from_file(str(folder / "model" / "tokenizer.json")).encode("word1 word4").ids
    runner = onnx_runtime.load(copied / "exports" / "ort-int8", Session(threads=1))
    (logits,) = runner({name: np.array([row]) for name, row in {"input_ids": ids, "attention_mask": [1, 1]}.items()})[
        "logits"
    ]
    found = json.loads(done.stdout)
    expected = np.exp(logits) / np.exp(logits).sum()
    assert sorted(found["probabilities"].values()) == pytest.approx(sorted(expected.tolist()), abs=1e-5)
