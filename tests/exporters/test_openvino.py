"""The OpenVINO export: what it computes, what stands in it, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from compressor import registry
from compressor.errors import ArtifactError, DependencyError, ExportError, RuntimeFailure
from exporters.base import Exported, Session
from exporters.generate import continuation
from exporters.onnx import graph as onnx_graph
from exporters.openvino import OpenvinoExporter
from exporters.openvino import runtime as openvino_runtime
from exporters.record import EXPORT_FILE

Padded = Callable[..., dict[str, Tensor]]
Folded = Callable[[Any], Any]

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs OpenVINO: pip install 'rankfold[openvino]'"
)
needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="needs NNCF: pip install 'rankfold[openvino]'"
)
VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
}
DECODERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.4)
    ),
}


def arrays(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@pytest.fixture(scope="module")
def bert(tiny_bert: Callable[..., Any], folded: Folded) -> Any:
    """A folded classifier."""
    return folded(tiny_bert())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, bert: Any, padded: Padded) -> Callable[[str], Exported]:
    """Precision -> the classifier's export, made once and beside the others."""
    folder = tmp_path_factory.mktemp("openvino")
    done: dict[str, Exported] = {}

    def export(precision: str) -> Exported:
        if precision not in done:
            if precision != "fp32":
                export("fp32")
            exporter = OpenvinoExporter(precision=precision)  # type: ignore[arg-type]
            samples = [arrays(padded(rows, 9)) for rows in (8, 9, 10)] if exporter.calibrated else []
            done[precision] = exporter.export(bert, padded(2, 7), folder / f"openvino-{precision}", samples)
        return done[precision]

    return export


Exports = Callable[[str], Exported]


def constants(folder: Path) -> list[Any]:
    """The stored tensors of an IR: element type and shape."""
    (openvino,) = registry.imported(openvino_runtime.PACKAGES)
    found = openvino.Core().read_model(folder / "model.xml").get_ops()
    return [
        (one.get_output_element_type(0).to_string(), tuple(one.get_output_shape(0)))
        for one in found
        if one.get_type_name() == "Constant"
    ]


@needs_openvino
@pytest.mark.parametrize("shape", [(1, 3), (1, 16), (5, 9), (3, 12)])
def test_the_graph_computes_what_the_model_computes_at_any_shape(
    exported: Exports, bert: Any, shape: tuple[int, int], padded: Padded
) -> None:
    inputs = padded(*shape)
    found = OpenvinoExporter().load(exported("fp32").path, Session(threads=1))(arrays(inputs))["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(found, bert(**inputs).logits.numpy(), rtol=0, atol=1e-4)


@needs_openvino
def test_the_weight_bytes_are_those_of_the_model(exported: Exports, bert: Any) -> None:
    facts = exported("fp32").facts
    linear = sum(layer.weight.numel() for layer in bert.modules() if isinstance(layer, nn.Linear))
    distinct = {
        parameter.detach().numpy().tobytes() for parameter in bert.parameters()
    }  # biases of zeros are stored once
    floats = sum(map(len, distinct)) // 4
    assert facts["matmul_weight_bytes"] == 4 * linear
    assert 4 * floats <= facts["initializer_bytes"] < 4 * floats + 5_000  # and some integer constants
    assert facts["file_bytes"]["model.bin"] >= 4 * floats
    assert facts["nodes"]["MatMul"] == sum(isinstance(layer, nn.Linear) for layer in bert.modules()) + 2 * 2


@needs_openvino
def test_the_folder_says_what_it_is_and_how_it_was_made(exported: Exports) -> None:
    export = exported("fp32")
    facts = json.loads((export.path / EXPORT_FILE).read_text())
    assert facts == export.facts
    assert (facts["runtime"], facts["precision"], facts["reused_fp32_graph"]) == ("openvino", "fp32", False)
    assert facts["inputs"][0] == {"name": "input_ids", "dtype": "int64", "axes": [None, None]}
    assert facts["outputs"] == [{"name": "logits", "dtype": "float32", "axes": [None, 3]}]
    assert [figure["shape"][0] for figure in facts["parity"]] == [1, 2, 3]
    assert max(figure["max_difference"] for figure in facts["parity"]) < 1e-4
    assert set(facts["versions"]) == {"torch", "onnx", "openvino"}
    assert json.loads((export.path / "config.json").read_text())["model_type"] == "bert"
    assert export.model_files == ("model.xml", "model.bin")
    names = {file.name for file in export.path.iterdir()}
    assert names == {"model.xml", "model.bin", "config.json", EXPORT_FILE}


@needs_openvino
def test_the_graph_tells_nothing_of_the_exporting_machine(exported: Exports) -> None:
    raw = (exported("fp32").path / "model.xml").read_text()
    assert ".py" not in raw
    assert str(Path.cwd()) not in raw


@needs_openvino
def test_fp16_stores_half_the_bytes_and_computes_nearly_the_same(exported: Exports, padded: Padded) -> None:
    full, half = exported("fp32"), exported("fp16")
    assert half.facts["reused_fp32_graph"]
    assert half.facts["matmul_weight_bytes"] * 2 == full.facts["matmul_weight_bytes"]
    inputs = arrays(padded(4, 9))
    found, expected = (OpenvinoExporter().load(one.path)(inputs)["logits"] for one in (half, full))
    assert 0 < np.abs(found - expected).max() < 0.02
    assert not [shape for kind, shape in constants(half.path) if kind == "f32" and len(shape) > 1 and max(shape) > 8]


@needs_openvino
@needs_nncf
def test_int8_stores_a_quarter_of_the_bytes_and_agrees(
    exported: Exports, bert: Any, capfd: pytest.CaptureFixture[str], padded: Padded
) -> None:
    full, small = exported("fp32"), exported("int8")
    assert capfd.readouterr().out == ""  # where results stand
    assert small.facts["matmul_weight_bytes"] * 4 == full.facts["matmul_weight_bytes"]
    linear = sum(isinstance(layer, nn.Linear) for layer in bert.modules())
    embeddings = sum(isinstance(layer, nn.Embedding) for layer in bert.modules())
    eights = [shape for kind, shape in constants(small.path) if kind == "u8" and len(shape) == 2 and min(shape) > 1]
    assert len(eights) in (linear + embeddings, linear + embeddings - 1)  # token types, all zero, may be folded
    assert small.facts["quantization"]["weights"].startswith("8 bits")
    inputs = padded(16, 9)
    found = OpenvinoExporter().load(small.path)(arrays(inputs))["logits"]
    with torch.no_grad():
        expected = bert(**inputs).logits.numpy()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99
    assert np.abs(found - expected).max() > 1e-4  # it did compute with rounded weights


@needs_openvino
@needs_nncf
def test_static_int8_rounds_what_products_read_too_and_agrees(
    exported: Exports, bert: Any, capfd: pytest.CaptureFixture[str], padded: Padded
) -> None:
    full, small = exported("fp32"), exported("int8-static")
    assert capfd.readouterr().out == ""  # where results stand
    assert small.facts["reused_fp32_graph"]
    assert small.facts["matmul_weight_bytes"] * 4 == full.facts["matmul_weight_bytes"]
    linear = sum(isinstance(layer, nn.Linear) for layer in bert.modules())
    assert small.facts["nodes"]["FakeQuantize"] >= linear / 2  # query, key and value read the same numbers
    assert not [shape for kind, shape in constants(small.path) if kind == "f32" and len(shape) > 1 and min(shape) > 1]
    assert small.facts["quantization"]["activations"].startswith("8 bits")
    assert set(small.facts["versions"]) == {"torch", "onnx", "openvino", "nncf"}
    inputs = padded(16, 9)
    found = OpenvinoExporter().load(small.path)(arrays(inputs))["logits"]
    with torch.no_grad():
        expected = bert(**inputs).logits.numpy()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.97
    assert np.abs(found - expected).max() > 1e-4


class Plain(nn.Module):
    """One linear layer, as a model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 8)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)


@needs_openvino
@needs_nncf
def test_static_int8_knows_the_range_that_its_samples_had(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, features = Plain(), torch.randn(64, 16)
    expected = model(features).detach().numpy()
    errors = {}
    for share in (1.0, 0.1):
        exporter = OpenvinoExporter(precision="int8-static")
        samples = [{"features": share * features.numpy()}]
        export = exporter.export(model, {"features": features[:2]}, tmp_path / str(share), samples)
        found = exporter.load(export.path)({"features": features.numpy()})["logits"]
        errors[share] = np.abs(found - expected).max()
    assert errors[1.0] < 0.1  # whatever passes the range is cut off at it
    assert errors[0.1] > 0.5


@needs_openvino
@needs_nncf
def test_static_int8_without_samples_is_refused_before_anything_is_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "write", lambda *_: pytest.fail("traced"))
    with pytest.raises(ExportError, match="int8-static measures its ranges on data: give `export` at least one batch"):
        OpenvinoExporter(precision="int8-static").export(Plain(), {"features": torch.randn(2, 16)}, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@needs_openvino
@needs_nncf
def test_static_int8_of_a_decoder_is_refused_with_what_to_export(
    tmp_path: Path, padded: Padded, folded: Folded
) -> None:
    torch.manual_seed(0)
    inputs = padded(2, 3, VOCABULARY)
    with pytest.raises(ExportError, match=r"int8-static is not for a model with a cache: .* Export int8"):
        OpenvinoExporter(precision="int8-static").export(
            folded(DECODERS["gpt2"]()), inputs, tmp_path / "export", [arrays(inputs)]
        )
    assert list(tmp_path.iterdir()) == []


@needs_openvino
def test_a_smaller_precision_takes_the_fp32_graph_beside_it(
    exported: Exports, bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, padded: Padded
) -> None:
    shutil.copytree(exported("fp32").path, tmp_path / "openvino-fp32")
    monkeypatch.setattr(onnx_graph, "write", lambda *_: pytest.fail("traced again"))
    OpenvinoExporter(precision="fp16").export(bert, padded(2, 7), tmp_path / "openvino-fp16")


@needs_openvino
@pytest.mark.parametrize("spoiled", ["weights", "facts"])
def test_it_traces_anew_where_the_fp32_export_is_another(
    exported: Exports, tiny_bert: Callable[..., Any], bert: Any, tmp_path: Path, spoiled: str, padded: Padded
) -> None:
    shutil.copytree(exported("fp32").path, tmp_path / "openvino-fp32")
    if spoiled == "facts":
        (tmp_path / "openvino-fp32" / EXPORT_FILE).write_text("{")
    model = bert if spoiled == "facts" else tiny_bert(seed=1)
    export = OpenvinoExporter(precision="fp16").export(model, padded(2, 7), tmp_path / "openvino-fp16")
    assert not export.facts["reused_fp32_graph"]
    found = OpenvinoExporter().load(export.path)(arrays(padded(3, 5)))["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(found, model(**padded(3, 5)).logits.numpy(), atol=0.02)
    assert {file.name for file in export.path.iterdir()} == {"model.xml", "model.bin", "config.json", EXPORT_FILE}


@needs_openvino
def test_the_same_model_gives_the_same_bytes(exported: Exports, bert: Any, tmp_path: Path, padded: Padded) -> None:
    again = OpenvinoExporter().export(bert, padded(2, 7), tmp_path / "again")
    for name in again.model_files:
        assert (again.path / name).read_bytes() == (exported("fp32").path / name).read_bytes()


@needs_openvino
def test_an_image_classifier_is_exported(tmp_path: Path, folded: Folded) -> None:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=16, patch_size=8
    )
    model = folded(ViTForImageClassification(config))
    images = torch.randn(2, 3, 16, 16)
    export = OpenvinoExporter().export(model, {"pixel_values": images}, tmp_path / "vit")
    more = torch.randn(5, 3, 16, 16)
    found = OpenvinoExporter().load(export.path)({"pixel_values": more.numpy(), "labels": np.zeros(5)})["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(found, model(more).logits.numpy(), rtol=0, atol=1e-4)


@pytest.fixture(scope="module", params=DECODERS)
def decoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, padded: Padded, folded: Folded
) -> tuple[Any, Any]:
    """A language model and the runner of its export."""
    torch.manual_seed(0)
    model = folded(DECODERS[request.param]())
    path = tmp_path_factory.mktemp(request.param) / "openvino-fp32"
    exporter = OpenvinoExporter()
    exporter.export(model, padded(2, 3, VOCABULARY), path)
    return model, exporter.load(path, Session(threads=1))


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """By whole forward passes, without any cache."""
    said = list(prompt)
    for _ in range(count):
        said.append(int(model(input_ids=torch.tensor([said]), use_cache=False).logits[0, -1].argmax()))
    return said[len(prompt) :]


@needs_openvino
@pytest.mark.parametrize("prompt", [[5, 6, 7], [96], [2, 11, 2, 40, 8, 8, 30, 61, 17]])
def test_a_decoder_continues_token_by_token_as_torch_does(decoder: tuple[Any, Any], prompt: list[int]) -> None:
    model, runner = decoder
    assert runner.cached
    assert list(continuation(runner, prompt, new_tokens=40)) == greedy(model, prompt, 40)


@needs_openvino
def test_a_padded_batch_of_a_decoder_gives_each_row_what_it_gives_alone(decoder: tuple[Any, Any]) -> None:
    _, runner = decoder
    ids = np.array([[5, 9, 2, 7, 3], [0, 0, 0, 4, 8]])  # padded on the left
    mask = np.array([[1] * 5, [0, 0, 0, 1, 1]])
    together = runner({"input_ids": ids, "attention_mask": mask})["logits"]
    for row, alone in enumerate(([5, 9, 2, 7, 3], [4, 8])):
        found = runner({"input_ids": np.array([alone]), "attention_mask": np.ones((1, len(alone)))})["logits"]
        np.testing.assert_allclose(together[row, -1], found[0, -1], atol=1e-4)


@needs_openvino
def test_a_missing_input_is_named(exported: Exports) -> None:
    runner = OpenvinoExporter().load(exported("fp32").path)
    with pytest.raises(RuntimeFailure, match="needs the inputs attention_mask too; got input_ids"):
        runner({"input_ids": np.ones((1, 3))})


@needs_openvino
@pytest.mark.parametrize("threads", [1, 2])
def test_inputs_that_do_not_fit_are_told_and_leave_no_trace(exported: Exports, threads: int, padded: Padded) -> None:
    """OpenVINO's own synchronous `infer` on one thread raises nothing and gives the result of the call before."""
    runner = OpenvinoExporter().load(exported("fp32").path, Session(threads=threads))
    first = runner(arrays(padded(1, 3)))["logits"]
    for _ in range(2):
        with pytest.raises(RuntimeFailure, match=r"model\.xml on input_ids \(1, 3\), attention_mask \(1, 4\): \[CPU\]"):
            runner({"input_ids": np.ones((1, 3)), "attention_mask": np.ones((1, 4))})
    other = runner(arrays(padded(2, 4)))["logits"]
    assert other.shape == (2, 3)
    np.testing.assert_array_equal(runner(arrays(padded(1, 3)))["logits"], first)


@needs_openvino
def test_results_stay_what_they_were_when_the_runner_is_called_again(exported: Exports, padded: Padded) -> None:
    runner = OpenvinoExporter().load(exported("fp32").path)
    first = runner(arrays(padded(2, 5)))["logits"]
    kept = first.copy()
    runner(arrays(padded(2, 6)))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    for file in {"model.xml", "model.bin"} - {name}:
        (tmp_path / file).touch()
    with pytest.raises(ArtifactError, match=f"{tmp_path / name} missing"):
        OpenvinoExporter().load(tmp_path)


@needs_openvino
@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_a_file_that_was_cut_off_is_refused_with_its_path(exported: Exports, tmp_path: Path, name: str) -> None:
    shutil.copytree(exported("fp32").path, tmp_path / "cut")
    file = tmp_path / "cut" / name
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(RuntimeFailure, match=rf"OpenVINO refuses {tmp_path / 'cut' / 'model.xml'} \(\d+ bytes") as told:
        OpenvinoExporter().load(tmp_path / "cut")
    assert "Exception from" not in str(told.value)


def test_cuda_is_refused_with_what_runs_there(tmp_path: Path) -> None:
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).touch()
    with pytest.raises(DependencyError, match=r"not on cuda: set `validate\.device: cpu`") as told:
        OpenvinoExporter().load(tmp_path, Session(device="cuda"))
    assert told.value.exit_code == 3


def test_a_precision_that_it_cannot_write_is_refused() -> None:
    with pytest.raises(ExportError, match="writes fp32, fp16, int8 and int8-static, not 'int4'"):
        OpenvinoExporter(precision="int4")  # type: ignore[arg-type]


@pytest.mark.parametrize(("gone", "precision"), [("openvino", "fp32"), ("nncf", "int8"), ("nncf", "int8-static")])
def test_a_missing_package_is_named_with_the_command_before_anything_is_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bert: Any, gone: str, precision: str, padded: Padded
) -> None:
    real = importlib.util.find_spec
    if gone == "nncf" and real("openvino") is None:
        pytest.skip("needs OpenVINO: pip install 'rankfold[openvino]'")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == gone else real(name))
    monkeypatch.setattr(onnx_graph, "write", lambda *_: pytest.fail("traced"))
    with pytest.raises(DependencyError, match=rf"{gone} is not installed: `pip install 'rankfold\[openvino\]'`"):
        OpenvinoExporter(precision=precision).export(bert, padded(2, 7), tmp_path / "export")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@needs_openvino
def test_loading_and_running_imports_no_torch_and_reports_to_nobody(exported: Exports) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from compressor import registry;"
        f"runner = registry.load('exporters', 'openvino')().load(Path({str(exported('fp32').path)!r}));"
        "ones = np.ones((1, 2)); print(runner({'input_ids': ones, 'attention_mask': ones})['logits'].shape);"
        "print(runner.providers);"
        "names = {'torch', 'onnx', 'onnxruntime', 'transformers', 'nncf', 'openvino_telemetry'};"
        "print([name for name in names if sys.modules.get(name)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["(1, 3)", "('CPU',)", "[]"]
    assert done.stderr == ""


def test_threads_and_precision_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runtime, "usable_threads", lambda: 3)
    assert openvino_runtime.options(Session(threads=5))["INFERENCE_NUM_THREADS"] == 5
    assert openvino_runtime.options(Session())["INFERENCE_NUM_THREADS"] == 3
    assert openvino_runtime.options(Session())["INFERENCE_PRECISION_HINT"] == "f32"


@needs_openvino
def test_the_runtime_took_the_options(exported: Exports) -> None:
    compiled = OpenvinoExporter().load(exported("fp32").path, Session(threads=1)).compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
