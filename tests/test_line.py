"""The whole line on real weights and real text, short: one run, then everything that a user may do with it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from compressor import factorize, memory
from compressor.calibration import Statistics
from compressor.files import read_json
from compressor.line import Line
from compressor.recipe import Recipe
from compressor.run_folder import Run
from compressor.tasks.base import inputs_of
from compressor.tensors import load_tensors_

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LABELS = ("scipy", "sympy", "torch")
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": "10000"}


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    line = [sys.executable, "-m", "compressor", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, timeout=800, check=False)


def write_rows(folder: Path) -> None:
    """Docstrings of three libraries, 80 to train on and 40 to test on of each."""
    path = Path(__file__).parent.parent / "recipes" / "prepare_demo.py"
    spec = importlib.util.spec_from_file_location("prepare_demo", path)
    assert spec is not None
    assert spec.loader is not None
    demo: Any = importlib.util.module_from_spec(spec)
    sys.modules["prepare_demo"] = demo
    spec.loader.exec_module(demo)
    found = {label: demo.distinct(demo.gather(label, 200)) for label in LABELS}
    demo.write([row for rows in found.values() for row in rows[:80]], folder / "train.parquet")
    demo.write([row for rows in found.values() for row in rows[80:120]], folder / "test.parquet")


@pytest.fixture(scope="module")
def recipe(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of one short epoch."""
    folder = tmp_path_factory.mktemp("task")
    write_rows(folder)
    settings = {
        "model": {"path": minilm, "max_length": 32},
        "data": {
            "train": {"path": str(folder), "split": "train"},
            "evaluation": {"path": str(folder), "split": "test"},
            "holdout": 0.2,
            "calibration": {"samples": 96},
        },
        "plan": {"budget": {"parameters": 0.3}},
        "adapt": {"epochs": 2},
        "baseline": {"epochs": 1, "learning_rate": 2e-4},
        "export": [{"precision": "fp32"}, {"precision": "int8"}],
        "validate": {"runs": 20, "sequence_length": 16, "repeats": 1},
        "gates": {
            "accuracy": {"type": "max-degradation", "value": 0.99},
            "size": {"type": "percent-min-improvement", "value": 20},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run, made by the command line."""
    out = tmp_path_factory.mktemp("runs") / "short"
    done = command("run", recipe, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "pass"
    return out


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The run, to be spoiled."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_run_leaves_what_the_documents_say(run: Path) -> None:
    names = "artifact.json model.safetensors config.json tokenizer.json plan.json history.json report.json report.html"
    for name in [
        *names.split(),
        "report.md",
        "junit.xml",
        "baseline/model.safetensors",
        "exports/onnx-int8/model.onnx",
    ]:
        assert (run / name).is_file(), name
    assert not any((run / ".work").iterdir())


def test_the_budget_holds_in_the_saved_tensors(run: Path) -> None:
    from compressor.tensors import stored_parameters

    plan = json.loads((run / "plan.json").read_text())
    dense = sum(layer["out_features"] * layer["in_features"] for layer in plan["layers"])
    saved = stored_parameters(run / "baseline" / "model.safetensors") - stored_parameters(run / "model.safetensors")
    assert 0.69 * dense <= saved <= 0.72 * dense


def test_the_report_names_both_exports_and_plain_int8(run: Path) -> None:
    exports = json.loads((run / "report.json").read_text())["exports"]
    assert [(row["name"], row["role"]) for row in exports] == [
        ("onnx-fp32", "candidate"),
        ("onnx-int8", "candidate"),
        ("dense-onnx-int8", "reference"),
    ]
    quantities = {"accuracy", "parity", "size", "peak_memory", "latency_p50", "latency_p90", "latency_p99"}
    assert all(quantities <= row["findings"].keys() for row in exports)


def test_training_beats_the_truncation_that_it_started_from(run: Path) -> None:
    history = json.loads((run / "history.json").read_text())
    losses = [row["loss"] for row in history if "loss" in row]
    assert losses[-1] < losses[0]
    assert [row["epoch"] for row in history if "eval_accuracy" in row] == [0, 1, 2]
    accuracy = json.loads((run / "report.json").read_text())["exports"][0]["findings"]["accuracy"]["candidate"]
    assert accuracy > 1.5 / len(LABELS)


def test_one_line_loads_the_folded_model_and_the_graph_computes_the_same(run: Path) -> None:
    import compressor
    from exporters.onnx import OnnxExporter

    model = compressor.load(run)
    ids = torch.randint(1000, 20000, (3, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    runner = OnnxExporter().load(run / "exports" / "onnx-fp32")
    found = runner({name: value.numpy() for name, value in inputs.items()})["logits"]
    assert np.abs(found - expected).max() <= 1e-4


def test_the_graph_holds_targets_in_factorized_form_only(run: Path) -> None:
    import onnx

    plan = json.loads((run / "plan.json").read_text())
    graph = onnx.load(run / "exports" / "onnx-fp32" / "model.onnx").graph
    shapes = Counter(tuple(sorted(tensor.dims)) for tensor in graph.initializer if len(tensor.dims) == 2)
    factors = Counter()
    for layer in plan["layers"]:
        m, n, rank = layer["out_features"], layer["in_features"], layer["rank"]
        factors.update(
            [tuple(sorted((m, n)))] if rank is None else [tuple(sorted((rank, n))), tuple(sorted((m, rank)))]
        )
    pooler = Counter({(384, 384): 1})
    assert {shape: shapes[shape] for shape in factors | pooler} == dict(factors + pooler)


def test_an_edited_file_is_named(copied: Path) -> None:
    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (copied / "extra.txt").write_text("x")
    done = command("verify", copied)
    assert done.returncode == 1
    assert "model.safetensors has been changed" in done.stderr
    assert "extra.txt is not in the manifest" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_becomes_one_file_that_verifies_and_predicts(run: Path, tmp_path: Path) -> None:
    packaged = command("package", run, "--out", tmp_path / "short.tar.gz")
    assert packaged.returncode == 0, packaged.stderr
    assert command("verify", tmp_path / "short.tar.gz").returncode == 0
    shutil.unpack_archive(tmp_path / "short.tar.gz", tmp_path, filter="data")
    program = [sys.executable, "-I", tmp_path / "model-onnx-int8" / "predict.py", "Eigenvalues of a sparse matrix."]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["probabilities"]) == set(LABELS)


def test_an_export_is_not_replaced_unasked(copied: Path) -> None:
    done = command("export", copied, "--to", "onnx", "--precision", "int8")
    assert done.returncode == 2
    assert "--overwrite" in done.stderr


def test_exporting_again_makes_what_is_damaged_of_the_dense_model_again(copied: Path) -> None:
    (copied / "baseline" / "onnx-fp32" / "model.onnx").unlink()
    (copied / "exports" / ".onnx-int8").mkdir()  # as a kill would leave it
    shutil.copy(copied / "exports" / "onnx-int8" / "export.json", copied / "exports" / ".onnx-int8")
    refused = command("validate", copied)
    assert refused.returncode == 2
    assert "again" in refused.stderr
    assert command("export", copied, "--precision", "int8", "--overwrite").returncode == 0
    assert not (copied / "exports" / ".onnx-int8").exists()
    assert command("verify", copied).returncode == 0
    assert command("validate", copied).returncode in (0, 1)


def test_an_export_that_fails_leaves_the_old_one(copied: Path) -> None:
    before = (copied / "exports" / "onnx-int8" / "model.onnx").read_bytes()
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert command("export", copied, "--precision", "int8", "--overwrite").returncode == 2
    assert (copied / "exports" / "onnx-int8" / "model.onnx").read_bytes() == before


def test_starting_again_loses_nothing_to_a_typo_or_to_its_own_inputs(copied: Path, recipe: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    for setting, said in (
        ("data.train.label=lable", "has no column 'lable'"),
        ("validate.sequence_length=600", "validate.sequence_length is 600, but the model takes 512 tokens at most"),
        (f"plan.path={copied / 'plan.json'}", "which --overwrite would remove with"),
    ):
        done = command("run", recipe, "--out", copied, "--overwrite", "--set", setting)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()} == before


def test_a_single_export_is_folded_exported_and_judged(copied: Path) -> None:
    shutil.rmtree(copied / "exports")
    (copied / "artifact.json").unlink()  # trained, not yet folded
    state = json.loads((copied / "run.json").read_text())
    for name in state["stages"].pop("fold")["files"]:
        (copied / name).unlink()
    state["recipe"]["gates"]["size"]["value"] = 99
    (copied / "run.json").write_text(json.dumps(state))
    done = command("export", copied, "--to", "onnx", "--precision", "int8")
    assert done.returncode == 1, done.stderr
    assert "size" in done.stderr
    assert (copied / "exports" / "onnx-int8" / "model.onnx").is_file()
    measured = {one["name"] for one in json.loads((copied / "report.json").read_text())["exports"]}
    assert "onnx-int8" in measured


def test_truncated_weights_are_one_sentence(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    shutil.rmtree(copied / "exports" / "onnx-int8")
    done = command("export", copied, "--precision", "int8")
    assert done.returncode == 2
    assert "model.safetensors has been changed since it was made" in done.stderr
    assert "Traceback" not in done.stderr
    refused = command("validate", copied)
    assert refused.returncode == 2
    assert "truncated or damaged" in refused.stderr


def test_other_evaluation_data_is_refused(copied: Path, recipe: Path, tmp_path: Path) -> None:
    manifest = json.loads((copied / "artifact.json").read_text())
    manifest["recipe"]["data"]["evaluation"]["split"] = "train"
    (copied / "artifact.json").write_text(json.dumps(manifest))
    done = command("validate", copied)
    assert done.returncode == 2
    assert "is not the evaluation data" in done.stderr


def test_cuda_without_a_gpu_is_an_environment_error(copied: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has a GPU")
    manifest = json.loads((copied / "artifact.json").read_text())
    manifest["recipe"]["validate"]["device"] = "cuda"
    (copied / "artifact.json").write_text(json.dumps(manifest))
    done = command("validate", copied)
    assert done.returncode == 3
    assert "CUDA" in done.stderr


def test_a_run_killed_while_training_ends_with_the_same_numbers(run: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    line = [sys.executable, "-m", "compressor", "compress", str(recipe), "--out", str(out)]
    with subprocess.Popen(line, env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        checkpoints = out / ".work" / "adapt-checkpoints"
        deadline = time.monotonic() + 300
        while not list(checkpoints.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (out / "artifact.json").exists()
    refused = command("compress", recipe, "--out", out)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    done = command("compress", recipe, "--out", out, "--resume")
    assert done.returncode == 0, done.stderr
    for name in (
        "plan.json",
        "subspaces.safetensors",
        "history.json",
        "model.safetensors",
        "baseline/model.safetensors",
    ):
        assert (out / name).read_bytes() == (run / name).read_bytes(), name


def test_moments_are_the_same_in_however_many_passes(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = read_json(copied / "run.json")
    together = Statistics.load(copied / "statistics")
    line = Line(Recipe.model_validate(state["recipe"]), Run(copied, state["recipe"], resume=True))
    del line.run.state["stages"]["calibrate"]
    monkeypatch.setattr(memory, "free", lambda device: 2 * (4 * 4 * 2 * 384**2))  # of four square layers
    apart = line.calibrate()
    assert len(list((copied / "statistics").iterdir())) > 6
    assert list(apart) == list(together)
    for name in together:
        for moment in ("input", "gradient"):
            one, other = getattr(apart[name], moment).matrix, getattr(together[name], moment).matrix
            assert (one - other).norm() <= 1e-5 * other.norm(), name


def test_the_untrained_model_is_the_same_whether_its_directions_are_kept_or_decomposed_anew(copied: Path) -> None:
    state = read_json(copied / "run.json")
    line = Line(Recipe.model_validate(state["recipe"]), Run(copied, state["recipe"], resume=True))
    kept = line.factorized().state_dict()
    (copied / "subspaces.safetensors").unlink()  # as in a run from before it was kept
    for _ in range(2):  # before and after what decomposing draws
        again = line.factorized().state_dict()
        assert kept.keys() == again.keys()
        assert all(torch.equal(value, again[name]) for name, value in kept.items())


def test_folding_decomposes_nothing_anew(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = read_json(copied / "run.json")
    line = Line(Recipe.model_validate(state["recipe"]), Run(copied, state["recipe"], resume=True))
    del line.run.state["stages"]["fold"]
    before = (copied / "model.safetensors").read_bytes()
    monkeypatch.setattr(factorize, "decompose", lambda *args, **named: pytest.fail("decomposed anew"))
    line.fold()
    assert (copied / "model.safetensors").read_bytes() == before


def test_cores_are_trained_between_bases_that_were_corrected_in_order(copied: Path) -> None:
    state = read_json(copied / "run.json")
    line = Line(Recipe.model_validate(state["recipe"]), Run(copied, state["recipe"], resume=True))
    del line.run.state["stages"]["correct"]
    dense, model, batches = line.sources.start(), line.factorized(), list(line.sources.sample())
    truncated = {name: model.get_submodule(name).left.clone() for name in line.plan().ranks}

    def apart() -> float:
        with torch.no_grad():
            said = [(model(**inputs_of(one)).logits, dense(**inputs_of(one)).logits) for one in batches]
        return sum(float((ours - theirs).square().mean()) for ours, theirs in said)

    before = apart()
    line.correct()
    load_tensors_(model, copied / "corrected.safetensors")
    assert apart() < before
    corrected = load_file(copied / "corrected.safetensors")
    trained = load_file(copied / "cores.safetensors")
    changed = [name for name, left in truncated.items() if not torch.allclose(trained[f"{name}.left"], left, atol=1e-4)]
    assert len(changed) >= len(truncated) - 3  # the first layers read the same in both models
    for name in truncated:
        assert torch.allclose(trained[f"{name}.left"], model.get_submodule(name).left, atol=1e-4), name
        assert torch.equal(corrected[f"{name}.left"], model.get_submodule(name).left), name


def test_an_edited_plan_is_replayed(recipe: Path, run: Path, tmp_path: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    plan["layers"][0]["rank"] = 5
    plan["layers"][1]["rank"] = None
    (tmp_path / "edited.json").write_text(json.dumps(plan))
    out = tmp_path / "replayed"
    edited = f"plan.path={tmp_path / 'edited.json'}"
    done = command("plan", recipe, "--out", out, "--set", edited, "--json", "--verbose")
    assert done.returncode == 0, done.stderr
    first, second = plan["layers"][:2]
    assert f"{first['name']}: rank 5 (as dense at {first['break_even']})" in done.stderr
    assert f"{second['name']}: dense" in done.stderr
    layers = json.loads(done.stdout)["layers"]
    assert [layer["rank"] for layer in layers[:2]] == [5, None]
    assert layers[1]["parameters"] == layers[1]["out_features"] * layers[1]["in_features"]


def test_a_run_without_exports_is_refused_before_any_work(recipe: Path, tmp_path: Path) -> None:
    done = command("run", recipe, "--out", tmp_path / "run", "--set", "export=[]", "--set", "gates={}")
    assert done.returncode == 2
    assert "`run` proves exports. Name one, or use `compress`" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_budget_that_cannot_be_met_is_told_before_any_training(recipe: Path, tmp_path: Path) -> None:
    done = command("run", recipe, "--out", tmp_path / "run", "--set", "plan.budget.parameters=0.001")
    assert done.returncode == 2
    assert "The budget of 0.001 of the targets' parameters" in done.stderr
    assert not (tmp_path / "run" / "head.safetensors").exists()


def test_the_pretrained_weights_are_compressed_where_that_is_asked(recipe: Path, run: Path, tmp_path: Path) -> None:
    settings = ("--set", "model.start=pretrained", "--set", "adapt.distill=null", "--set", "adapt.epochs=1")
    done = command("compress", recipe, "--out", tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert state["stages"]["probe"] == json.loads((run / "run.json").read_text())["stages"]["probe"] | {
        "seconds": state["stages"]["probe"]["seconds"]
    }
    ours, theirs = ((folder / "statistics" / "001.safetensors").read_bytes() for folder in (tmp_path / "run", run))
    assert ours != theirs
