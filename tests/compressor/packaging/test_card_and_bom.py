"""The model card and the bill of materials: complete, true to the report, the same each time, and escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from compressor.packaging import base_model
from compressor.packaging import bom as bom_module
from compressor.packaging.archive import unpack
from compressor.packaging.tasks import PACKAGED
from validators import render


@pytest.fixture
def folder(packaged: Callable[[str], Path], tmp_path: Path) -> Path:
    return unpack(packaged("text-classification"), tmp_path)


def front(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


# ---- the card ----


def test_the_front_matter_is_what_the_hub_reads(folder: Path) -> None:
    data = front((folder / "README.md").read_text())
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == (
        "onnx",
        "text-classification",
        "apache-2.0",
    )
    assert data["metrics"] == ["accuracy"]
    assert "base_model" not in data  # a local folder is no name that the hub knows
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"] == {"name": "colors", "type": "colors"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.94}]


def test_the_hubs_own_reader_takes_the_card(folder: Path) -> None:
    from huggingface_hub import ModelCard

    found = ModelCard.load(folder / "README.md").data
    assert found.pipeline_tag == "text-classification"
    assert [result.metric_value for result in found.eval_results] == [0.94]


def test_the_card_has_data_figures_gates_machine_and_license(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    for said in (
        "| train | colors | 40 | `" + "ab" * 32,
        "| evaluation | colors | 40 | `" + "cd" * 32,
        "| Accuracy | 95.00% | 94.00% | 0.989 | 93.00% to 95.00% (95%) | min 90.00% | pass |",
        "The gate that was set holds.",
        "CPU: A small one; threads: 1; evaluation rows: 40; onnxruntime: 1.99.0",
        "- **License:** apache-2.0, as the checkpoint states it",
        "2,000 parameters dense, 1,200 here",
        'python predict.py "a text"',
    ):
        assert said in text


def test_nothing_in_the_package_tells_where_it_was_made(folder: Path, packaged: Callable[[str], Path]) -> None:
    places = [str(packaged("text-classification").parent), "/tmp/", str(Path.home())]
    texts = [
        path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*") if path.suffix in (".md", ".json")
    ]
    assert [place for place in places for text in texts if place in text] == []


def test_untrusted_names_are_shown_as_they_stand() -> None:
    assert render.escaped("@a|b <script> [x](y) `c` *d*\n# e") == r"\@a\|b &lt;script&gt; \[x\](y) \`c\` \*d\* \# e"


# ---- the base model ----


def test_a_checkpoint_without_a_license_is_unknown(tmp_path: Path) -> None:
    assert base_model.find(str(tmp_path)) == base_model.BaseModel(tmp_path.name, hub=False)
    for text in ("no front matter", "---\nlicense: [\n---\n", "---\nlicense: []\n---\n", "---\n- a\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert base_model.find(str(tmp_path)).license == "unknown"


def test_a_stated_license_and_its_text_are_found(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\ntags: [a]\nlicense: mit\n---\ntext")
    (tmp_path / "LICENSE.txt").write_text("MIT")
    found = base_model.find(str(tmp_path))
    assert (found.license, found.license_file) == ("mit", tmp_path / "LICENSE.txt")


@pytest.mark.parametrize(
    ("front", "license"),
    [
        ("license: [apache-2.0, mit]", "apache-2.0, mit"),
        ("license:\n- llama3", "llama3"),
        ("license: other\nlicense_name: llama3-community", "llama3-community"),
        ("license: other", "other"),
    ],
)
@pytest.mark.parametrize("end", ["\ntext", "\n", ""])
def test_every_license_that_is_stated_is_told(tmp_path: Path, front: str, license: str, end: str) -> None:
    (tmp_path / "README.md").write_text(f"\ufeff---\n{front}\n---{end}", encoding="utf-8")
    assert base_model.find(str(tmp_path)).license == license


@pytest.mark.parametrize(
    "front",
    [
        "date: 2023-02-30\nlicense: mit",  # no day: nothing but the license is read
        "x: &x [a]\nlicense: [mit, *x, *x, {a: b}, 3]",
        "x: &x mit\nlicense: [*x, *x, *x]",
        "? [a]\n: b\nlicense: mit",
    ],
)
def test_only_the_texts_of_a_license_are_read(tmp_path: Path, front: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    assert base_model.find(str(tmp_path)).license == "mit"


@pytest.mark.parametrize("front", ["a: " + "[" * 5000, 'a: "\\UFFFFFFFF"', 'a: "\\U00110000"', "license: 2023-02-30"])
def test_front_matter_that_cannot_be_read_is_no_bug(tmp_path: Path, front: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    assert base_model.find(str(tmp_path)).license == "unknown"


def test_a_license_that_leads_out_of_the_checkpoint_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("PRIVATE KEY")
    base = tmp_path / "base"
    base.mkdir()
    (base / "LICENSE").symlink_to(tmp_path / "secret")
    (base / "README.md").symlink_to(tmp_path / "secret")
    assert base_model.find(str(base)) == base_model.BaseModel("base", hub=False)
    (base / "COPYING").write_text("The license.")
    assert base_model.find(str(base)).license_file == base / "COPYING"


def test_a_license_in_the_hubs_cache_is_a_link_and_is_taken(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs").mkdir()
    (snapshot.parents[1] / "blobs" / "1234").write_text("The license.")
    (snapshot / "LICENSE").symlink_to("../../blobs/1234")
    assert base_model.find(str(snapshot)).license_file == snapshot / "LICENSE"
    (tmp_path / "secret").write_text("PRIVATE KEY")
    (snapshot / "COPYING").symlink_to(tmp_path / "secret")
    (snapshot / "LICENSE").unlink()
    assert base_model.find(str(snapshot)).license_file is None


def test_a_hub_id_is_looked_up_in_the_cache_and_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    cached = {("some/model", "README.md", "abc"): str(tmp_path / "README.md")}
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda name, file, revision: cached.get((name, file, revision))
    )
    assert base_model.find("some/model", "abc") == base_model.BaseModel("some/model", hub=True, license="mit")
    assert base_model.find("some/other").license == "unknown"


def test_a_path_that_is_gone_and_a_factory_are_no_hub_ids() -> None:
    assert base_model.find("/nowhere/base") == base_model.BaseModel("base", hub=False)
    assert base_model.find("package.module:factory").hub is False


# ---- the bill of materials ----


@pytest.fixture
def bom(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "bom.cdx.json").read_text()))


@pytest.mark.parametrize("task", PACKAGED)
def test_the_bill_of_materials_holds_cyclonedxs_schema(
    packaged: Callable[[str], Path], tmp_path: Path, task: str
) -> None:
    pytest.importorskip("cyclonedx", reason="needs cyclonedx-python-lib[json-validation] of the `dev` extra")
    from cyclonedx.exception import MissingOptionalDependencyException
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (unpack(packaged(task), tmp_path) / "bom.cdx.json").read_text()
    try:
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    except MissingOptionalDependencyException:
        pytest.skip("needs cyclonedx-python-lib[json-validation] of the `dev` extra")


def test_the_bill_of_materials_has_the_model_its_data_and_every_digest(bom: dict[str, Any], folder: Path) -> None:
    model = bom["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"][0]["content"] == sha256((folder / "model" / "model.onnx").read_bytes()).hexdigest()
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert model["pedigree"]["ancestors"][0]["name"] == "tiny-base"
    metrics = {one["type"]: one for one in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics["accuracy"]["value"] == "0.94"
    assert metrics["accuracy"]["confidenceInterval"] == {"lowerBound": "0.93", "upperBound": "0.95"}
    found = {one["name"]: one["hashes"][0]["content"] for one in bom["components"] if one["type"] == "file"}
    for name, digest in found.items():
        assert digest == sha256((folder / name).read_bytes()).hexdigest()
    assert {"predict.py", "package.json", "model/tokenizer.json"} <= found.keys()
    assert [one["hashes"][0]["content"] for one in bom["components"] if one["type"] == "data"] == ["ab" * 32, "cd" * 32]
    assert {one.get("purl") for one in bom["components"] if one["type"] == "library"} == {
        "pkg:pypi/numpy@2.0.0",
        "pkg:pypi/onnxruntime@1.99.0",
        "pkg:pypi/tokenizers@0.99.0",
    }


def test_two_licenses_are_two_in_the_bill_of_materials() -> None:
    summary = SimpleNamespace(base=base_model.BaseModel("base", hub=False, license="apache-2.0, llama3"))
    assert bom_module._licenses(summary) == {
        "licenses": [{"license": {"id": "Apache-2.0"}}, {"license": {"name": "llama3"}}]
    }


def test_weights_beside_a_graph_are_in_the_models_version() -> None:
    def model(weights: str) -> dict[str, Any]:
        names = {"model/model.onnx": "a" * 64, "model/model.onnx.data": weights * 64, "model/config.json": "c" * 64}
        summary = Mock(export=SimpleNamespace(runtime="onnx", findings=()), data=(), task="text-classification")
        summary.base = base_model.BaseModel("base", hub=False)
        summary.report.context, summary.manifest, summary.limits = {}, {"base_digest": None}, []
        return bom_module._model(summary, {name: SimpleNamespace(sha256=digest) for name, digest in names.items()})

    one, other = model("b"), model("d")
    assert one["version"] != other["version"]
    assert "hashes" not in one  # which would be of the graph alone
    assert one["properties"][0]["value"] == sha256(("a" * 64 + "b" * 64).encode()).hexdigest()


def test_the_serial_number_follows_from_the_content(bom: dict[str, Any]) -> None:
    assert re.fullmatch(
        r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", bom["serialNumber"]
    )
    assert "timestamp" not in json.dumps(bom)
