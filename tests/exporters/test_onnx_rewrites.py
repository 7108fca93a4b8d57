"""Rewrites of a fused graph: each computes what the graph before it does, and leaves alone what it must not touch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest

from compressor.errors import ExportError
from exporters.onnx import apart as onnx_apart
from exporters.onnx import masks as onnx_masks
from exporters.onnx import rows as onnx_rows
from exporters.onnx import scales as onnx_scales

WIDTH = 8
OWN = "com.microsoft"
CONTRIB = {"MultiHeadAttention", "Attention", "SkipLayerNormalization", "BiasGelu"}
HEADS = {"num_heads": 2}
SOURCE = np.random.default_rng(0)
Node = tuple[Any, ...]  # operator, inputs, outputs, perhaps attributes


def normal(*shape: int) -> np.ndarray:
    return SOURCE.normal(size=shape).astype(np.float32)


X = normal(2, 5, WIDTH)  # (B, T, d)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def model(
    nodes: Sequence[Node], constants: Mapping[str, np.ndarray], outputs: Mapping[str, int], mask: bool = False
) -> onnx_ir.Model:
    """A graph over x (B, T, 8), and a mask (B, T), with outputs of so many axes."""
    tensor, float32 = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    inputs = [tensor("x", float32, ["b", "t", WIDTH])]
    if mask:
        inputs.append(tensor("mask", onnx.TensorProto.INT64, ["b", "t"]))
    graph = onnx.helper.make_graph(
        [_node(*node) for node in nodes],
        "g",
        inputs,
        [tensor(name, float32, [None] * axes) for name, axes in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
        value_info=[tensor(name, float32, ["b", "t", WIDTH]) for node in nodes for name in node[2] if name[:1] == "h"],
    )
    imports = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(OWN, 1)]
    return onnx_ir.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=10))


def _node(kind: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Any = None) -> onnx.NodeProto:
    domain, name = OWN if kind in CONTRIB else "", f"n_{outputs[0]}"
    return onnx.helper.make_node(kind, inputs, outputs, name, domain=domain, **(attributes or {}))


def session(graph: onnx_ir.Model, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(onnx_ir.to_proto(graph).SerializeToString(), options, ["CPUExecutionProvider"])


def run(graph: onnx_ir.Model, mask: np.ndarray = MASK) -> list[np.ndarray]:
    feed = {"x": X, "mask": mask}
    found: list[np.ndarray] = session(graph).run(
        None, {str(one.name): feed[str(one.name)] for one in graph.graph.inputs}
    )
    return found


def kinds(graph: onnx_ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph)


def layer_norm(x: np.ndarray, weight: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + shift


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Two heads of four over (B, T, 8); `shown` (B, T, T)."""
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = np.exp(query[..., head] @ key[..., head].swapaxes(1, 2) / 2) * shown
        heads.append(scores / scores.sum(-1, keepdims=True) @ value[..., head])
    return np.concatenate(heads, axis=-1)


@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_taken_apart_computes_the_same_and_is_not_fused_again(bias: bool, tmp_path: Path) -> None:
    weight, shift, added, other = normal(WIDTH), normal(WIDTH), normal(WIDTH) if bias else None, normal(WIDTH)
    constants = {"w": weight, "s": shift, "o": other} | ({} if added is None else {"b": added})
    inputs = ["x", "skip", "w", "s", *(["b"] if bias else [])]
    nodes: list[Node] = [
        ("Mul", ["x", "o"], ["skip"]),
        ("SkipLayerNormalization", inputs, ["y", "", "", "sum"], {"epsilon": 1e-5}),
    ]
    graph = model(nodes, constants, {"y": 3, "sum": 3})
    onnx_apart.take_apart(graph.graph)
    total = X + X * other + (0 if added is None else added)
    found, summed = run(graph)
    np.testing.assert_allclose(summed, total, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, layer_norm(total, weight, shift), rtol=1e-4, atol=1e-5)
    session(graph, tmp_path / "loaded.onnx")
    loaded = Counter(node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node)
    assert (loaded["LayerNormalization"], loaded["SkipLayerNormalization"]) == (1, 0)


def test_a_gelu_with_a_bias_taken_apart_computes_the_same() -> None:
    graph = model([("BiasGelu", ["x", "b"], ["y"])], {"b": normal(WIDTH)}, {"y": 3})
    before = run(graph)
    onnx_apart.take_apart(graph.graph)
    assert kinds(graph) == {"Add": 1, "Gelu": 1}
    np.testing.assert_allclose(run(graph), before, atol=1e-6)


def test_an_attention_taken_apart_computes_the_same() -> None:
    weight, bias = normal(WIDTH, 3 * WIDTH), normal(3 * WIDTH)
    graph = model([("Attention", ["x", "w", "b"], ["y"], HEADS)], {"w": weight, "b": bias}, {"y": 3})
    onnx_apart.take_apart(graph.graph)
    assert kinds(graph) == {"MatMul": 1, "Add": 1, "Split": 1, "MultiHeadAttention": 1}
    expected = attend(*np.split(X @ weight + bias, 3, axis=-1), np.ones((1, 1, 1)))
    np.testing.assert_allclose(run(graph)[0], expected, atol=1e-5)


def test_an_attention_with_a_mask_of_its_own_is_refused() -> None:
    inputs = ["x", "w", "b", "m"]
    constants = {"w": normal(WIDTH, 3 * WIDTH), "b": normal(3 * WIDTH), "m": np.ones((2, 5), np.int32)}
    graph = model([("Attention", inputs, ["first"])], constants, {"first": 3})
    with pytest.raises(ExportError, match=r"cannot take apart n_first .*it has a mask.*Export int8"):
        onnx_apart.take_apart(graph.graph)


@pytest.mark.parametrize("bias", [True, False])
def test_a_scale_of_a_layers_outputs_goes_into_its_weight(bias: bool) -> None:
    constants = {"w": normal(WIDTH, WIDTH), "b": normal(WIDTH), "s": normal(WIDTH)}
    added: list[Node] = [("Add", ["b", "p"], ["a"])] if bias else []
    nodes = [("MatMul", ["x", "w"], ["p"]), *added, ("Mul", ["s", "a" if bias else "p"], ["y"])]
    graph = model(nodes, constants, {"y": 3})
    before = run(graph)
    onnx_scales.fold(graph.graph)
    assert "Mul" not in kinds(graph)
    np.testing.assert_allclose(run(graph), before, rtol=1e-5, atol=1e-5)


def test_a_scale_stays_where_something_else_reads_the_layer() -> None:
    constants = {"w": normal(WIDTH, WIDTH), "s": normal(WIDTH)}
    graph = model([("MatMul", ["x", "w"], ["p"]), ("Mul", ["p", "s"], ["y"])], constants, {"y": 3, "p": 3})
    before = run(graph)
    onnx_scales.fold(graph.graph)
    assert kinds(graph)["Mul"] == 1
    np.testing.assert_array_equal(run(graph), before)


INTEGERS = {
    name: np.array(number)
    for name, number in {"nought": 0, "one": [1], "step": 1, "second": [1], "keys_at": [1, 2], "column": [1]}.items()
}
SQUARE: list[Node] = [  # (B, 1, T, T) of a mask (B, T), and the distance (T, T) of a query and a key
    ("Cast", ["mask"], ["real"], {"to": onnx.TensorProto.BOOL}),
    ("Unsqueeze", ["real", "keys_at"], ["keys"]),
    ("Shape", ["mask"], ["both"]),
    ("Gather", ["both", "second"], ["length"]),
    ("Concat", ["one", "one", "length", "length"], ["sizes"], {"axis": 0}),
    ("Expand", ["keys", "sizes"], ["square"]),
    ("Squeeze", ["length"], ["count"]),
    ("Range", ["nought", "count", "step"], ["place"]),
    ("Unsqueeze", ["place", "column"], ["query"]),
    ("Sub", ["query", "place"], ["distance"]),
]


def masked(nodes: Sequence[Node], **constants: Any) -> onnx_ir.Model:
    """Attention of x to itself with a bias of zeros where `shown` (B, 1, T, T) is true, and else very low."""
    known = {"zero": np.array(0, np.float32), "low": np.array(np.finfo(np.float32).min), **INTEGERS, **constants}
    attention: list[Node] = [
        ("Where", ["shown", "zero", "low"], ["bias"]),
        ("MultiHeadAttention", ["x", "x", "x", "", "", "bias"], ["y"], HEADS),
    ]
    return model([*SQUARE, *nodes, *attention], known, {"y": 3}, mask=True)


def test_a_bias_that_says_padding_becomes_the_padding_mask() -> None:
    graph = masked([("Identity", ["square"], ["shown"])])
    before = run(graph)
    onnx_masks.simplify(graph)
    assert kinds(graph) == {"Cast": 1, "MultiHeadAttention": 1}
    np.testing.assert_allclose(run(graph), before, atol=1e-6)
    np.testing.assert_allclose(run(graph)[0], attend(X, X, X, MASK[:, None]), atol=1e-5)


def test_a_row_of_padding_alone_gets_the_same_numbers() -> None:
    graph, mask = masked([("Identity", ["square"], ["shown"])]), np.array([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    before = run(graph, mask)
    onnx_masks.simplify(graph)
    np.testing.assert_allclose(run(graph, mask), before, atol=1e-6)


def test_a_bias_that_hides_nothing_is_dropped() -> None:
    everything: list[Node] = [("Or", ["square", "true"], ["shown"])]
    graph = masked(everything, true=np.array(True))
    before = run(graph)
    onnx_masks.simplify(graph)
    assert kinds(graph) == {"MultiHeadAttention": 1}
    np.testing.assert_allclose(run(graph), before, atol=1e-6)


CAUSAL: list[Node] = [("GreaterOrEqual", ["distance", "nought"], ["near"]), ("And", ["square", "near"], ["shown"])]
WINDOW: list[Node] = [
    ("Abs", ["distance"], ["apart"]),
    ("LessOrEqual", ["apart", "window"], ["near"]),
    ("And", ["square", "near"], ["shown"]),
]


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [(CAUSAL, {}), (WINDOW, {"window": np.array(2)}), (WINDOW, {"window": np.array(500)})],
    ids=["causal", "a window", "a window of more tokens than a short text has"],
)
def test_a_bias_that_says_anything_else_stays(nodes: list[Node], constants: dict[str, np.ndarray]) -> None:
    graph = masked(nodes, **constants)
    before = run(graph)
    onnx_masks.simplify(graph)
    assert graph.graph.node("n_y").inputs[5] is not None
    np.testing.assert_array_equal(run(graph), before)


TABLE = np.abs(np.subtract.outer(np.arange(128), np.arange(128))) <= 16


def test_a_window_that_is_kept_as_a_table_stays() -> None:
    cut: list[Node] = [
        ("Slice", ["table", "start", "length", "last"], ["rows"]),
        ("Slice", ["rows", "start", "length", "first"], ["near"]),
        ("And", ["square", "near"], ["shown"]),
    ]
    graph = masked(cut, table=TABLE, start=np.array([0]), last=np.array([1]), first=np.array([0]))
    before = run(graph)
    onnx_masks.simplify(graph)
    assert graph.graph.node("n_y").inputs[5] is not None
    np.testing.assert_array_equal(run(graph), before)


@pytest.mark.parametrize("padding", [0, 1, 3, 50_256])
def test_a_bias_made_of_the_padding_tokens_of_an_input_that_is_no_mask_stays_or_says_the_same(padding: int) -> None:
    graph = masked([("Identity", ["square"], ["shown"])])
    ids = graph.graph.inputs[1]
    real = graph.graph.node("n_real")
    pad = onnx_ir.tensor(np.array(padding), name="pad")
    graph.graph.register_initializer(onnx_ir.Value(name="pad", const_value=pad))
    unlike = onnx_ir.node("Equal", [ids, graph.graph.initializers["pad"]])
    turned = onnx_ir.node("Not", [unlike.outputs[0]])
    graph.graph.insert_before(real, [unlike, turned])
    real.replace_input_with(0, turned.outputs[0])
    ids.name = "tokens"
    tokens = np.array([[7, 9, 7, padding, padding], [7, 7, 7, 7, 9]])
    feed = {"x": X, "tokens": tokens}
    before = session(graph).run(None, feed)
    onnx_masks.simplify(graph)
    np.testing.assert_allclose(session(graph).run(None, feed), before, atol=1e-6)


def block(outputs: Mapping[str, int], last: Sequence[Node] = ()) -> onnx_ir.Model:
    """Masked attention of x to itself, its product, a sum with x, a norm; then one token, the second."""
    constants = {"w": normal(WIDTH, WIDTH), "b": normal(WIDTH), "s": normal(WIDTH)}
    nodes: list[Node] = [
        ("Cast", ["mask"], ["kept"], {"to": onnx.TensorProto.FLOAT}),
        ("Sub", ["kept", "one"], ["hidden"]),
        ("Mul", ["hidden", "much"], ["below"]),
        ("Unsqueeze", ["below", "at"], ["flat"]),
        ("Shape", ["mask"], ["sizes"]),
        ("Gather", ["sizes", "second"], ["length"]),
        ("Concat", ["ones", "length", "ones"], ["times"], {"axis": 0}),
        ("Expand", ["flat", "times"], ["bias"]),
        ("MatMul", ["x", "w"], ["h_query"]),
        ("MultiHeadAttention", ["h_query", "x", "x", "", "", "bias"], ["h_mixed"], HEADS),
        ("MatMul", ["h_mixed", "w"], ["h_product"]),
        ("Add", ["h_product", "b"], ["h_biased"]),
        ("Sum", ["h_biased", "x"], ["h_sum"]),
        ("LayerNormalization", ["h_sum", "s", "b"], ["h_norm"], {"axis": -1}),
        ("Gather", ["h_norm", "token"], ["y"], {"axis": 1}),
    ]
    floats = {"one": np.array(1, np.float32), "much": np.array(1e9, np.float32)}
    integers = {"at": np.array([1, 2]), "second": np.array([1]), "ones": np.array([1]), "token": np.array(1)}
    return model([*nodes, *last], {**constants, **floats, **integers}, outputs, mask=True)


def test_a_block_computes_only_the_token_that_is_read() -> None:
    graph = block({"y": 2})
    before = run(graph)
    onnx_rows.narrow(graph.graph)
    np.testing.assert_allclose(run(graph), before, atol=1e-5)
    names = ("h_query", "h_mixed", "h_product", "h_sum", "h_norm")
    graph.graph.outputs.extend(graph.graph.node(f"n_{name}").outputs[0] for name in names)
    assert [one.shape for one in run(graph)[1:]] == [(2, 1, WIDTH)] * len(names)
    assert kinds(graph)["Gather"] == 4  # the length and the answer as before; x, taken once; the bias


def test_what_all_tokens_are_read_of_is_computed_for_all() -> None:
    graph = block({"y": 2, "mean": 3}, [("ReduceMean", ["h_sum", "second"], ["mean"])])
    before = run(graph)
    onnx_rows.narrow(graph.graph)
    for found, expected in zip(run(graph), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    graph.graph.outputs.extend(graph.graph.node(f"n_{name}").outputs[0] for name in ("h_sum", "h_norm"))
    assert [one.shape for one in run(graph)[2:]] == [(2, 5, WIDTH), (2, 1, WIDTH)]


def test_nothing_is_narrowed_where_the_graph_gives_all_tokens() -> None:
    graph = block({"y": 2, "h_norm": 3})
    before = kinds(graph)
    onnx_rows.narrow(graph.graph)
    assert kinds(graph) == before
