"""Weight-only quantization: an fp32 ONNX graph whose weights are stored in four or eight bits, in blocks.

Each block, 32 weights by default, has a scale and a zero point. Four bits are rounded by the task's data, as
`rounding` does, and products that give the logits keep eight. Products become MatMulNBits and embedding tables
GatherBlockQuantized, contrib operators of ONNX Runtime. On a CPU products round their inputs to eight bits, block by
block, which its faster kernels want: next to nothing is lost, where one scale for a whole tensor loses outliers, as
language models have them. A size that is no multiple of the block is padded in its last block.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir
from onnx import helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from compressor.errors import ExportError
from exporters.base import Arrays
from exporters.onnx import file, rounding, tied
from exporters.onnx.prepare import prepare, quiet
from exporters.onnx.steps import Blocks, grid
from exporters.onnx.values import OWN

Bits = Literal[4, 8]
ACCURACY = 4  # a level of MatMulNBits: it may round inputs to eight bits, by the block
ENDS = ("_bytes", "_scales", "_zero_points")  # of the names of what a table of bytes consists of
AXES = (("MatMul", 0), ("Gather", 1))  # blocks run along the inputs of a product and along a row of a table


def quantize(
    source: Path,
    target: Path,
    *,
    embeddings: bool,
    block: int,
    bits: Bits = 4,
    head_bits: Bits = 8,
    samples: Sequence[Arrays] = (),
) -> None:
    """Write the fp32 graph `source` with weights of a few bits as `target`.

    Args:
        embeddings: store the tables that Gather reads from so too.
        block: weights to a scale; a power of two from 16.
        bits: of a weight.
        head_bits: of a weight in the products that give the logits, and of a table that one of them shares.
        samples: batches of the model's inputs, by which four bits are rounded; without them a weight goes to the
            nearest step between the least and the greatest number of its block.

    Raises:
        ExportError: the quantizer fails.
        RuntimeFailure: ONNX Runtime fails on the samples.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        prepared = start = Path(scratch) / "prepared.onnx"
        prepare(source, prepared, products=True)
        if samples and bits == 4:
            start = Path(scratch) / "rounded.onnx"
            heads = _heads(onnx.load(prepared, load_external_data=False).graph) if head_bits != bits else ()
            rounding.adjust(prepared, start, samples, Blocks(block, bits), but=heads)
        model = _loaded(start)
        _look_up_apart(model.graph)
        try:
            with quiet(), np.errstate(divide="ignore", invalid="ignore"):  # rows of zeros have no scale
                quantized = _quantized(model, embeddings, block, bits, head_bits)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ExportError(
                f"ONNX Runtime's int{bits} quantizer of blocks fails on this graph: {error}. Export int8."
            ) from error
        graph = onnx_ir.from_proto(quantized)
        tied.share_blocks_(graph, tied.ties(prepared), block=block)
        file.save(graph, target)


def _loaded(path: Path) -> onnx.ModelProto:
    """The graph with its weights but for the factors of products that lie in another file: those are mapped one by one.

    A protobuf message keeps the memory of what is taken out of it, so that all of the floats would stay to the end.
    """
    model = onnx.load(path, load_external_data=False)
    factors = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    others = {name for node in model.graph.node for name in node.input if node.op_type != "MatMul"}
    for tensor in model.graph.initializer:
        if not uses_external_data(tensor):
            continue
        if tensor.name in factors - others:
            (place,) = (entry for entry in tensor.external_data if entry.key == "location")
            place.value = str(path.parent.resolve() / place.value)  # onnx_ir, by which the quantizer reads it, maps it
        else:
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.ClearField("data_location")
            del tensor.external_data[:]
    return model


def _quantized(model: onnx.ModelProto, embeddings: bool, block: int, bits: Bits, head_bits: Bits) -> onnx.ModelProto:
    tables, heads = _tables(model.graph), _heads(model.graph)
    if embeddings and bits == 8:
        _quantize_tables(model.graph, tables, block)
    wanted: dict[Bits, set[str]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul":
            wanted.setdefault(head_bits if node.input[1] in heads else bits, set()).add(node.name)
        elif node.op_type == "Gather" and node.input[0] in tables and embeddings and bits == 4:
            wanted.setdefault(bits, set()).add(node.name)
    for width, names in wanted.items():
        model = _in_blocks(model, names, block, width)
    _store_once(model.graph)
    return model


def _in_blocks(model: onnx.ModelProto, names: Set[str], block: int, bits: Bits) -> onnx.ModelProto:
    """The graph with the weights of the nodes of these names in blocks."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # importing it turns logging on

    quantizer: Any = MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=block,
        accuracy_level=ACCURACY,
        op_types_to_quantize=tuple(kind for kind, _ in AXES),
        quant_axes=AXES,
        nodes_to_exclude=[node.name for node in model.graph.node if node.name not in names],
    )
    quantizer.process()
    found: onnx.ModelProto = quantizer.model.model
    return found


def _heads(graph: onnx.GraphProto) -> set[str]:
    """The constants by which products give the logits: those between which and the logits there is no other."""
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    found, seen, waiting = set(), set(), [graph.output[0].name]  # a decoder's cache comes behind
    while waiting:
        node = made_by.get(name := waiting.pop())
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants:
            found.add(node.input[1])
        else:
            waiting.extend(node.input)
    return found


def _tables(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Matrices of floats by their names: what a Gather may read rows of."""
    return {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
    }


def _quantize_tables(graph: onnx.GraphProto, tables: Mapping[str, onnx.TensorProto], block: int) -> None:
    """Tables of eight bits, which ONNX Runtime reads but its quantizer does not write."""
    readers = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in tables and not _axis(node)]
    for name in dict.fromkeys(node.input[0] for node in readers):
        parts = in_bytes(numpy_helper.to_array(tables[name]), block)
        stored = zip((f"{name}{end}" for end in ENDS), parts, strict=True)
        graph.initializer.extend(numpy_helper.from_array(array, stored_name) for stored_name, array in stored)
    for node in readers:
        data, scales, zeros = (f"{node.input[0]}{end}" for end in ENDS)
        inputs = [data, node.input[1], scales, zeros]
        how: Any = {"gather_axis": 0, "quantize_axis": 1, "block_size": block, "bits": 8}
        read = helper.make_node("GatherBlockQuantized", inputs, node.output, node.name, domain=OWN, **how)
        node.CopyFrom(read)


def _look_up_apart(graph: onnx.GraphProto) -> None:
    """A table that a product reads too, as it is stored, gets a second name for lookups: its blocks run another way."""
    factors = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    tables = {tensor.name: tensor for tensor in graph.initializer if tensor.name in factors}
    lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in tables]
    for name in dict.fromkeys(node.input[0] for node in lookups):
        table = graph.initializer.add()
        table.CopyFrom(tables[name])
        table.name = f"{name}_rows"
    for node in lookups:
        node.input[0] = f"{node.input[0]}_rows"


def _axis(gather: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in gather.attribute if attribute.name == "axis"), 0)


def in_bytes(table: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A table (n, k) as bytes (n, k), scales (n, b) and zero points (n, b) of its rows' blocks: scale * (byte - zero).

    Zero is stored as it is.
    """
    blocks, ends = in_blocks(table, block)  # (n, b, block), (n, b) each
    scales, zeros = grid(*ends, bits=8)  # (n, b) each
    stored = np.clip(np.rint(blocks / scales[..., None]) + zeros[..., None], 0, 255)  # (n, b, block)
    return stored.astype(np.uint8).reshape(len(table), -1)[:, : table.shape[1]], scales, zeros.astype(np.uint8)


def in_blocks(matrix: np.ndarray, block: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """A matrix (n, k) in blocks (n, b, block), the last one padded, and their ends (n, b), between which zero lies."""
    count, width = matrix.shape
    blocks = np.pad(matrix, ((0, 0), (0, -width % block))).reshape(count, -1, block)  # (n, b, block)
    return blocks, (blocks.min(-1, initial=0), blocks.max(-1, initial=0))


def _store_once(graph: onnx.GraphProto) -> None:
    """A weight that several nodes share is quantized for each of them, to the same numbers.

    Raises:
        ValueError: they are not.
    """
    kept: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        other = kept.setdefault(tensor.name, tensor)
        if other is not tensor and other.raw_data != tensor.raw_data:
            raise ValueError(f"{tensor.name} is stored twice, with other numbers")
    used = {name for node in graph.node for name in node.input}
    weights = [tensor for name, tensor in kept.items() if name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)
