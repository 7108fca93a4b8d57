from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor import progress, registry
from compressor.errors import ArtifactError, DependencyError, RecipeError, ResourceError
from compressor.recipe import Gate, ValidateSection
from compressor.tasks.text_classification import TextClassification
from exporters.base import Session
from validators import memory
from validators.base import Evaluation, Subject
from validators.measure import checks, measure
from validators.memory import Memory
from validators.size import Size

Pair = tuple[Subject, Subject]
QUICK = ValidateSection(runs=10, sequence_length=8)
CLASSIFYING = [name for name in registry.TABLES["checks"] if name != "perplexity"]  # see test_perplexity.py
FP32 = {"runtime": "onnx", "precision": "fp32"}
GUIDE = Path(__file__).parents[2] / "docs" / "add-a-check.md"


@pytest.mark.parametrize("name", CLASSIFYING)
def test_every_check_is_a_frozen_dataclass_that_measures_what_it_names(name: str, pair: Pair):
    cls = registry.load("checks", name)
    assert is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    known = {field.name for field in fields(cls)}
    check = cls(**{key: value for key, value in {"runs": 10, "repeats": 1, "warmup": 1}.items() if key in known})
    findings = check.run(*pair)
    assert tuple(finding.quantity for finding in findings) == cls.quantities
    for finding in findings:
        assert finding.verdict == "ungated"
        assert all(isinstance(value, int | float) for value in (finding.dense, *finding.details.values()))


def test_knobs_come_from_the_recipe_where_it_has_them():
    section = ValidateSection(batch_size=3, sequence_length=17, runs=55, confidence=0.8)
    built = {type(check).__name__: check for check in checks(section, TextClassification())}
    latency: Any = built["Latency"]
    assert (latency.batch_size, latency.sequence_length, latency.runs, latency.confidence) == (3, 17, 55, 0.8)
    assert latency.warmup == type(latency)().warmup
    assert built["Memory"].sequence_length == 17  # type: ignore[attr-defined]


def test_every_quantity_of_every_candidate_is_measured_and_judged(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    dense, small = pair
    again = replace(small, name="again")
    gates = {
        "size": Gate(type="percent-min-improvement", value=90),
        "peak_memory": Gate(type="percent-min-improvement", value=20),
        "parity": Gate(type="threshold", value=0.8),
        "parity_max_difference": Gate(type="threshold", value=1e-3),
        "accuracy": Gate(type="threshold", value=2),
    }
    seen: list[tuple[str, int]] = []

    def track(jobs: Sequence[Any], title: str) -> Sequence[Any]:
        seen.append((title, len(jobs)))
        return jobs

    monkeypatch.setattr(progress, "track", track)
    found = measure(dense, [small, again], QUICK, gates)
    assert list(found) == ["small", "again"]
    assert seen == [("measuring", 2 * len(CLASSIFYING))]
    verdicts = {finding.quantity: finding.verdict for finding in found["small"]}
    assert verdicts == {
        "parity": "pass",
        "parity_max_difference": "pass",
        "accuracy": "fail",
        "peak_memory": "pass",
        "latency_p50": "ungated",
        "latency_p90": "ungated",
        "latency_p99": "ungated",
        "size": "pass",
    }


def test_a_gate_on_what_nobody_measures_is_refused_before_anything_runs(pair: Pair):
    absent = replace(pair[1], path=Path("/absent"))
    with pytest.raises(RecipeError, match=r"gates\.latency_p5:.*Did you mean 'latency_p50'"):
        measure(pair[0], [absent], QUICK, {"latency_p5": Gate(type="threshold", value=1)})


def test_a_missing_device_ends_the_measurement_with_the_environment_error(pair: Pair):
    lacking = replace(pair[1], runtime="lacking", session=Session(device="cuda"))
    with pytest.raises(DependencyError) as caught:
        measure(pair[0], [lacking], QUICK, {})
    assert caught.value.exit_code == 3


def test_memory_takes_turns_and_lays_its_spread_around_the_dense_median(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    peaks = {"dense": [100.0, 110.0, 90.0], "small": [50.0, 45.0, 60.0]}
    turns: list[str] = []

    def fake(mode: str, subjects: list[Subject], inputs: Any, **knobs: int) -> dict[str, float]:
        turns.append(subjects[0].name)
        return {"floor": 40.0, "peak": peaks[subjects[0].name].pop(0)}

    monkeypatch.setattr(memory, "ask", fake)
    (finding,) = Memory().run(*pair)
    assert turns == ["dense", "small"] * 3
    assert (finding.dense, finding.candidate, finding.confidence) == (100.0, 50.0, None)
    assert finding.interval == pytest.approx((100 * 45 / 110, 100 * 60 / 90))
    assert finding.details["candidate_floor"] == 40


def test_memory_of_a_killed_child_is_a_resource_error(pair: Pair):
    with pytest.raises(ResourceError, match="small"):
        Memory(repeats=1).run(pair[0], replace(pair[1], runtime="killed"))


def test_size_counts_the_model_files_alone(pair: Pair):
    dense, candidate = pair
    (candidate.path / "tokenizer.json").write_bytes(b"x" * 10**6)
    (finding,) = Size().run(dense, candidate)
    assert finding.candidate == (candidate.path / "model.onnx").stat().st_size / 2**20
    assert finding.dense == pytest.approx(40_000 * 256 * 4 / 2**20, rel=0.01)
    assert finding.details["dense_matmul_weight_bytes"] == 256 * 4 * 4
    assert finding.details["candidate_initializer_bytes"] == (1_300 * 256 + 256 * 8 + 8 * 4) * 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is no export: export.json is missing"),
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        ("{}", "cannot be read"),
        (json.dumps(FP32), "names no model_files"),
        (json.dumps(FP32 | {"model_files": ["model.onnx", "model.onnx.data"]}), "lacks model.onnx.data"),
    ],
)
def test_an_incomplete_export_is_named(pair: Pair, text: str | None, words: str) -> None:
    facts = pair[1].path / "export.json"
    facts.unlink()
    if text is not None:
        facts.write_text(text)
    with pytest.raises(ArtifactError, match=f"{words}.*export again"):
        Size().run(*pair)


def test_the_check_of_the_guide_works(
    answered: Callable[..., Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)[0]
    (tmp_path / "check_of_the_guide.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "TABLES", registry.TABLES | {"checks": {"worst": "check_of_the_guide:WorstLabel"}})
    labels = np.array([0, 0, 1, 1, 1, 1])
    dense = answered(np.eye(2)[labels], labels=labels)
    candidate = answered(np.eye(2)[[0, 1, 1, 1, 1, 1]], labels=labels)
    ((finding,),) = measure(
        dense, [candidate], QUICK, {"worst_label_recall": Gate(type="max-degradation", value=0.1)}
    ).values()
    assert (finding.dense, finding.candidate, finding.verdict) == (1.0, 0.5, "fail")


def test_real_weights_keep_their_parity_and_a_low_rank_pair_its_smaller_size(
    minilm_weights: dict[str, np.ndarray],
    tmp_path: Path,
    runtimes: None,
    evaluation: Evaluation,
    export: Callable[..., Path],
    expected: Callable[..., np.ndarray],
    said: Callable[..., Any],
):
    embedding = minilm_weights["embeddings.word_embeddings.weight"][:1000]  # (1000, 384)
    weight = minilm_weights["encoder.layer.0.intermediate.dense.weight"].T.copy()  # (384, 1536)
    left, scales, right = np.linalg.svd(weight, full_matrices=False)
    down, up = left[:, :96] * scales[:96], right[:96]  # (384, 96), (96, 1536)
    wanted = expected(evaluation, embedding, weight)
    right = np.split(wanted.argmax(axis=1), np.cumsum([len(batch["input_ids"]) for batch in evaluation.batches])[:-1])
    labeled = (dict(batch) | {"labels": labels} for batch, labels in zip(evaluation.batches, right, strict=True))
    evaluation = Evaluation(evaluation.task, tuple(labeled))
    made = {"dense": (embedding, weight), "low": (embedding, down, up)}
    dense, low = (
        Subject(
            name,
            "tiny",
            export(tmp_path / name, *tensors),
            evaluation,
            Session(threads=1),
            said(expected(evaluation, *tensors), evaluation),
        )
        for name, tensors in made.items()
    )
    found = {finding.quantity: finding for finding in measure(dense, [low], QUICK, {})["low"]}
    assert (found["parity"].dense, found["parity"].candidate) == (1, 1)
    assert found["parity_max_difference"].candidate < 1e-5
    assert found["accuracy"].dense == 1
    assert found["accuracy"].candidate < 1  # a quarter of the rank loses some predictions
    assert found["size"].details["candidate_matmul_weight_bytes"] == 96 * (384 + 1536) * 4
    assert found["size"].ratio < 0.6
