"""Weight-only int4: an fp32 ONNX graph whose weights are stored in four bits, 32 to a scale and a zero point.

Products become MatMulNBits and embedding tables GatherBlockQuantized, contrib operators of ONNX Runtime that make
floats of the weights while they compute. A size that is no multiple of the block is padded in its last block.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnxruntime.quantization.onnx_model import ONNXModel

from compressor.errors import ExportError
from exporters import onnx_file
from exporters.onnx_prepare import prepare, quiet

AXES = (("MatMul", 0), ("Gather", 1))  # blocks run along the inputs of a product and along a row of a table


def quantize(source: Path, target: Path, *, embeddings: bool, block: int) -> None:
    """Write the fp32 graph `source` as int4 graph `target`.

    Args:
        embeddings: store the tables that Gather reads from in four bits too.
        block: weights to a scale; a power of two from 16.

    Raises:
        ExportError: the quantizer fails.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        prepare(source, prepared)
        model = _loaded(prepared)
        ONNXModel(model).replace_gemm_with_matmul()
        try:
            with quiet(), np.errstate(divide="ignore", invalid="ignore"):  # rows of zeros have no scale
                quantized = _quantized(model, embeddings, block)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ExportError(f"ONNX Runtime's int4 quantizer fails on this graph: {error}. Export int8.") from error
        onnx_file.save(onnx_ir.from_proto(quantized), target)


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


def _quantized(model: onnx.ModelProto, embeddings: bool, block: int) -> onnx.ModelProto:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer  # importing it turns logging on

    quantizer: Any = MatMulNBitsQuantizer(
        model,
        bits=4,
        block_size=block,
        op_types_to_quantize=("MatMul", "Gather") if embeddings else ("MatMul",),
        quant_axes=AXES,
        nodes_to_exclude=_no_tables(model.graph),
    )
    quantizer.process()
    found: onnx.ModelProto = quantizer.model.model
    _store_once(found.graph)
    return found


def _no_tables(graph: onnx.GraphProto) -> list[str]:
    """Names of the Gather nodes that read no table of floats: the quantizer takes whatever is constant."""
    tables = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
    }
    return [node.name for node in graph.node if node.op_type == "Gather" and node.input[0] not in tables]


def _store_once(graph: onnx.GraphProto) -> None:
    """A weight that several nodes share is quantized for each of them, always to the same numbers."""
    kept = {tensor.name: tensor for tensor in graph.initializer}
    used = {name for node in graph.node for name in node.input}
    weights = [tensor for name, tensor in kept.items() if name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)
