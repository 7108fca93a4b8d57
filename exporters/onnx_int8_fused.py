"""Dynamic int8 of the fused graph: ONNX Runtime's own operators around int8 products.

When it loads a portable int8 graph, ONNX Runtime still fuses norms with their skip connection, but not attention: its
reshapes, transposes and masks run node by node, a large share of a short text's time. Here they are fused first.

`Attention`, which reads one weight for query, key and value of a dense layer, has no int8 form for the attention bias
that the fusions leave on it; it is taken apart into that product and `MultiHeadAttention`: all products are int8.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir
from onnxscript.optimizer import fold_constants

from compressor.errors import ExportError
from exporters import onnx_file, onnx_fused, onnx_int8

ATTENTION = frozenset(
    {"num_heads", "qkv_hidden_sizes", "scale", "mask_filter_value"}
)  # attributes that are carried over


def quantize(source: Path, target: Path, *, embeddings: bool, reduce_range: bool) -> None:
    """Write the fp32 graph `source` as fused int8 graph `target`; see `onnx_int8.quantize`.

    Raises:
        ExportError: there is nothing to fuse, or fusions or quantizer fail.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        fused = Path(scratch) / "fused.onnx"
        onnx_fused.fuse(source, fused)
        graph = onnx_ir.load(fused)
        fold_constants(graph, should_fold=_joins_weights, output_size_limit=sys.maxsize)
        for node in [node for node in graph.graph if node.op_type == "Attention" and node.domain in onnx_fused.OWN]:
            take_apart(node)
        onnx_file.save(graph, fused)
        onnx_int8.quantize(fused, target, embeddings=embeddings, reduce_range=reduce_range)


def _joins_weights(node: onnx_ir.Node) -> bool:
    """Whether a node only turns or joins constants, as the fusions leave the weight of an `Attention`."""
    return node.op_type in {"Concat", *onnx_file.LAYOUT} and all(
        value is not None and value.is_initializer() for value in node.inputs
    )


def take_apart(attention: onnx_ir.Node) -> None:
    """Put a product, its parts and `MultiHeadAttention` where `Attention` stands.

    x (B, T, d) @ W (d, q + k + v) -> query (B, T, q), key (B, T, k), value (B, T, v); the bias (q + k + v,) goes along.

    Raises:
        ExportError: it has a mask or a cache of its own, or attributes that `MultiHeadAttention` lacks.
    """
    x, weight, bias, mask, past, scores = (*attention.inputs, *(None,) * (6 - len(attention.inputs)))[:6]
    attributes = attention.attributes
    if mask is not None or past is not None or not set(attributes) <= ATTENTION or weight is None:
        raise ExportError(
            f"int8-fused cannot take apart {attention.name} ({', '.join(attributes)}): it has a mask, a cache or an "
            "attribute that MultiHeadAttention lacks. Export int8."
        )
    tape, graph = onnx_ir.tape.Tape(), attention.graph
    assert isinstance(graph, onnx_ir.Graph)
    sizes = _sizes(attention, weight)
    split = onnx_ir.Value(name=f"{attention.name}_sizes", const_value=onnx_ir.tensor(np.array(sizes, np.int64)))
    graph.register_initializer(split)
    parts = tape.op_multi_out("Split", [tape.op("MatMul", [x, weight]), split], {"axis": -1}, num_outputs=3)
    kept = [attribute for name, attribute in attributes.items() if name != "qkv_hidden_sizes"]
    output = tape.op("MultiHeadAttention", [*parts, bias, None, scores], domain="com.microsoft")
    node = output.producer()
    assert node is not None
    for attribute in kept:
        node.attributes.add(attribute)
    onnx_ir.convenience.replace_nodes_and_values(
        graph, attention, [attention], tape.nodes, [attention.outputs[0]], [output]
    )


def _sizes(attention: onnx_ir.Node, weight: onnx_ir.Value) -> list[int]:
    """Columns of query, key and value."""
    if "qkv_hidden_sizes" in attention.attributes:
        return list(attention.attributes["qkv_hidden_sizes"].as_ints())
    assert weight.const_value is not None
    return 3 * [weight.const_value.numpy().shape[1] // 3]
