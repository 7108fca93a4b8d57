"""`package`: what is chosen, what is refused, and that the same run gives the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from transformers import BitImageProcessorPil
from typer.testing import CliRunner, Result

import compressor
from compressor import progress
from compressor.artifact import Artifact
from compressor.cli import app
from compressor.errors import ArtifactError, ExportError, GateError, InputError
from compressor.files import file_digest
from compressor.packaging import assemble, rehearsal
from compressor.packaging.archive import unpack
from validators.report import Report

Reported = Callable[..., Report]


@pytest.fixture(autouse=True)
def _unchanged_switches() -> Any:
    yield
    progress.set_level("off")


@pytest.fixture
def _unrehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the rehearsal is not the matter: it imports transformers and starts a process."""
    monkeypatch.setattr(rehearsal, "rehearse", lambda folder, **trust: None)


unrehearsed = pytest.mark.usefixtures("_unrehearsed")


def invoke(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


# ---- what is made ----


def test_the_command_writes_one_file_that_verifies(run: Path, tmp_path: Path) -> None:
    made = invoke("package", run, "--out", tmp_path / "half.tar.gz", "--json")
    assert made.exit_code == 0, made.output
    data = json.loads(made.stdout)
    assert data["sha256"] == file_digest(tmp_path / "half.tar.gz")
    assert (data["export"], data["signed"]) == ("onnx-int8", False)  # the smaller of two that hold their gates
    checked = invoke("verify", tmp_path / "half.tar.gz", "--json")
    expected = {"path": str(tmp_path / "half.tar.gz"), "kind": "package", "verified": True}
    assert json.loads(checked.stdout) == expected | {"files": 11, "signature": "none"}


@unrehearsed
def test_the_same_run_gives_the_same_bytes_wherever_it_lies(run: Path, tmp_path: Path) -> None:
    first = assemble.package(run, tmp_path / "first.tar.gz")
    moved = shutil.move(run, tmp_path / "moved")
    second = assemble.package(Artifact.open(Path(moved)), tmp_path / "second.tgz")
    assert first.path.read_bytes() == second.path.read_bytes()


@unrehearsed
def test_the_package_holds_the_export_and_what_is_needed_to_run_it(run: Path, tmp_path: Path) -> None:
    folder = unpack(assemble.package(run, export="onnx-fp32").path, tmp_path / "there")
    assert folder.name == "tiny-base-onnx-fp32"
    exported = run / "exports" / "onnx-fp32"
    for path in exported.iterdir():
        assert (folder / "model" / path.name).read_bytes() == path.read_bytes()
    assert (folder / "predict.py").read_bytes() == (files("compressor") / "packaging" / "predict.py").read_bytes()
    assert (folder / "requirements.txt").read_text().splitlines() == [
        "numpy>=2.0",
        "onnxruntime>=1.24",
        "tokenizers>=0.21",
    ]
    assert (folder / "LICENSE-base").read_text() == "The license of the base.\n"
    assert not list(folder.rglob("__pycache__"))


@unrehearsed
def test_the_archive_lies_beside_the_run_unless_it_is_named(run: Path) -> None:
    assert assemble.package(run).path == run.with_name("copy.tar.gz")
    assert sorted(path.name for path in run.parent.iterdir()) == ["copy", "copy.tar.gz"]  # no scratch is left


def test_package_and_verify_are_promised_and_lazy() -> None:
    from compressor.packaging import archive, verification

    assert compressor.package is assemble.package
    assert compressor.verify is verification.verify
    assert compressor.unpack is archive.unpack


def test_a_run_folder_is_verified_as_before(run: Path) -> None:
    found = compressor.verify(run)
    assert (found.kind, found.signature) == ("run", "none")
    assert str(found).endswith("files, none changed")
    with pytest.raises(ArtifactError, match="run folders are not signed"):
        compressor.verify(run, "key.pem")


# ---- what is refused ----


@unrehearsed
def test_an_archive_is_not_overwritten_unasked(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "half.tar.gz"
    target.write_text("mine")
    with pytest.raises(ArtifactError, match=r"exists already\. Add --overwrite"):
        assemble.package(run, target)
    assert target.read_text() == "mine"
    assemble.package(run, target, overwrite=True)
    assert target.read_bytes()[:2] == b"\x1f\x8b"


@unrehearsed
def test_a_folder_is_not_taken_for_an_archive_to_overwrite(run: Path, tmp_path: Path) -> None:
    (tmp_path / "half.tar.gz").mkdir()
    with pytest.raises(ArtifactError, match=r"half\.tar\.gz is a folder: name a file with --out\.$"):
        assemble.package(run, tmp_path / "half.tar.gz", overwrite=True)


def test_an_archive_that_appears_meanwhile_is_not_overwritten_either(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "half.tar.gz"
    monkeypatch.setattr(rehearsal, "rehearse", lambda folder, **trust: target.write_text("another's"))
    with pytest.raises(ArtifactError, match=r"exists already\. Add --overwrite"):
        assemble.package(run, target)
    assert target.read_text() == "another's"
    assert assemble.package(run, target, overwrite=True).bytes > 1000


@pytest.mark.parametrize(
    ("out", "said"), [("half.zip", r"must end in \.tar\.gz or \.tgz"), ("copy/half.tar.gz", "lies in the run folder")]
)
def test_a_place_that_cannot_be_is_refused(run: Path, tmp_path: Path, out: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        assemble.package(run, tmp_path / out)


def test_a_run_without_a_report_is_not_packaged(run: Path) -> None:
    (run / "report.json").unlink()
    result = invoke("package", run)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "has no report, so nothing is proven" in result.stderr
    assert "compressor validate" in result.stderr


def test_a_failed_gate_is_named_and_nothing_is_packaged(run: Path, reported: Reported) -> None:
    reported(run, ("onnx-fp32", "onnx-int8")).save(run)
    result = invoke("package", run)
    assert result.exit_code == 1
    assert "onnx-int8: accuracy" in result.stderr.lower()
    assert "99.00%" in result.stderr
    assert not run.with_name("copy.tar.gz").exists()


@unrehearsed
def test_an_export_that_holds_its_gates_is_taken_before_a_smaller_one_that_fails(run: Path, reported: Reported) -> None:
    reported(run, ("onnx-int8",)).save(run)
    assert assemble.package(run).export == "onnx-fp32"
    with pytest.raises(GateError, match="Gates do not hold"):
        assemble.package(run, export="onnx-int8", overwrite=True)


@unrehearsed
def test_a_failed_gate_may_be_allowed_and_the_card_says_so(run: Path, reported: Reported, tmp_path: Path) -> None:
    reported(run, ("onnx-fp32", "onnx-int8")).save(run)
    made = assemble.package(run, allow_failed_gates=True)
    card = (unpack(made.path, tmp_path / "there") / "README.md").read_text()
    assert made.export == "onnx-int8"
    assert "**1 of 1 gates does not hold.**" in card
    assert "It was packaged although a gate does not hold" in card


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda export: (export / "config.json").write_text("{}"), r"config\.json has changed"),
        (lambda export: (export / "tokenizer.json").unlink(), r"tokenizer\.json is gone"),
        (lambda export: (export / "notes.txt").write_text("x"), r"notes\.txt is new"),
    ],
)
def test_an_export_that_was_changed_after_it_was_measured_is_refused(
    run: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(run / "exports" / "onnx-int8")
    with pytest.raises(GateError, match=rf"not about the export onnx-int8 as it is now: {said}\. `validate`"):
        assemble.package(run)


def test_a_report_that_names_no_files_is_refused(run: Path, reported: Reported) -> None:
    found = reported(run)
    Report(found.exports, {**found.context, "files": {}}).save(run)
    with pytest.raises(GateError, match="it does not say which files it measured"):
        assemble.package(run)


@pytest.mark.parametrize(
    ("export", "error", "said"),
    [
        ("onnx-int4", ArtifactError, "has no export onnx-int4 for ONNX Runtime.*it has onnx-fp32, onnx-int8"),
        ("dense-onnx-int8", ArtifactError, "has no export dense-onnx-int8"),
        ("baseline/onnx-int8", ArtifactError, "has no export baseline/onnx-int8"),
        ("onnx-new", GateError, "The report says nothing of onnx-new"),
    ],
)
def test_an_export_that_is_not_there_or_not_measured_is_told(
    run: Path, export: str, error: type[Exception], said: str
) -> None:
    shutil.copytree(run / "exports" / "onnx-int8", run / "exports" / "onnx-new")
    with pytest.raises(error, match=said):
        assemble.package(run, export=export)


def test_a_measured_export_of_another_runtime_is_refused_with_what_packages_run(run: Path, reported: Reported) -> None:
    found = reported(run)
    (run / "exports" / "executorch-int8").mkdir()
    (run / "exports" / "executorch-int8" / "model.pte").touch()
    other = replace(found.exports[-1], name="executorch-int8", runtime="executorch")
    Report((*found.exports, other), found.context).save(run)
    with pytest.raises(
        ArtifactError, match="no export executorch-int8 for ONNX Runtime, which packages run; it has onnx"
    ):
        assemble.package(run, export="executorch-int8")


def test_a_run_without_exports_says_how_to_make_one(run: Path) -> None:
    shutil.rmtree(run / "exports")
    with pytest.raises(ArtifactError, match=r"has no measured export.*--to onnx --precision int8"):
        assemble.package(run)


def test_a_folder_that_is_no_run_is_bad_usage(tmp_path: Path) -> None:
    assert invoke("package", tmp_path).exit_code == 2


def test_a_text_model_without_a_fast_tokenizer_is_refused(run: Path, reported: Reported) -> None:
    (run / "exports" / "onnx-int8" / "tokenizer.json").unlink()
    reported(run).save(run)
    with pytest.raises(InputError, match=rf"^{run}/exports/onnx-int8 has no tokenizer\.json"):
        assemble.package(run)


# ---- the rehearsal ----


@pytest.mark.parametrize(
    ("task", "fact"),
    [("text-classification", {"truncation_side": "left"}), ("multiple-choice", {"opening": [7]})],
)
def test_texts_that_predict_reads_otherwise_than_the_task_are_told(
    packaged: Callable[[str], Path], tmp_path: Path, task: str, fact: dict[str, Any]
) -> None:
    folder = unpack(packaged(task), tmp_path)
    rehearsal.rehearse(folder)
    facts = json.loads((folder / "package.json").read_text())
    (folder / "package.json").write_text(json.dumps(facts | fact))
    with pytest.raises(ExportError, match=r"predict\.py does not make the inputs that \w+ makes, so the package"):
        rehearsal.rehearse(folder)


def test_a_tokenizer_whose_class_ships_as_code_is_packaged_where_that_is_trusted(
    run: Path, reported: Reported, tmp_path: Path
) -> None:
    exported = run / "exports" / "onnx-fp32"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    other = {"model_type": "vit"}  # for which transformers has no tokenizer
    for name, changes in {"tokenizer_config.json": own, "config.json": other}.items():
        (exported / name).write_text(json.dumps(json.loads((exported / name).read_text()) | changes))
    (exported / "own.py").write_text(
        "from transformers import PreTrainedTokenizerFast as Base\nclass Own(Base): pass\n"
    )
    manifest = json.loads((run / "artifact.json").read_text())
    (run / "artifact.json").write_text(json.dumps(manifest | {"trust_remote_code": True}))
    reported(run).save(run)
    command = [sys.executable, "-m", "compressor", "package", run, "--export", "onnx-fp32", "--out", tmp_path / "a.tgz"]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}  # where transformers copies code to
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (refused.returncode, (tmp_path / "a.tgz").exists()) == (2, False)
    assert f"{run} was made of a checkpoint with code of its own" in refused.stderr
    subprocess.run([*command, "--trust-remote-code"], env=environment, check=True)
    assert (unpack(tmp_path / "a.tgz", tmp_path) / "model" / "own.py").is_file()


def test_an_image_processor_that_does_more_is_refused(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(made("image-classification") / "exports" / "onnx-fp32", folder / "model")
    (folder / "package.json").write_text('{"task": "image-classification", "labels": ["a", "b", "c"]}')
    shutil.copyfile(rehearsal.__file__.replace("rehearsal", "predict"), folder / "predict.py")
    rehearsal.rehearse(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 20, "longest_edge": 30}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(folder / "model")
    with pytest.raises(ExportError, match=r"predict\.py does not make the inputs that BitImageProcessor"):
        rehearsal.rehearse(folder)


def test_a_graph_that_predict_cannot_run_is_told_before_anything_is_written(run: Path, reported: Reported) -> None:
    (run / "exports" / "onnx-int8" / "model.onnx").write_bytes(b"no graph")
    reported(run).save(run)
    with pytest.raises(ExportError, match=r"predict\.py fails with this export"):
        assemble.package(run)
    assert not run.with_name("copy.tar.gz").exists()
