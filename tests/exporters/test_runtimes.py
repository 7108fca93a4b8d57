"""What every row of the exporter table promises, and what is told where its runtime is not installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor import catalog, display, doctor, pipeline, registry
from compressor.errors import DependencyError, RuntimeFailure
from exporters.feed import Feed

every_exporter = pytest.mark.parametrize("name", registry.TABLES["exporters"])
COMMAND = "pip install 'rankfold[openvino]'"


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without OpenVINO."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else real(name))


@every_exporter
def test_a_row_is_built_for_fp32_and_carries_its_name(name: str) -> None:
    exporter = registry.exporter(name, "fp32")
    assert (exporter.name, exporter.precision) == (name, "fp32")
    assert all(command.startswith("pip install") for command in registry.packages_of(exporter).values())


def test_naming_every_exporter_imports_no_torch_and_no_runtime_of_an_extra() -> None:
    code = (
        "import sys; from compressor import registry;"
        "[registry.exporter(name, 'fp32') for name in registry.names('exporters')];"
        "print(sorted(name for name in {'torch', 'transformers', 'openvino', 'nncf'} if sys.modules.get(name)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.usefixtures("no_openvino")
def test_the_list_says_how_to_install_what_is_missing() -> None:
    found = {entry.name: entry for entry in catalog.entries("exporters")}
    assert found["openvino"].install == (COMMAND,)
    assert (found["onnx"].install, found["torch-export"].install) == ((), ())
    assert f"  not installed here: {COMMAND}" in display.catalog_list(list(found.values())).splitlines()


@pytest.mark.usefixtures("no_openvino")
def test_doctor_notes_a_runtime_that_an_extra_would_bring() -> None:
    found = {one.topic: one for one in doctor.diagnose()}
    assert (found["openvino"].status, found["openvino"].text) == ("note", "not installed: openvino")
    assert COMMAND in found["openvino"].remedy
    assert (found["torch-export"].status, found["torch-export"].text.split()[0]) == ("ok", "torch")


@pytest.mark.usefixtures("no_openvino")
def test_a_run_is_refused_before_it_trains(tiny_task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_task(tmp_path)
    recipe.write_text(recipe.read_text().replace("{precision: fp32}", "{runtime: openvino}"))
    monkeypatch.setattr(pipeline, "compress", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DependencyError, match=r"openvino is not installed: `pip install 'rankfold\[openvino\]'`"):
        pipeline.run(recipe, tmp_path / "run")


def test_a_package_that_is_there_but_broken_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_runtime.py").write_text("import no_such_module_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DependencyError, match=r"broken_runtime cannot be imported: .*no_such_module.*Reinstall: pip x"):
        registry.imported({"broken_runtime": "pip x"})


def test_all_missing_packages_are_named_at_once() -> None:
    with pytest.raises(DependencyError, match="no_a and no_b are not installed: `pip a` and `pip b` adds"):
        registry.require({"no_a": "pip a", "no_b": "pip b", "json": "never"})


def test_a_feed_casts_orders_and_leaves_out() -> None:
    feed = Feed(Path("model"), {"b": np.dtype("float32"), "a": np.dtype("int64")})
    found = feed({"a": np.ones(2, np.int32), "other": np.ones(1), "b": np.ones((2, 2), np.float64).T})
    assert [(name, array.dtype.name, array.flags.c_contiguous) for name, array in found.items()] == [
        ("b", "float32", True),
        ("a", "int64", True),
    ]
    with pytest.raises(RuntimeFailure, match="model needs the inputs a, b too; got c"):
        feed({"c": np.ones(1)})


def test_a_feed_completes_the_cache_and_the_positions_of_a_decoder() -> None:
    key = "past_key_values.0.key"
    dtypes = dict.fromkeys(("input_ids", "attention_mask", "position_ids"), np.dtype("int64"))
    feed = Feed(Path("model"), dtypes | {key: np.dtype("float32")}, {key: (2, 8)})
    found = feed({"input_ids": np.array([[0, 0, 5], [1, 2, 3]]), "attention_mask": np.array([[0, 0, 1], [1, 1, 1]])})
    assert found[key].shape == (2, 2, 0, 8)
    assert found["position_ids"].tolist() == [[0, 0, 0], [0, 1, 2]]
    one = {"input_ids": np.array([[4]]), "attention_mask": np.ones((1, 6)), key: np.ones((1, 2, 5, 8))}
    assert feed(one)["position_ids"].tolist() == [[5]]
    with pytest.raises(RuntimeFailure, match=r"needs the inputs input_ids, .* too; got attention_mask"):
        feed({"attention_mask": np.ones((1, 3))})
