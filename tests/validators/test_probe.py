from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.errors import (
    DataError,
    DependencyError,
    RankfoldError,
    ResourceError,
    RuntimeFailure,
)
from compressor.tasks.text_classification import TextClassification
from exporters.base import Arrays, Session
from validators import child, probe
from validators.base import Evaluation, Subject
from validators.child import ask, tiled

TASK = TextClassification()

Pair = tuple[Subject, Subject]
IDS = {"input_ids": np.ones((1, 4), np.int64)}
posix = pytest.mark.skipif(sys.platform == "win32", reason="kills by POSIX signals")


class Counting:
    """A runner, and a run of it, that notes who ran, and whether the garbage collector was on."""

    providers = ("CPUExecutionProvider",)

    def __init__(self, name: str, log: list[tuple[str, bool]]) -> None:
        self.name, self.log = name, log

    def __call__(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        self.log.append((self.name, gc.isenabled()))
        return {}


class Breaking(Counting):
    def __call__(self, inputs: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        raise RuntimeFailure("broken")


def test_every_round_times_each_subject_once_in_an_order_that_changes():
    log: list[tuple[str, bool]] = []
    times = probe.alternate([Counting("a", log), Counting("b", log)], runs=60, seed=0)
    rounds = ["".join(name for name, _ in log[i : i + 2]) for i in range(0, 120, 2)]
    assert (len(times), {len(row) for row in times}) == (60, {2})
    assert set(rounds) == {"ab", "ba"}
    assert 15 < rounds.count("ab") < 45
    assert all(value > 0 for row in times for value in row)


def test_a_seed_gives_the_same_order():
    def order(seed: int) -> list[str]:
        log: list[tuple[str, bool]] = []
        probe.alternate([Counting("a", log), Counting("b", log)], runs=20, seed=seed)
        return [name for name, _ in log]

    assert order(1) == order(1) != order(2)


def test_the_garbage_collector_is_off_while_timing_and_on_again_after_an_error():
    log: list[tuple[str, bool]] = []
    probe.alternate([Counting("a", log)], runs=3, seed=0)
    assert not any(enabled for _, enabled in log)
    with pytest.raises(RuntimeFailure):
        probe.alternate([Breaking("a", log)], runs=3, seed=0)
    assert gc.isenabled()


def test_a_silent_fallback_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch):
    class Exporter:
        def load(self, path: Path, session: Session) -> Counting:
            return Counting("a", [])

    described = {"runtime": "onnx", "path": "somewhere", "device": "cuda", "threads": 0}
    with pytest.raises(DependencyError, match="CPUExecutionProvider"):
        probe._load(Exporter(), described)  # type: ignore[arg-type]


@pytest.mark.parametrize("runtime", ["tiny", "onnx"])
def test_the_children_measure_two_real_exports(pair: Pair, runtime: str):
    subjects = [replace(subject, runtime=runtime) for subject in pair]
    stages = [ask("memory", [subject], IDS, steady_runs=2) for subject in subjects]
    for found in stages:
        assert found["floor"] < 90
        assert found["floor"] <= found["load_peak"] <= found["peak"]
        assert found["peak"] >= found["steady"] > 0
    assert stages[0]["peak"] - stages[1]["peak"] > 30  # MiB; the embeddings differ by 39
    times = ask("latency", subjects, IDS, runs=12, warmup=1, seed=0)["nanoseconds"]
    assert np.asarray(times).shape == (12, 2)
    assert np.asarray(times).min() > 0


def test_the_child_does_not_inherit_the_memory_of_its_parent(pair: Pair):
    ballast = np.ones(400 * 2**20, np.uint8)  # 400 MiB resident here
    assert ask("memory", [pair[1]], IDS, steady_runs=1)["peak"] < 300
    assert ballast.sum() == ballast.size


def test_a_folder_named_validators_in_the_working_directory_changes_nothing(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "work" / "validators").mkdir(parents=True)
    (tmp_path / "work" / "validators" / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path / "work")
    assert ask("memory", [pair[1]], IDS, steady_runs=1)["peak"] > 0


FAILURES = [
    ("killed", ResourceError, "killed, most likely for want of memory"),
    ("crashing", RuntimeFailure, "SIGSEGV.*the last words"),
    ("hungry", ResourceError, "ran out of memory"),
    ("wanting", ResourceError, "ran out of memory"),
    ("raising", RuntimeFailure, "ValueError: an odd graph"),
    ("lacking", DependencyError, "There is no such device"),
    ("silent", RuntimeFailure, "no JSON object"),
    ("torching", RuntimeFailure, "torch was imported into the measuring process"),
]


@posix
@pytest.mark.parametrize(("runtime", "error", "words"), FAILURES)
def test_a_child_that_fails_says_why_with_its_exit_code(
    pair: Pair, runtime: str, error: type[RankfoldError], words: str
):
    with pytest.raises(RankfoldError, match=f"(?s)Measuring memory of dense.*{words}") as caught:
        ask("memory", [replace(pair[0], runtime=runtime)], IDS, steady_runs=1)
    assert type(caught.value) is error


def test_an_unknown_runtime_is_named_by_the_child(pair: Pair):
    with pytest.raises(RankfoldError, match="Did you mean 'tiny'"):
        ask("latency", [replace(pair[0], runtime="tinny"), pair[1]], IDS, runs=1, warmup=0, seed=0)


def test_the_probe_answers_a_wrong_call_with_its_usage():
    done = subprocess.run(
        [sys.executable, "-m", "validators.probe", "speed"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: python -m validators.probe memory|latency REQUEST")
    assert not done.stdout


def test_neither_the_probe_nor_the_checks_import_torch():
    code = (
        "import sys, json, validators.probe; lean = sorted(sys.modules);"
        "import validators.measure; from compressor import registry; from compressor.recipe import ValidateSection;"
        "validators.measure.checks(ValidateSection(), registry.task('text-generation'));"
        "print(json.dumps([lean, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lean, full = map(set, json.loads(done.stdout))
    assert not {"torch", "transformers"} & full
    assert "validators.latency" in full
    assert not {"pydantic", "scipy", "sklearn", "yaml", "psutil"} & lean


def test_inputs_are_the_real_tokens_repeated_and_cut(evaluation: Evaluation):
    made = tiled(evaluation, batch_size=2, sequence_length=300)
    real = np.concatenate([b["input_ids"][b["attention_mask"] == 1] for b in evaluation.batches[:1]])
    assert len(evaluation.batches[0]["input_ids"]) >= 2
    assert made["input_ids"].shape == (2, 300)
    assert made["input_ids"].dtype == np.int64
    assert [row.tolist() for row in made["input_ids"]] == 2 * [[*(real[i % len(real)] for i in range(299)), real[-1]]]
    assert made["attention_mask"].min() == 1


def test_no_more_batches_are_decoded_than_have_the_rows():
    decoded = []

    class Decoding(Sequence[Arrays]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, number: Any) -> Any:
            if number >= len(self):
                raise IndexError
            decoded.append(number)
            return {"pixel_values": np.full((4, 3, 2, 2), number, np.float32)}

    made = tiled(Evaluation(TASK, Decoding()), batch_size=6, sequence_length=9)
    assert decoded == [0, 1]
    assert made["pixel_values"][:, 0, 0, 0].tolist() == [0, 0, 0, 0, 1, 1]


def test_inputs_without_a_mask_and_of_other_ranks_keep_their_shape():
    pixels = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
    made = tiled(Evaluation(TASK, ({"pixel_values": pixels, "labels": np.zeros(2)},)), batch_size=5, sequence_length=9)
    assert made["pixel_values"].shape == (5, 3, 4, 4)
    assert np.array_equal(made["pixel_values"][4], pixels[0])
    assert "labels" not in made
    ids = Evaluation(TASK, ({"input_ids": np.array([[1, 2, 0]])},))
    assert tiled(ids, 1, 5)["input_ids"].tolist() == [[1, 2, 0, 1, 0]]


def test_an_empty_evaluation_set_is_named():
    with pytest.raises(DataError, match=r"evaluation set is empty.*data\.evaluation"):
        tiled(Evaluation(TASK, ()), 1, 8)


def test_thread_counts_reach_the_runner(pair: Pair, monkeypatch: pytest.MonkeyPatch, export: Callable[..., Path]):
    seen: list[dict[str, Any]] = []

    def fake(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        seen.append(json.loads(command[-1]) | {"environment": options["env"]})
        return subprocess.CompletedProcess(command, 0, "{}", "")

    monkeypatch.setattr(subprocess, "run", fake)
    ask("memory", [replace(pair[0], session=Session(threads=3))], IDS, steady_runs=1)
    assert seen[0]["subjects"][0]["threads"] == 3
    assert seen[0]["environment"]["OMP_NUM_THREADS"] == "3"


def test_the_child_counts_gpus_as_its_parent_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert "CUDA_DEVICE_ORDER" not in child._environment(1)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert child._environment(1)["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
