"""Exports of anybody's held against each other without a recipe: real graphs in real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from compressor.cli import app
from compressor.errors import GateError, InputError, RuntimeFailure
from exporters.base import Session
from validators import entrants
from validators.base import Finding
from validators.bench import Bench, bench
from validators.bench_inputs import read_inputs, synthetic_inputs
from validators.child import tiled
from validators.export_report import ExportReport

Folders = dict[str, tuple[Path, list[np.ndarray]]]
ONE = Session(threads=1)


@pytest.fixture
def files(folders: Folders, tmp_path: Path) -> dict[str, Path]:
    """The graphs alone, as somebody else would have them."""
    return {
        name: shutil.copy2(folder / "model.onnx", tmp_path / f"{name}.onnx") for name, (folder, _) in folders.items()
    }


def of(export: ExportReport, quantity: str) -> Finding:
    found = export.finding(quantity)
    assert found is not None
    return found


def test_files_of_anybodys_are_measured_in_turns_with_the_first(files: dict[str, Path]) -> None:
    found = bench([files["dense"], files["small"], files["dense"]], ONE, sequence_length=7, runs=10)
    small, same = found.entries
    sizes = {name: file.stat().st_size / 2**20 for name, file in files.items()}
    assert of(small, "size").candidate == pytest.approx(sizes["small"])
    assert of(small, "size").dense == of(same, "size").candidate == pytest.approx(sizes["dense"])
    assert of(small, "peak_memory").ratio < 0.9  # 40 MiB of weights more
    assert of(same, "latency_p50").candidate > 0
    assert found.setting["inputs"] == "input_ids (1, 7)"
    assert [found.base, small.name, same.name] == ["dense.onnx", "small.onnx", "dense.onnx"]
    first, *rows = (line.split() for line in str(found).splitlines()[3:])
    assert (first[0], rows[0][0]) == ("dense.onnx", "small.onnx")
    assert "| small.onnx |" in found.to_markdown()
    json.dumps(found.to_dict(), allow_nan=False)


def finding(quantity: str, dense: float, candidate: float, interval: tuple[float, float] | None = None) -> Finding:
    return Finding(quantity, "ms", "lower", dense, candidate, interval, 0.95 if interval else None)


def test_a_gate_that_does_not_hold_is_an_error_that_names_export_and_limit(files: dict[str, Path]) -> None:
    found = bench([files["small"], files["dense"]], ONE, runs=10, percents={"size": 50, "peak_memory": 900})
    assert found.verdict == "fail"
    with pytest.raises(GateError, match=r"dense\.onnx: size fails: .*small\.onnx 1\.\d+ MiB, limit max") as error:
        found.raise_for_gates()
    assert "peak_memory" not in str(error.value)
    assert found.to_dict()["exports"][0]["findings"]["peak_memory"]["verdict"] == "pass"


def test_a_result_without_gates_passes() -> None:
    found = Bench("a", (ExportReport("b", "onnx", "fp32", "candidate", (finding("latency_p50", 1.0, 2.0),)),), {})
    assert found.verdict == "pass"
    found.raise_for_gates()


def test_weights_that_lie_beside_a_graph_come_along(files: dict[str, Path], tmp_path: Path) -> None:
    apart = tmp_path / "apart" / "graph.onnx"
    apart.parent.mkdir()
    onnx.save(onnx.load(files["dense"]), apart, save_as_external_data=True, location="weights.bin")
    found = bench([files["dense"], apart.parent], ONE, runs=10)
    assert of(found.entries[0], "size").ratio == pytest.approx(1, abs=0.01)
    (apart.parent / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"weights\.bin does not exist"):
        bench([files["dense"], apart], ONE)


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("../outside.bin", r"names '\.\./outside\.bin' for its weights, which is no file beside it: refused"),
        ("/etc/passwd", "names '/etc/passwd' for its weights"),
        ("config.json", r"config\.json cannot be weights: a graph's folder has a config\.json of another kind"),
        ("graph.onnx", "cannot be read"),  # the config is no JSON either
    ],
)
def test_a_graph_whose_weights_lie_elsewhere_overwrites_nothing(
    files: dict[str, Path], tmp_path: Path, location: str, said: str
) -> None:
    hostile = tmp_path / "hostile" / "graph.onnx"
    hostile.parent.mkdir()
    onnx.save(onnx.load(files["dense"]), hostile, save_as_external_data=True, location="weights.bin")
    model = onnx.load(hostile, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    hostile.write_bytes(model.SerializeToString())
    for place in (tmp_path / "outside.bin", hostile.parent / "config.json"):
        place.write_text("precious")
    kept = hostile.read_bytes()
    with pytest.raises((InputError, RuntimeFailure), match=said):
        bench([files["dense"], hostile], ONE, runs=10)
    assert (tmp_path / "outside.bin").read_text() == (hostile.parent / "config.json").read_text() == "precious"
    assert hostile.read_bytes() == kept


def test_made_up_inputs_are_what_every_export_takes(tmp_path: Path) -> None:
    def one(tokens: int | None, *values: dict[str, Any]) -> entrants.Entrant:
        folder = tmp_path / str(tokens)
        folder.mkdir()
        if tokens:
            (folder / "config.json").write_text(json.dumps({"vocab_size": tokens}))
        return entrants.Entrant("one", folder, {"inputs": values})

    def value(name: str, dtype: str, *axes: int | str) -> dict[str, Any]:
        return {"name": name, "dtype": dtype, "axes": list(axes)}

    encoder = one(
        None,
        value("input_ids", "int64", "batch_size", "sequence_length"),
        value("attention_mask", "int64", "batch_size", "sequence_length"),
        value("token_type_ids", "int64", 0, 0),
        value("pixel_values", "float32", "batch_size", 3, 4, 5),
    )
    decoder = one(
        7,
        value("input_ids", "int64", "batch_size", "sequence_length"),
        value("position_ids", "int64", "batch_size", "sequence_length"),
        value("past_key_values.0.key", "float32", "batch_size", 2, "past_sequence_length", 4),
    )
    alone = synthetic_inputs([encoder], 2, 50)
    assert {name: array.shape for name, array in alone.items()} == {
        "input_ids": (2, 50),
        "attention_mask": (2, 50),
        "token_type_ids": (2, 50),
        "pixel_values": (2, 3, 4, 5),
    }
    assert alone["attention_mask"].all()
    assert (alone["input_ids"][0] == alone["input_ids"][1]).all()
    assert not alone["token_type_ids"].any()
    assert 7 < alone["input_ids"].max() < entrants.TOKENS
    assert alone["pixel_values"].std() == pytest.approx(1, abs=0.3)
    both = synthetic_inputs([encoder, decoder], 2, 50)
    assert both["input_ids"].max() < 7  # the fewest tokens that one of them knows
    assert not {"position_ids", "past_key_values.0.key"} & set(both)  # a runner starts with an empty cache


def test_axes_that_one_export_leaves_free_are_as_another_fixes_them(tmp_path: Path) -> None:
    def one(*axes: int | str) -> entrants.Entrant:
        value = {"name": "pixel_values", "dtype": "float32", "axes": list(axes)}
        return entrants.Entrant("one", tmp_path, {"inputs": [value]})

    free, fixed = one("batch", "channels", "height", "width"), one("batch", 3, 224, 224)
    for order in ([free, fixed], [fixed, free]):
        assert synthetic_inputs(order, 2, 64)["pixel_values"].shape == (2, 3, 224, 224)
    assert synthetic_inputs([fixed, one("batch", 3, 8, 8)], 2, 64)["pixel_values"].shape == (2, 3, 224, 224)


def test_an_export_that_does_not_list_its_inputs_is_given_some(files: dict[str, Path], tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.mkdir()
    shutil.copy(files["dense"], silent / "model.onnx")
    facts = {"runtime": "onnx", "precision": "fp32", "model_files": ["model.onnx"]}
    (silent / "export.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"silent does not list its inputs: give some by --inputs\."):
        bench([silent, silent], ONE)
    np.savez(tmp_path / "real.npz", input_ids=np.arange(15).reshape(3, 5))
    found = bench([silent, files["small"]], ONE, runs=10, inputs_file=tmp_path / "real.npz")
    assert found.setting["inputs"] == "input_ids (3, 5)"


def test_inputs_of_a_file_take_the_place_of_made_up_ones(files: dict[str, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "real.npz", input_ids=np.arange(15).reshape(3, 5))
    found = bench([files["dense"], files["small"]], ONE, runs=10, inputs_file=tmp_path / "real.npz")
    assert found.setting["inputs"] == "input_ids (3, 5)"


def test_inputs_are_run_as_they_are(tmp_path: Path) -> None:
    """A padded batch stays padded, a cache is as long as it is, and what is no batch is none."""
    arrays = {
        "input_ids": np.array([[5, 6, 7], [8, 0, 0]]),
        "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "labels": np.zeros(2),
        "sr": np.array(16000),
    }
    np.savez(tmp_path / "real.npz", **arrays)
    subject = entrants.Entrant("one", tmp_path, {"runtime": "onnx"}).subject(read_inputs(tmp_path / "real.npz"), ONE)
    found = tiled(subject.evaluation, 1, 64)
    assert list(found) == list(arrays)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(InputError, match=r"empty\.npz is empty"):
        read_inputs(tmp_path / "empty.npz")


def older(path: Path) -> Path:
    """A convolution whose weight is listed as an input, as the first graphs did, and a switch that is no array."""
    value, helper = onnx.helper.make_tensor_value_info, onnx.helper
    inputs = [value("data", 1, ["N", 3, 8, 8]), value("a_weight", 1, [4, 3, 3, 3]), value("scale", 1, [])]
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "a_weight")
    nodes = [
        helper.make_node("Conv", ["data", "a_weight"], ["convolved"]),
        helper.make_node("Mul", ["convolved", "scale"], ["out"]),
    ]
    graph = helper.make_graph(nodes, "older", inputs, [value("out", 1, None)], [weight])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_weights_that_are_listed_as_inputs_are_none_and_a_scalar_is_one(tmp_path: Path) -> None:
    one, other = older(tmp_path / "one.onnx"), older(tmp_path / "other.onnx")
    found = bench([one, other], ONE, batch_size=3, runs=10)
    assert found.setting["inputs"] == "data (3, 3, 8, 8), scale ()"
    assert of(found.entries[0], "latency_p50").candidate > 0


def broken(path: Path) -> Path:
    path.write_bytes(b"no graph")
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda at: at / "nothing", "does not exist"),
        (lambda at: at, r"must hold one ONNX file; it holds dense\.onnx, small\.onnx: name one"),
        (lambda at: (at / "empty", (at / "empty").mkdir())[0], "it holds none"),
        (lambda at: broken(at / "notes.txt"), "is no ONNX file"),
        (lambda at: broken(at / "bad.onnx"), "cannot be read as ONNX"),
    ],
)
def test_what_is_no_export_is_told(
    files: dict[str, Path], tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        bench([files["dense"], make(tmp_path)], ONE)


def test_an_export_whose_facts_are_spoiled_is_told(folders: Folders, files: dict[str, Path], tmp_path: Path) -> None:
    spoiled = shutil.copytree(folders["small"][0], tmp_path / "spoiled")
    (spoiled / "export.json").write_text("{}")
    with pytest.raises(InputError, match=r"export\.json cannot be read \(KeyError\('runtime'\)\)"):
        bench([files["dense"], spoiled], ONE)


def test_one_export_and_unknown_quantities_are_refused(files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="two exports or more"):
        bench([files["dense"]], ONE)
    with pytest.raises(InputError, match=r"--gate latency: measured are .*\. Did you mean 'latency_p\d\d'"):
        bench([files["dense"], files["small"]], ONE, percents={"latency": 1})


def test_inputs_that_hold_objects_are_not_read(files: dict[str, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", input_ids=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"objects\.npz cannot be read"):
        bench([files["dense"], files["small"]], ONE, inputs_file=tmp_path / "objects.npz")


def test_the_verb_prints_a_table_or_one_object_and_fails_by_its_gates(files: dict[str, Path]) -> None:
    words = ["bench", str(files["small"]), str(files["dense"]), "--threads", "1", "--runs", "10", "-q"]
    told = CliRunner().invoke(app, [*words, "--json", "--gate", "size=10000"])
    assert told.exit_code == 0
    assert json.loads(told.stdout)["exports"][0]["name"] == "dense.onnx"
    failed = CliRunner().invoke(app, [*words, "--gate", "size=10"])
    assert failed.exit_code == 1
    assert "dense.onnx" in failed.stdout
    assert "size fails" in failed.stderr


def test_measuring_files_needs_no_torch(files: dict[str, Path]) -> None:
    code = (
        "import sys; from pathlib import Path; from exporters.base import Session; from validators.bench import bench; "
        "bench([Path(word) for word in sys.argv[1:]], Session(threads=1), runs=10); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    words = [sys.executable, "-c", code, str(files["small"]), str(files["dense"])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
