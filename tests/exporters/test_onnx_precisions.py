"""Every precision of the ONNX exporter on a text, an image and a language model: what it computes and stores."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, ResNetConfig, ResNetForImageClassification

from compressor import registry
from compressor.errors import ExportError, InputError
from compressor.factorize import factorize_, fold_, plan
from compressor.methods.spectral import Spectral
from exporters.base import Exported
from exporters.generate import continuation
from exporters.onnx import OnnxExporter
from exporters.onnx import fp16 as onnx_fp16
from exporters.onnx.exporter import Precision
from exporters.onnx.precisions import PRECISIONS
from exporters.record import EXPORT_FILE

Arrays = Mapping[str, np.ndarray]
KINDS = ("text", "image", "decoder")
SMALLER = [name for name, row in PRECISIONS.items() if row.stage and "fused" not in name]  # those: elsewhere
COST = {
    "fp16": 0.01,
    "int8": 0.2,
    "int8-static": 0.3,
    "int8-weights": 0.02,
    "int4": 0.6,
}  # largest difference, as a share of the logits' range


class Plain(nn.Module):
    """A module of float features, as small as its test needs."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class Twice(nn.Module):
    """The same layer used twice, as in ALBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(features)))


def folded(model: nn.Module) -> nn.Module:
    method = Spectral()
    return fold_(factorize_(model, method, {}, plan(model, method, {}, keep=0.6, multiple_of=1)))


def text(tiny_bert: Callable[..., Any]) -> tuple[nn.Module, list[Arrays]]:
    return folded(tiny_bert()), tokens()


def image(_: Any) -> tuple[nn.Module, list[Arrays]]:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    generator = np.random.default_rng(0)
    batches = [{"pixel_values": generator.normal(size=(4, 3, 32, 32)).astype(np.float32)} for _ in range(4)]
    return ResNetForImageClassification(config).eval(), batches


def decoder(_: Any) -> tuple[nn.Module, list[Arrays]]:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=40,  # no multiple of int4's block of 32
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    return folded(LlamaForCausalLM(config).eval()), tokens()


def tokens() -> list[Arrays]:
    generator = np.random.default_rng(0)
    mask = (np.arange(7) < np.array([7, 5, 6, 7])[:, None]).astype(np.int64)
    return [{"input_ids": generator.integers(1, 50, (4, 7)), "attention_mask": mask} for _ in range(4)]


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Callable[..., Any]
) -> Callable[[str], tuple[nn.Module, list[Arrays], Path]]:
    """A kind of model -> the model, batches of its inputs, and the folder that its fp32 export lies in."""
    done: dict[str, tuple[nn.Module, list[Arrays], Path]] = {}

    def make(kind: str) -> tuple[nn.Module, list[Arrays], Path]:
        if kind not in done:
            torch.manual_seed(0)
            model, batches = {"text": text, "image": image, "decoder": decoder}[kind](tiny_bert)
            folder = tmp_path_factory.mktemp(kind)
            OnnxExporter().export(model, example(batches), folder / "onnx-fp32")
            done[kind] = model, batches, folder
        return done[kind]

    return make


@pytest.fixture(scope="module")
def exported(made: Callable[..., Any]) -> Callable[[str, str], Exported]:
    """(kind, precision) -> its export, made once beside the fp32 one and calibrated on the batches."""
    done: dict[tuple[str, str], Exported] = {}

    def make(kind: str, precision: str) -> Exported:
        if (kind, precision) not in done:
            model, batches, folder = made(kind)
            exporter = OnnxExporter(precision=precision)  # type: ignore[arg-type]
            path = folder / f"onnx-{precision}"
            done[kind, precision] = exporter.export(model, example(batches), path, batches)
        return done[kind, precision]

    return make


def example(batches: Sequence[Arrays]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array[:2]) for name, array in batches[0].items()}


def run(path: Path, inputs: Arrays) -> np.ndarray:
    return OnnxExporter().load(path)(inputs)["logits"]


def stored(path: Path) -> onnx.GraphProto:
    return onnx.load(path / "model.onnx").graph


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", SMALLER)
def test_every_precision_computes_nearly_what_the_model_computes(
    made: Callable[..., Any], exported: Callable[[str, str], Exported], kind: str, precision: str
) -> None:
    model, batches, _ = made(kind)
    inputs = batches[1]
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()
    found = run(exported(kind, precision).path, inputs)
    assert found.dtype == np.float32
    real = inputs["attention_mask"].astype(bool) if kind == "decoder" else np.ones(len(expected), bool)
    difference = np.abs(found - expected)[real].max() / np.ptp(expected[real])
    assert 0 < difference < COST[precision]
    assert np.corrcoef(found[real].ravel(), expected[real].ravel())[0, 1] > (0.999 if precision == "fp16" else 0.95)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", SMALLER)
def test_the_folder_says_how_it_was_made_and_how_far_it_is_from_torch(
    exported: Callable[[str, str], Exported], kind: str, precision: str
) -> None:
    export = exported(kind, precision)
    facts = json.loads((export.path / EXPORT_FILE).read_text())
    assert facts == export.facts
    onnx.checker.check_model(export.path / "model.onnx")
    assert (facts["precision"], facts["reused_fp32_graph"]) == (precision, True)
    assert {"embeddings", "reduce_range", "block"} & facts.keys() == set(PRECISIONS[precision].knobs)
    worst = {name: max(one["max_difference"] for one in facts[name]) for name in ("parity", "parity_fp32")}
    assert worst["parity_fp32"] < 1e-4 < worst["parity"]


@pytest.mark.parametrize("kind", KINDS)
def test_fp16_stores_every_weight_in_two_bytes(exported: Callable[[str, str], Exported], kind: str) -> None:
    initializers = stored(exported(kind, "fp16").path).initializer
    weights = [tensor for tensor in initializers if sum(size > 1 for size in tensor.dims) > 1]  # no angles' frequencies
    floats = [tensor for tensor in weights if tensor.data_type != onnx.TensorProto.INT64]
    assert floats
    assert {tensor.data_type for tensor in floats} == {onnx.TensorProto.FLOAT16}


def test_a_cast_that_a_converter_repeats_for_each_reader_is_there_once() -> None:
    cast = onnx.helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)
    other = onnx.helper.make_node("Cast", ["x"], ["z"], to=onnx.TensorProto.FLOAT)
    value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    graph = onnx.helper.make_graph([cast, other, cast], "g", [], [], value_info=[value, value])
    onnx_fp16._cast_once(graph)
    assert [node.output[0] for node in graph.node] == ["y", "z"]  # readers come behind the first
    assert len(graph.value_info) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_static_int8_leaves_no_weight_in_fp32(exported: Callable[[str, str], Exported], kind: str) -> None:
    graph = stored(exported(kind, "int8-static").path)
    assert not [w.name for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT and len(w.dims) > 1]
    assert not [node.name for node in graph.node if node.op_type == "DynamicQuantizeLinear"]


@pytest.mark.parametrize("precision", ["int8-weights", "int4"])
@pytest.mark.parametrize("kind", ["text", "decoder"])
def test_blocks_leave_no_product_and_no_table_in_fp32(
    exported: Callable[[str, str], Exported], kind: str, precision: str
) -> None:
    graph = stored(exported(kind, precision).path)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and set(node.input) & set(weights)]
    tables = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in weights]
    assert not products
    assert {weights[node.input[0]].data_type for node in tables} <= {onnx.TensorProto.INT64}
    assert Counter(node.op_type for node in graph.node)["GatherBlockQuantized"] >= 1


@pytest.mark.parametrize("precision", ["fp16", "int8-weights", "int4"])
def test_a_decoder_with_its_cache_says_what_it_says_without(
    exported: Callable[[str, str], Exported], precision: str
) -> None:
    runner = OnnxExporter().load(exported("decoder", precision).path)
    prompt = [3, 14, 15, 9]
    said = list(continuation(runner, prompt, new_tokens=8))
    whole = list(prompt)
    for _ in said:
        ids = np.array([whole])
        whole.append(int(runner({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"][0, -1].argmax()))
    assert len(said) == 8
    assert whole[len(prompt) :] == said


def test_int4_rounds_to_sixteen_levels_of_each_block_and_pads_the_last(tmp_path: Path) -> None:
    layer, head = nn.Linear(40, 24), nn.Linear(24, 4)
    features = torch.randn(3, 40)
    export = OnnxExporter(precision="int4").export(Plain(layer, head), {"features": features}, tmp_path / "export")
    weight = layer.weight.detach().numpy()
    rounded = np.concatenate([levels(weight[:, :32]), levels(weight[:, 32:])], axis=1)
    found = run(export.path, {"features": features.numpy()})
    hidden = features.numpy() @ rounded.T + layer.bias.detach().numpy()
    expected = head(torch.from_numpy(hidden)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert np.abs(found - head(layer(features)).detach().numpy()).max() > 0.015
    stored = 24 * (2 * 16 + 2 * 4 + 1)  # two blocks of 16 bytes, scales, zeros
    assert export.facts["matmul_weight_bytes"] == stored + 4 * (32 + 4 + 1)  # and a block of 32 bytes


def test_the_product_that_gives_the_logits_has_eight_bits_in_int4(exported: Callable[[str, str], Exported]) -> None:
    for kind in ("text", "decoder"):
        nodes = [node for node in stored(exported(kind, "int4").path).node if node.op_type == "MatMulNBits"]
        bits = [attribute.i for node in nodes for attribute in node.attribute if attribute.name == "bits"]
        assert Counter(bits) == {4: len(nodes) - 1, 8: 1}
        assert bits[-1] == 8


def test_int8_weights_lose_less_than_int8_where_inputs_have_outliers(tmp_path: Path) -> None:
    layer = nn.Linear(512, 24)
    features = torch.randn(3, 512)
    features[:, 0] *= 1000  # with one scale for the tensor, all other values are rounded to steps of 8 or so
    with torch.no_grad():
        layer.weight[:, 0] = 0
    expected = layer(features).detach().numpy()
    error = {}
    for precision in ("int8", "int8-weights"):
        exporter = OnnxExporter(precision=precision)  # type: ignore[arg-type]
        export = exporter.export(Plain(layer), {"features": features}, tmp_path / precision)
        error[precision] = np.abs(run(export.path, {"features": features.numpy()}) - expected).max()
    assert export.facts["matmul_weight_bytes"] == 24 * 16 * (32 + 4 + 1)  # blocks of 32 bytes, scales, zeros
    assert error["int8-weights"] < 0.5 * error["int8"]


def test_a_table_of_bytes_has_a_scale_for_each_block_of_a_row(tmp_path: Path) -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 40)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.table(input_ids)

    model, ids = Lookup(), {"input_ids": torch.arange(10).reshape(2, 5)}
    with torch.no_grad():
        model.table.weight[3] = 0  # a row without a scale
        model.table.weight[4, 32:] *= 1000
    export = OnnxExporter(precision="int8-weights").export(model, ids, tmp_path / "export")
    table = model.table.weight.detach().numpy()
    rounded = np.concatenate([levels(table[:, :32], 255), levels(table[:, 32:], 255)], axis=1)
    found = run(export.path, {name: value.numpy() for name, value in ids.items()}).reshape(10, 40)
    np.testing.assert_allclose(found, rounded, rtol=1e-5, atol=1e-6)
    assert export.facts["initializer_bytes"] == 10 * (40 + 2 * 4 + 2)


def levels(block: np.ndarray, steps: int = 15) -> np.ndarray:
    """Each row (of one block) on equal steps from its least to its greatest value, zero among them."""
    low, high = np.minimum(block.min(1, keepdims=True), 0), np.maximum(block.max(1, keepdims=True), 0)
    scale = (high - low) / steps
    scale[scale == 0] = 1
    zero = np.round(-low / scale)
    return (np.clip(np.round(block / scale + zero), 0, steps) - zero) * scale


def test_a_layer_that_is_used_twice_is_stored_once_in_int4(tmp_path: Path) -> None:
    features = torch.randn(3, 64)
    model = Plain(Twice(), nn.Linear(64, 4))
    export = OnnxExporter(precision="int4").export(model, {"features": features}, tmp_path / "export")
    assert export.facts["nodes"]["MatMulNBits"] == 3
    assert export.facts["matmul_weight_bytes"] == 64 * (2 * 16 + 2 * 4 + 1) + 4 * (2 * 32 + 2 * 4 + 2)


def test_fp16_takes_means_of_squares_that_it_cannot_hold(tmp_path: Path) -> None:
    features = 3000 * torch.randn(3, 16)  # squares far over 65504
    model = Plain(nn.RMSNorm(16, eps=1e-6), nn.Linear(16, 4))
    export = OnnxExporter(precision="fp16").export(model, {"features": features}, tmp_path / "export")
    found = run(export.path, {"features": features.numpy()})
    np.testing.assert_allclose(found, model(features).detach().numpy(), atol=0.01)


def test_fp16_keeps_the_angles_of_rotary_positions_in_float32(exported: Callable[[str, str], Exported]) -> None:
    graph = stored(exported("decoder", "fp16").path)
    made_by = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    waiting = [name for node in graph.node if node.op_type in ("Sin", "Cos") for name in node.input]
    read: set[int] = set()
    while waiting:
        name = waiting.pop()
        read |= {weights[name]} if name in weights else set()
        node = made_by.get(name)
        if node is not None:
            assert not [one for one in node.attribute if one.name == "to" and one.i == onnx.TensorProto.FLOAT16]
            waiting += node.input
    assert onnx.TensorProto.FLOAT in read  # the frequencies
    assert onnx.TensorProto.FLOAT16 not in read


def test_static_int8_knows_the_range_that_its_samples_had(tmp_path: Path) -> None:
    model, features = Plain(nn.Linear(16, 8)), torch.randn(64, 16)
    expected = model(features).detach().numpy()
    errors = {}
    for share in (1.0, 0.1):
        exporter = OnnxExporter(precision="int8-static")
        samples = [{"features": share * features.numpy()}]
        export = exporter.export(model, {"features": features[:2]}, tmp_path / str(share), samples)
        errors[share] = np.abs(run(export.path, {"features": features.numpy()}) - expected).max()
    assert errors[1.0] < 0.1  # whatever passes the range is cut off at it
    assert errors[0.1] > 0.5


def test_static_int8_without_samples_is_refused(tmp_path: Path) -> None:
    features = {"features": torch.randn(3, 8)}
    with pytest.raises(ExportError, match="int8-static measures its scales on data: give `export` at least one batch"):
        OnnxExporter(precision="int8-static").export(Plain(nn.Linear(8, 4)), features, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_int4_has_not_is_told(tmp_path: Path) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 32)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.table(input_ids).sum(1)

    ids = {"input_ids": torch.randint(10, (2, 3))}
    with pytest.raises(ExportError, match="int4 quantizer of blocks fails on this graph: Invalid block size"):
        OnnxExporter(precision="int4", block=24).export(Table(), ids, tmp_path / "export")


class Attending(nn.Module):
    """Reads a table's rows, and multiplies by it both ways."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(rows, 64), nn.Linear(64, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        shares = (x @ self.table.weight.T / 8).softmax(-1)
        return self.head((shares @ self.table.weight + x).sum(1))


@pytest.mark.parametrize("rows", [64, 96])
@pytest.mark.parametrize(("precision", "share"), [("int8-weights", 0.02), ("int4", 0.25)])
def test_a_table_that_is_looked_up_and_multiplied_as_it_is_stored(
    tmp_path: Path, rows: int, precision: Precision, share: float
) -> None:
    ids = torch.randint(rows, (2, 7))
    samples = [{"input_ids": ids.numpy()}]
    facts = OnnxExporter(precision).export(Attending(rows), {"input_ids": ids}, tmp_path / "x", samples).facts
    assert all(one["max_difference"] < share * one["largest_logit"] for one in facts["parity"])


@pytest.mark.parametrize("precision", ["int4", "int8-static"])
def test_an_export_leaves_logging_as_it_was(tmp_path: Path, precision: Precision) -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level, logging.root.manager.disable
    features = torch.randn(3, 8)
    exporter = OnnxExporter(precision=precision)
    exporter.export(Plain(nn.Linear(8, 4)), {"features": features}, tmp_path / "x", [{"features": features.numpy()}])
    assert (list(root.handlers), root.level, logging.root.manager.disable) == before


def test_the_table_and_the_type_name_the_same_precisions() -> None:
    assert tuple(PRECISIONS) == get_args(Precision)
    found = {name: registry.exporter("onnx", name) for name in PRECISIONS}
    calibrated = [name for name, exporter in found.items() if exporter.calibrated]
    assert calibrated == ["int8", "int8-static", "int4", "int8-fused"]
    assert [name for name, exporter in found.items() if "cuda" in exporter.devices] == ["fp32", "fp16", "int4"]
    with pytest.raises(
        InputError,
        match="int8-static, int8-weights, int4, fp32-fused and int8-fused, not 'int3'",
    ):
        registry.exporter("onnx", "int3")
