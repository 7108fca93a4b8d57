"""Fused operators taken apart again where ONNX Runtime computes their parts faster, or in int8.

`Attention`, which reads one weight for query, key and value of a dense layer, has no int8 form for the attention bias
that the fusions leave on it: product and bias go out of it, and `MultiHeadAttention` stays.

`SkipLayerNormalization` takes its numbers one by one where `LayerNormalization` takes many at once: with ONNX Runtime
1.32 on one thread, 85 us against 11 for 50 tokens of 384, and a sum of 5. It is written as `Sum`, since an `Add` would
be fused with the norm again when the graph is loaded.

The bias of `BiasGelu` goes out of it, into the product before: int8 products of ONNX Runtime add one for nothing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from compressor.errors import ExportError
from exporters.onnx.values import OWN, new_constant

ATTENTION = frozenset({"num_heads", "qkv_hidden_sizes", "scale", "mask_filter_value"})  # attributes that are understood


def take_apart(graph: onnx_ir.Graph) -> None:
    """Take every `Attention`, `SkipLayerNormalization` and `BiasGelu` apart.

    Raises:
        ExportError: an `Attention` has a mask or a cache of its own, or attributes that `MultiHeadAttention` lacks.
    """
    ways = {"Attention": attention, "SkipLayerNormalization": norm, "BiasGelu": gelu}
    for node in list(graph):
        if node.domain == OWN and node.op_type in ways:
            ways[node.op_type](graph, node)


def norm(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Put `LayerNormalization` of a sum where `SkipLayerNormalization` stands.

    x, skip (B, T, d), weight, shift, bias (d,) -> norm(x + bias + skip), and the sum where something reads it.
    """
    x, skip, weight, shift, bias = (*node.inputs, None, None)[:5]
    tape = onnx_ir.tape.Tape()
    part = x if bias is None else tape.op("Add", [x, bias])
    total = tape.op("Sum", [part, skip])
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-12
    found = tape.op("LayerNormalization", [total, weight, shift], {"axis": -1, "epsilon": epsilon, "stash_type": 1})
    _replace(graph, node, tape, {0: found, 3: total})  # 1 and 2, mean and variance, are for training


def gelu(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Put `Gelu` of a sum where `BiasGelu` stands."""
    tape = onnx_ir.tape.Tape()
    _replace(graph, node, tape, {0: tape.op("Gelu", [tape.op("Add", node.inputs)], domain=OWN)})


def attention(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Put a product with its bias, its parts and `MultiHeadAttention` where `Attention` stands.

    x (B, T, d) @ W (d, q + k + v) + b (q + k + v,) -> query (B, T, q), key (B, T, k), value (B, T, v).

    Raises:
        ExportError: it has a mask or a cache of its own, or attributes that `MultiHeadAttention` lacks.
    """
    x, weight, bias, mask, past, scores = (*node.inputs, *(None,) * (6 - len(node.inputs)))[:6]
    attributes = node.attributes
    if mask is not None or past is not None or not set(attributes) <= ATTENTION or weight is None:
        raise ExportError(
            f"int8-fused cannot take apart {node.name} ({', '.join(attributes)}): it has a mask, a cache or an "
            "attribute that MultiHeadAttention lacks. Export int8."
        )
    kept = {name: attribute for name, attribute in attributes.items() if name != "qkv_hidden_sizes"}
    tape, sizes = onnx_ir.tape.Tape(), new_constant(graph, "query_key_value", np.array(_sizes(node, weight), np.int64))
    product = tape.op("MatMul", [x, weight])
    joined = product if bias is None else tape.op("Add", [product, bias])
    parts = tape.op_multi_out("Split", [joined, sizes], {"axis": -1}, num_outputs=3)
    _replace(graph, node, tape, {0: tape.op("MultiHeadAttention", [*parts, None, None, scores], kept, domain=OWN)})


def _sizes(node: onnx_ir.Node, weight: onnx_ir.Value) -> list[int]:
    """Columns of query, key and value."""
    if "qkv_hidden_sizes" in node.attributes:
        return list(node.attributes["qkv_hidden_sizes"].as_ints())
    assert weight.const_value is not None
    return 3 * [weight.const_value.numpy().shape[1] // 3]


def _replace(
    graph: onnx_ir.Graph, node: onnx_ir.Node, tape: onnx_ir.tape.Tape, outputs: dict[int, onnx_ir.Value]
) -> None:
    """Put what the tape holds in the place of a node; `outputs` are its new ones, by their number."""
    old = [node.outputs[number] for number in outputs if number < len(node.outputs)]
    new = list(outputs.values())[: len(old)]
    for value in new:
        value.shape, value.type = node.outputs[0].shape, node.outputs[0].type
    onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, old, new)
