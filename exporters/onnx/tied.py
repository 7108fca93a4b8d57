"""A table that an embedding and a head share, stored once in a quantized graph too.

Where a head reads the embedding table, quantizers see two weights, the table (N, K) and its transpose (K, N), and store
numbers of both. Here rows are looked up in the numbers that the product has, and made floats by its scales.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from exporters.onnx.values import OWN, new_constant

Ties = Mapping[str, str]  # name of a product's weight (K, N) -> name of the table (N, K) that holds the same numbers
CHANNELS = ("_quantized", "_scale", "_zero_point")  # ends of the names that a weight's eight bits per channel go by
HALF = 4  # bits, of which a byte holds two numbers
BITS = (8, HALF)  # of a product's blocks
TABLES = ("_bytes", "_Q4")  # ends of the names that a table's blocks go by


def ties(path: Path) -> Ties:
    """The weights of products in the graph at `path` that are a table of its lookups, turned."""
    graph = onnx_ir.load(path).graph  # weights stay in the file, which is mapped
    lookups = [node for node in graph if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0]
    tables = dict.fromkeys(node.inputs[0] for node in lookups)
    factors = dict.fromkeys(node.inputs[1] for node in graph if node.op_type == "MatMul")
    return {
        str(factor.name): str(table.name)
        for factor in factors
        for table in tables
        if factor is not None and table is not None and _turned(factor, table)
    }


def _turned(factor: onnx_ir.Value, table: onnx_ir.Value) -> bool:
    """Whether both are matrices of constants, and one is the transpose of the other."""
    one, other = factor.const_value, table.const_value
    if one is None or other is None or len(one.shape) != 2 or tuple(one.shape) != tuple(other.shape)[::-1]:
        return False
    return bool(np.array_equal(one.numpy().T, other.numpy()))


def share_channels_(model: onnx_ir.Model, tied: Ties) -> None:
    """Look rows up in the eight bits of a product, whose columns have a scale each.

    Tables left in floats stay, and tables whose rows another product takes as they are stored, with their one scale.
    """
    graph = model.graph
    for factor, table in tied.items():
        stored, scales, zeros = _parts(graph, factor, CHANNELS)
        if stored is not None and scales is not None and not _numbers(zeros).any():
            for lookup in _readers(graph, f"{table}_quantized", "Gather"):
                if all(node.op_type == "DequantizeLinear" for node, _ in lookup.outputs[0].uses()):
                    _look_up_columns(graph, lookup, stored, scales)
        _drop(graph, table, CHANNELS)


def _look_up_columns(graph: onnx_ir.Graph, lookup: onnx_ir.Node, stored: onnx_ir.Value, scales: onnx_ir.Value) -> None:
    """Rows (..., K) in place of a lookup and what dequantizes it: columns of `stored` (K, N), turned and scaled."""
    indices, dequantized = lookup.inputs[1], [node for node, _ in lookup.outputs[0].uses()]  # one for each reader
    rank, tape = _rank(indices), onnx_ir.tape.Tape()
    columns = tape.op("Gather", [stored, indices], {"axis": 1})  # (K, ...)
    whole = tape.op("Transpose", [columns], {"perm": [*range(1, rank + 1), 0]})  # (..., K)
    sizes = tape.op("Unsqueeze", [tape.op("Gather", [scales, indices]), _constant(graph, lookup, "last", [-1])])
    floats = tape.op("Cast", [whole], {"to": onnx_ir.DataType.FLOAT})
    _replace(graph, lookup, dequantized, tape, tape.op("Mul", [floats, sizes]))


def share_blocks_(model: onnx_ir.Model, tied: Ties, *, block: int) -> None:
    """Look rows up in the blocks of a product, (N, blocks, bytes); rows that do not fill their last block stay."""
    graph = model.graph
    for (factor, table), bits in itertools.product(tied.items(), BITS):
        stored, scales, zeros = _parts(graph, factor, (f"_Q{bits}", "_scales", "_zero_points"))
        if stored is None or scales is None or zeros is None:
            continue
        for end in TABLES:
            for lookup in _readers(graph, f"{table}{end}", "GatherBlockQuantized"):
                if _fills(lookup, stored, block):
                    _look_up_blocks(graph, lookup, (stored, scales, zeros), {"block_size": block, "bits": bits})
            _drop(graph, table, (end, "_scales", "_zero_points"))


def _fills(lookup: onnx_ir.Node, stored: onnx_ir.Value, block: int) -> bool:
    """Whether the table's rows end where a block ends."""
    table = lookup.inputs[0]
    return bool(table and table.shape and stored.shape and table.shape[1] == stored.shape[1] * block)


def _look_up_blocks(
    graph: onnx_ir.Graph, lookup: onnx_ir.Node, parts: Sequence[onnx_ir.Value], how: Mapping[str, int]
) -> None:
    """Rows (..., K) in place of a lookup: blocks (..., blocks, block), each with a scale of its own, joined."""
    stored, scales, zeros = parts
    count, blocks = _numbers(scales).shape
    tape, single = onnx_ir.tape.Tape(), _constant(graph, lookup, "single", [count, blocks, 1])
    if how["bits"] == HALF:  # those of two blocks share a byte, but a lookup wants the only one of a block in its own
        zeros = _constant(graph, lookup, "zeros", _halves(_numbers(zeros))[:, :blocks, None])
    else:
        zeros = tape.op("Reshape", [zeros, single])
    inputs = [stored, lookup.inputs[1], tape.op("Reshape", [scales, single]), zeros]
    rows = tape.op("GatherBlockQuantized", inputs, {"gather_axis": 0, "quantize_axis": 2, **how}, domain=OWN)
    joined = tape.op("Reshape", [rows, _constant(graph, lookup, "joined", [0] * _rank(lookup.inputs[1]) + [-1])])
    _replace(graph, lookup, [], tape, joined)


def _halves(stored: np.ndarray) -> np.ndarray:
    """Bytes (n, k) -> their halves (n, 2 k), the lower first."""
    return np.stack([stored & 15, stored >> 4], -1).reshape(len(stored), -1)


# ---- graphs ----


def _rank(value: onnx_ir.Value | None) -> int:
    """How many axes a lookup's indices have."""
    assert value is not None
    assert value.shape is not None  # inputs of the graph have one
    return len(value.shape)


def _parts(graph: onnx_ir.Graph, name: str, ends: Sequence[str]) -> list[onnx_ir.Value | None]:
    return [graph.initializers.get(f"{name}{end}") for end in ends]


def _numbers(value: onnx_ir.Value | None) -> np.ndarray:
    """What an initializer holds; nothing where there is none."""
    return np.empty(0) if value is None or value.const_value is None else value.const_value.numpy()


def _readers(graph: onnx_ir.Graph, name: str, kind: str) -> list[onnx_ir.Node]:
    """The lookups of a kind that read an initializer, by indices whose number of axes is known."""
    value = graph.initializers.get(name)
    nodes = [] if value is None else [node for node, _ in value.uses() if node.op_type == kind]
    return [node for node in nodes if node.inputs[1] is not None and node.inputs[1].shape is not None]


def _constant(graph: onnx_ir.Graph, lookup: onnx_ir.Node, name: str, numbers: Any) -> onnx_ir.Value:
    """A new initializer for what takes a lookup's place."""
    return new_constant(graph, f"{lookup.name}_{name}", np.asarray(numbers))


def _replace(
    graph: onnx_ir.Graph,
    lookup: onnx_ir.Node,
    after: Sequence[onnx_ir.Node],
    tape: onnx_ir.tape.Tape,
    output: onnx_ir.Value,
) -> None:
    """New nodes, whose last gives `output`, in place of a lookup and of the nodes that alone read it."""
    old = [node.outputs[0] for node in after or [lookup]]
    onnx_ir.convenience.replace_nodes_and_values(graph, lookup, [lookup, *after], tape.nodes, old, [output] * len(old))


def _drop(graph: onnx_ir.Graph, name: str, ends: Sequence[str]) -> None:
    """Take initializers out that nothing reads any more."""
    for value in _parts(graph, name, ends):
        if value is not None and not value.uses():
            del graph.initializers[str(value.name)]
