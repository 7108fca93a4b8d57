"""What every row of the exporter table promises, and what is told where its runtime is not installed."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor import catalog, display, doctor, pipeline, registry
from compressor.errors import ArtifactError, DependencyError, ExportError, InputError, RuntimeFailure
from exporters import record
from exporters.base import Arrays, Device, Exported, Exporter, Runner, Session, write
from exporters.feed import Feed

every_exporter = pytest.mark.parametrize("name", registry.TABLES["exporters"])
COMMAND = "pip install 'rankfold[openvino]'"
VERBS = ("export", "load", "require", "timer", "times_layers")


class Bag(nn.Module):
    """The smallest model with token inputs: the mean of embeddings, classified."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        return self.head((self.table(input_ids) * mask).sum(1) / mask.sum(1))


@dataclasses.dataclass(frozen=True)
class Noting(Exporter):
    """Says what it was given."""

    name: ClassVar[str] = "noting"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8")

    @property
    def calibrated(self) -> bool:
        return self.precision == "int8"

    def export(
        self, model: nn.Module, example: Mapping[str, Tensor], path: Path, samples: Sequence[Arrays] = ()
    ) -> Exported:
        return Exported(path, (), {"samples": samples})

    def load(self, path: Path, session: Session = Session()) -> Runner:  # noqa: B008 (frozen)
        raise NotImplementedError


def needs(name: str) -> Any:
    """The exporter of a row, whose runtime is installed."""
    exporter = registry.load("exporters", name)()
    if lacking := registry.missing(exporter.packages):
        pytest.skip(f"needs {' and '.join(lacking)}: {' and '.join(lacking.values())}")
    return exporter


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, padded: Callable[..., dict[str, Tensor]]
) -> Callable[[str], Exported]:
    """The export of the smallest model by the exporter of a row, not to be changed."""
    done: dict[str, Exported] = {}

    def export(name: str) -> Exported:
        if name not in done:
            exporter, path = needs(name), tmp_path_factory.mktemp(name) / "export"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some runtimes warn of themselves when they are imported
                done[name] = exporter.export(Bag().eval(), padded(2, 7), path)
        return done[name]

    return export


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without OpenVINO."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else real(name))


@every_exporter
def test_a_row_is_a_frozen_dataclass_that_derives_from_the_base_and_carries_its_name(name: str) -> None:
    cls = registry.load("exporters", name)
    assert issubclass(cls, Exporter)
    assert vars(cls)["__dataclass_params__"].frozen
    assert (cls.name, cls().precision) == (name, "fp32")
    assert all(command.startswith("pip install") for command in cls.packages.values())


@every_exporter
@pytest.mark.parametrize("verb", VERBS)
def test_a_row_takes_what_the_base_takes(name: str, verb: str) -> None:
    given, promised = (
        [(one.name, one.kind, one.default) for one in inspect.signature(getattr(cls, verb)).parameters.values()]
        for cls in (registry.load("exporters", name), Exporter)
    )
    assert given == promised


@every_exporter
def test_a_row_is_built_for_every_precision_that_it_writes_and_for_no_other(name: str) -> None:
    written = registry.load("exporters", name).precisions
    assert [registry.exporter(name, precision).precision for precision in written] == list(written)
    with pytest.raises(ExportError) as told:
        registry.load("exporters", name)(precision="int3")
    *most, last = written
    assert str(told.value) == f"The {name} exporter writes {', '.join(most)} and {last}, not 'int3'."
    with pytest.raises(InputError, match="not 'int3'"):
        registry.exporter(name, "int3")


@every_exporter
def test_a_row_says_of_every_precision_where_it_runs_and_what_goes_with_it(name: str) -> None:
    for precision in registry.load("exporters", name).precisions:
        exporter = registry.exporter(name, precision)
        assert "cpu" in exporter.devices
        assert set(exporter.devices) <= set(get_args(Device))
        assert set(exporter.beside) <= {*exporter.precisions} - {precision}
        assert isinstance(exporter.calibrated, bool)


@every_exporter
def test_a_device_that_a_row_has_not_is_refused_before_anything_is_made(name: str) -> None:
    for precision in registry.load("exporters", name).precisions:
        exporter = registry.exporter(name, precision)
        exporter.require(Session("cpu"))
        for device in {*get_args(Device)} - {*exporter.devices}:
            with pytest.raises(DependencyError, match=rf"export of {name} runs on the cpu, not on {device}: set `va"):
                exporter.require(Session(device))


@every_exporter
def test_a_device_that_a_row_has_not_is_refused_when_an_export_is_loaded(
    name: str, exported: Callable[[str], Exported]
) -> None:
    exporter = needs(name)
    if "cuda" in exporter.devices:
        pytest.skip(f"{name} runs on every device")
    with pytest.raises(DependencyError, match="not on cuda"):
        exporter.load(exported(name).path, Session("cuda"))


@every_exporter
def test_a_row_times_layers_or_says_that_it_cannot(name: str) -> None:
    exporter = registry.exporter(name, "fp32")
    if exporter.times_layers():
        assert "fp32" in exporter.timer(Session(threads=1)).label
        return
    with pytest.raises(InputError, match=f"Layers cannot be timed on {name}"):
        exporter.timer(Session())


@every_exporter
def test_an_empty_folder_is_no_export(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="xport"):
        needs(name).load(tmp_path)


@every_exporter
def test_an_export_says_what_it_is(name: str, exported: Callable[[str], Exported]) -> None:
    export = exported(name)
    told = record.read(export.path)
    assert (told.runtime, told.precision, told.model_files) == (name, "fp32", export.model_files)
    assert told.facts == json.loads(json.dumps(export.facts))
    assert all((export.path / file).stat().st_size > 0 for file in export.model_files)
    assert [value["name"] for value in told.inputs] == ["input_ids", "attention_mask"]


@every_exporter
def test_an_export_overwrites_nothing(
    name: str, exported: Callable[[str], Exported], padded: Callable[..., dict[str, Tensor]]
) -> None:
    export = exported(name)
    before = {file: file.read_bytes() for file in export.path.iterdir()}
    with pytest.raises(ExportError, match="exists already"):
        needs(name).export(Bag(), padded(2, 7), export.path)
    assert {file: file.read_bytes() for file in export.path.iterdir()} == before


@every_exporter
def test_an_export_is_loaded_and_run_without_torch_where_torch_is_not_the_runtime(
    name: str, exported: Callable[[str], Exported], padded: Callable[..., dict[str, Tensor]]
) -> None:
    inputs = padded(3, 5)
    arrays = {key: tensor.tolist() for key, tensor in inputs.items()}
    code = (
        "import json, sys; import numpy as np; from pathlib import Path; from compressor import registry;"
        f"runner = registry.load('exporters', {name!r})().load(Path({str(exported(name).path)!r}));"
        f"inputs = {{key: np.array(rows) for key, rows in {arrays!r}.items()}};"
        "logits = runner(inputs | {'labels': np.zeros(3)})['logits'].tolist();"
        "print(json.dumps([logits, runner.providers, 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    logits, providers, torched = json.loads(done.stdout.splitlines()[-1])
    with torch.no_grad():
        np.testing.assert_allclose(logits, Bag()(**inputs).numpy(), rtol=0, atol=1e-4)
    assert providers
    assert torched == ("torch" in needs(name).packages)


@pytest.mark.parametrize(("precision", "given"), [("fp32", ()), ("int8", ("a batch",))])
def test_samples_are_made_only_where_a_precision_is_calibrated(precision: str, given: object, tmp_path: Path) -> None:
    made: list[str] = []

    def samples() -> Any:
        made.append("samples")
        return ("a batch",)

    export = write(Noting(precision), Bag, {}, tmp_path, samples)
    assert (export.facts["samples"], bool(made)) == (given, bool(given))


def test_an_exporter_of_one_precision_says_so() -> None:
    class One(Noting):
        precisions = ("fp32",)

    with pytest.raises(ExportError, match="The noting exporter writes fp32, not 'int8'"):
        One("int8")


def test_an_exporter_that_leaves_out_what_it_must_say_is_told_by_python() -> None:
    class Unloadable(Noting):
        load = Exporter.load

    with pytest.raises(TypeError, match=r"abstract .*load"):
        Unloadable()


OTHERS = """
from exporters.onnx import OnnxExporter

class Loose:
    name, precision = "loose", "fp32"

def made(precision="fp32"):
    return OnnxExporter(precision)

class Ours(OnnxExporter):
    name = "ours"
"""


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution that registers an exporter, and two things that are none."""
    info = tmp_path / "others-1.dist-info"
    info.mkdir()
    (tmp_path / "other_exporters.py").write_text(OTHERS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1\n")
    rows = "".join(f"{row.lower()} = other_exporters:{row}\n" for row in ("Loose", "made", "Ours", "Gone"))
    (info / "entry_points.txt").write_text(f"[rankfold.exporters]\n{rows}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "other_exporters", raising=False)


@pytest.mark.usefixtures("others")
def test_a_row_whose_module_lacks_what_it_names_is_told() -> None:
    with pytest.raises(DependencyError, match=r"^other_exporters has no 'Gone', which is registered of it: update or"):
        registry.exporter("gone", "fp32")
    assert {one.topic: one for one in doctor.diagnose()}["gone"].status == "broken"


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(("name", "attribute"), [("loose", "Loose"), ("made", "made")])
def test_an_exporter_of_others_that_does_not_derive_from_the_base_is_refused(name: str, attribute: str) -> None:
    sentence = (
        rf"^other_exporters:{attribute}, which is registered as the exporter '{name}', does not derive from "
        r"exporters\.base:Exporter: let it, as docs/add-an-exporter\.md of rankfold shows, or .* uninstall"
    )
    with pytest.raises(DependencyError, match=sentence):
        registry.exporter(name, "fp32")
    found = {one.topic: one for one in doctor.diagnose()}[name]
    assert (found.status, found.text.split()[0]) == ("broken", f"other_exporters:{attribute},")


@pytest.mark.usefixtures("others")
def test_an_exporter_of_others_that_derives_from_the_base_is_a_row_like_ours() -> None:
    assert registry.exporter("ours", "int8").beside == ()
    assert registry.load("exporters", "ours").times_layers()


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
