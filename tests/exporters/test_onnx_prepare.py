"""What is done to an fp32 graph before it is quantized: the same numbers, in forms that ONNX Runtime runs fast."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx.prepare import prepare

WIDTH = 8


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """norm(x @ w + skip), norm(that + shift), that + x: of three sums the first alone is a skip that a norm reads."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(WIDTH, WIDTH)),
        "shift": rng.normal(size=WIDTH),
        "scale": rng.normal(size=WIDTH),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "skip"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale", "shift"], ["first"], axis=-1, epsilon=1e-5),
        helper.make_node("Add", ["first", "shift"], ["shifted"]),
        helper.make_node("LayerNormalization", ["shifted", "scale", "shift"], ["second"], axis=-1, epsilon=1e-5),
        helper.make_node("Add", ["second", "x"], ["logits"]),
    ]
    shape = ["batch_size", 3, WIDTH]
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "skip", "logits")}
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    made = helper.make_graph(nodes, "norms", [values["x"], values["skip"]], [values["logits"]], weights)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


def outputs(path: Path, kinds: bool = False) -> np.ndarray | Counter[str]:
    """What a graph computes, or the operators that ONNX Runtime makes of it when it loads it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    loaded = path.with_suffix(".loaded.onnx")
    options.optimized_model_filepath = str(loaded)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    if kinds:
        return Counter(node.op_type for node in onnx.load(loaded).graph.node)
    rng = np.random.default_rng(1)
    feed = {name: rng.normal(size=(2, 3, WIDTH)).astype(np.float32) for name in ("x", "skip")}
    (found,) = session.run(None, feed)
    return np.asarray(found)


def test_a_skip_that_a_norm_reads_is_not_fused_with_it_and_computes_the_same(graph: Path, tmp_path: Path) -> None:
    prepare(graph, tmp_path / "out.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert kinds == ["MatMul", "Sum", "LayerNormalization", "Add", "LayerNormalization", "Add"]
    before, after = outputs(graph, kinds=True), outputs(tmp_path / "out.onnx", kinds=True)
    assert isinstance(before, Counter)
    assert isinstance(after, Counter)
    assert before["SkipLayerNormalization"] >= 1
    assert after["SkipLayerNormalization"] < before["SkipLayerNormalization"]
    np.testing.assert_allclose(outputs(tmp_path / "out.onnx"), outputs(graph), atol=1e-6)


def gemms(tmp_path: Path) -> Path:
    """Two products by one turned weight, one by it as it is, one scaled, and a head that is the table of lookups."""
    rng = np.random.default_rng(0)
    constants = {name: rng.normal(size=(WIDTH, WIDTH)) for name in ("table", "w")} | {"b": rng.normal(size=WIDTH)}
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["x"]),
        helper.make_node("Gemm", ["x", "w", "b"], ["once"], transB=1),
        helper.make_node("Gemm", ["once", "w", "b"], ["twice"], transB=1),
        helper.make_node("Gemm", ["twice", "w", "b"], ["thrice"]),
        helper.make_node("Gemm", ["thrice", "w", "b"], ["scaled"], alpha=0.5),
        helper.make_node("Gemm", ["scaled", "table"], ["logits"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("i", TensorProto.INT64, ["batch_size"])]
    logits = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", WIDTH])]
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    made = helper.make_graph(nodes, "gemms", inputs, logits, weights)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


def test_gemms_become_products_of_the_same_numbers_and_a_weight_that_others_read_stays_theirs(tmp_path: Path) -> None:
    source, target = gemms(tmp_path), tmp_path / "out.onnx"
    prepare(source, target, products=True)
    graph = onnx.load(target).graph
    assert Counter(node.op_type for node in graph.node) == {"Gather": 1, "MatMul": 4, "Add": 3, "Gemm": 1}
    assert {tensor.name for tensor in graph.initializer} == {"table", "table.T", "w", "w.T", "b"}
    assert [value.name for value in graph.output] == ["logits"]
    feed = {"i": np.array([3, 0, 7])}
    found, expected = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for path in (target, source)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_gemms_stay_where_nobody_asks_for_products(tmp_path: Path) -> None:
    prepare(gemms(tmp_path), tmp_path / "out.onnx")
    assert sum(node.op_type == "Gemm" for node in onnx.load(tmp_path / "out.onnx").graph.node) == 5
