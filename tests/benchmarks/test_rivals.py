"""Rivals: what their commands leave is measured beside ours, what fails is a row with its sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rival_table
import rival_ways
import rivals
import suites
from results import Row, read

from compressor.errors import InputError

LABELS = {number: f"label{number}" for number in range(3)}
WAYS = (
    rival_ways.Way("optimum fp32", "optimum", "optimum-cli export --model {model} {out}"),
    rival_ways.Way("optimum int8", "optimum", "optimum-cli quantize {source} {out}", source="optimum fp32"),
    rival_ways.Way("olive run", "olive", "olive run --config {config}", passes={}),
)
OPTIMUM = """#!/bin/sh
echo run >> "$COUNTED"
if [ "$1" = quantize ]; then echo "RuntimeError: no type for $PWD/made/x"; exit 1; fi
for out; do :; done
cp "$GRAPH" "$out/model.onnx"
"""
OLIVE = """#!/bin/sh
echo run >> "$COUNTED"
echo "No output model produced."
"""


@pytest.fixture
def trained(tiny_suite: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A saved dense model of the suite `tiny`, and the folder that the rivals' fake programs lie in."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from exporters.onnx import OnnxExporter

    suite = tiny_suite()
    monkeypatch.setitem(suites.SUITES, "tiny", suite)
    folder, work = tmp_path / "models" / "tiny-dense-1.0-0", tmp_path / "work"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=3, id2label=LABELS)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    OnnxExporter().export(model.eval(), suite.task.example(tokenizer), tmp_path / "theirs")
    for rival, program, text in (("optimum", "optimum-cli", OPTIMUM), ("olive", "olive", OLIVE)):
        place = work / "environments" / rival / "venv" / "bin"
        place.mkdir(parents=True)
        (place / program).write_text(text)
        (place / program).chmod(0o755)
    monkeypatch.setattr(rival_ways, "prepare", lambda *_: [])
    monkeypatch.setattr(rival_ways, "versions", lambda *_: {"tool": "1"})
    monkeypatch.setattr(rival_ways, "WAYS", WAYS)
    monkeypatch.setattr(rivals, "WAYS", WAYS)
    monkeypatch.setenv("GRAPH", str(tmp_path / "theirs" / "model.onnx"))
    monkeypatch.setenv("COUNTED", str(tmp_path / "counted"))
    return folder, work


def test_files_of_rivals_are_measured_beside_ours_and_nothing_runs_twice(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rivals.jsonl"
    words = [str(trained[0]), "--work", str(trained[1]), "--out", str(out), "--rows", "3", "--passes", "2"]
    for _ in range(2):
        assert rivals.main([*words, "--threads", "1"]) == 0, capsys.readouterr().err
    assert len((tmp_path / "counted").read_text().splitlines()) == len(WAYS)
    *exports, latency = read(out)
    by_name = {row["export"]: row for row in exports}
    assert set(by_name) == {"ours dense int8", "ours dense int8-fused", *(way.name for way in WAYS)}
    assert by_name["optimum int8"]["failure"] == "RuntimeError: no type for optimum-int8/made/x"
    assert by_name["olive run"]["failure"] == "No output model produced."
    same = by_name["optimum fp32"]["findings"]
    assert same["accuracy"]["candidate"] == same["accuracy"]["dense"]  # it is our own fp32 graph
    assert set(latency["milliseconds"]) == {rivals.BASE, "ours dense int8", "ours dense int8-fused", "optimum fp32"}
    assert set(latency["ratios"]["ours dense int8"]) == {rivals.BASE, "optimum fp32"}
    assert str(tmp_path) not in out.read_text()
    lines = "\n".join(rival_table.table(read(out)))
    assert "against optimum fp32" in lines
    assert "- olive run: no file that runs. No output model produced." in lines


def test_a_rival_that_cannot_be_had_is_told(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> list[str]:
        raise rival_ways.NotHad("no network")

    monkeypatch.setattr(rival_ways, "prepare", fails)
    job = rival_ways.Job(trained[0], "text-classification", "bert", {}, tmp_path, tmp_path / "job", trained[1])
    with pytest.raises(rival_ways.NoGraph, match="optimum cannot be had: no network"):
        rival_ways.make(WAYS[0], job)


def test_folders_that_hold_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing: no folder <suite>-<arm>-<budget>-<seed>"):
        rivals.contests([tmp_path / "nothing"], tmp_path)


def test_each_row_is_run_by_all_before_the_next_and_the_first_pass_is_left_out() -> None:
    seen: list[tuple[str, int]] = []
    rows = [{"x": np.array([[number]])} for number in range(3)]
    runners: list[Any] = [lambda row, name=name: seen.append((name, int(row["x"][0, 0]))) for name in "ab"]
    times = rivals.timed(runners, rows, passes=2, clock="wall")
    assert times.shape == (6, 2)
    assert [number for _, number in seen] == [number for _ in range(3) for number in (0, 0, 1, 1, 2, 2)]


def test_a_row_alone_has_no_padding() -> None:
    batch = {"input_ids": np.array([[5, 6, 0], [7, 8, 9]]), "attention_mask": np.array([[1, 1, 0], [1, 1, 1]])}
    assert rivals.alone(batch | {"labels": np.array([0, 1])}, 0)["input_ids"].tolist() == [[5, 6]]


def test_an_image_has_a_fixed_size_in_olives_configuration(tmp_path: Path) -> None:
    shapes = {"pixel_values": (1, 3, 98, 98)}
    job = rival_ways.Job(tmp_path, "image-classification", "dinov2", shapes, tmp_path, tmp_path, tmp_path)
    found = rival_ways.workflow(job, {"quantization": rival_ways.STATIC}, tmp_path)
    assert found["input_model"]["io_config"]["input_shapes"] == [[1, 3, 98, 98]]
    assert found["passes"]["fusions"]["model_type"] == "vit"
    assert list(found["passes"]) == ["conversion", "fusions", "quantization"]


def test_ours_is_held_against_the_fastest_file_of_a_rival() -> None:
    def row(name: str, accuracy: float, size: float, **more: str) -> Row:
        memory = {"details": {"dense_peak": 90, "dense_floor": 50, "candidate_peak": 70, "candidate_floor": 50}}
        both = {"accuracy": {"dense": 0.9, "candidate": accuracy}, "size": {"dense": 80, "candidate": size}}
        findings = both | {"peak_memory": memory}
        return {"what": "export", "suite": "a", "seed": 0, "export": name, "findings": findings} | more

    rows = [row("ours int8", 0.89, 15), row("slow", 0.9, 25, rival="olive"), row("fast", 0.88, 20, rival="olive")]
    times = {"ours dense fp32": 8.0, "ours int8": 2.0, "slow": 5.0, "fast": 4.0}
    ratios = {name: {"ours dense fp32": [time / 8, 0.1, 0.9]} for name, time in times.items()}
    ratios["ours int8"]["fast"] = [0.5, 0.45, 0.55]
    timed = {"what": "latency", "suite": "a", "seed": 0, "threads": 1, "rows": 3, "passes": 2, "ratios": ratios}
    timed |= {"milliseconds": {name: {"p50": time} for name, time in times.items()}}
    timed |= {"versions": {"onnxruntime": "1"}, "machine": {"cpu": "one"}}
    lines = [line for line in rival_table.table([*rows, timed]) if line.startswith("|")]
    head, _, dense, ours, _, fast = lines
    assert "against fast" in head
    assert dense.split("|")[2:6] == [" 0.9000 ", " 80.0 ", " 40 ", " 8.00 ms "]
    assert ours.split("|")[5:7] == [" 2.00 ms, 0.250x ", " 0.75x size, 0.50x (0.45 to 0.55) time, +1.0 points "]
    assert fast.endswith("|  |")
