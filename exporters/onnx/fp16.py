"""Half precision: an fp32 ONNX graph with weights and arithmetic in float16, inputs and outputs as they were.

What squares its input keeps float32: squares in RMS norms pass 65504, float16's largest number, where an activation
passes 256, and language models have such activations. So do the angles of rotary positions: float16 has no 2049. The
CPU, which computes most of this in float32 whatever the graph says, would show neither fault.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from compressor.errors import ExportError
from exporters.onnx import file
from exporters.onnx.prepare import forget_weight_shapes

SQUARES = frozenset({"Pow", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Reciprocal"})
ANGLES = frozenset({"Sin", "Cos"})


def convert(source: Path, target: Path) -> None:
    """Write the fp32 graph `source` as fp16 graph `target`; the type of inputs and outputs stays float32.

    Raises:
        ExportError: the converter fails.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        copy = Path(scratch) / "fp32.onnx"  # the converter writes beside what it reads
        file.save(onnx_ir.load(source), copy)
        proto = onnx.load(copy, load_external_data=False)
        forget_weight_shapes(proto.graph)
        onnx.save(proto, copy)
        try:
            converted = convert_float_to_float16(
                str(copy),
                keep_io_types=True,
                op_block_list=[*DEFAULT_OP_BLOCK_LIST, *SQUARES],
                node_block_list=_kept(proto.graph),
            )
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, AssertionError) as error:
            raise ExportError(f"ONNX Runtime's fp16 converter fails on this graph: {error}. Export fp32.") from error
        _cast_once(converted.graph)
        _stay_in_float32(converted.graph)
        model = onnx_ir.from_proto(converted)
        RemoveUnusedNodesPass()(model)
        model.graph.sort()  # the converter puts its casts last
        file.save(model, target)


def _kept(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that add a small number to a mean of squares, and of all that lead to a sine or cosine."""
    squares = {output for node in graph.node if node.op_type in SQUARES for output in node.output}
    names = [node.name for node in graph.node if node.op_type == "Add" and squares & set(node.input)]
    angles: set[str] = set()
    for node in reversed(graph.node):  # from the outputs to the inputs
        if node.op_type in ANGLES or angles & set(node.output):
            angles |= set(node.input)
            names.append(node.name)
    return names


def _cast_once(graph: onnx.GraphProto) -> None:
    """Drop the casts that the converter repeats for each reader of a value; before ONNX Runtime 1.32 it does."""
    for repeated in (graph.node, graph.value_info):
        first: dict[bytes, int] = {}
        places = [first.setdefault(one.SerializeToString(deterministic=True), n) for n, one in enumerate(repeated)]
        for place in reversed([n for n, place in enumerate(places) if n != place]):
            del repeated[place]


def _stay_in_float32(graph: onnx.GraphProto) -> None:
    """Undo the converter's rounding to float16 and back between two nodes that both keep float32."""
    rounded = {node.output[0]: node.input[0] for node in graph.node if _is_cast(node, onnx.TensorProto.FLOAT16)}
    returned = {
        node.output[0]: rounded[node.input[0]]
        for node in graph.node
        if _is_cast(node, onnx.TensorProto.FLOAT) and node.input[0] in rounded
    }
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = returned.get(name, name)


def _is_cast(node: onnx.NodeProto, kind: int) -> bool:
    """Whether the converter has put this cast from the other float type there."""
    added = node.name.startswith("graph_input_cast") or node.name.endswith(("_cast_to_fp16_node", "_cast_to_fp32_node"))
    return node.op_type == "Cast" and added and node.attribute[0].i == kind
