"""From an ONNX graph to ONNX Runtime's own format, a flatbuffer, and the operators that a build must have to run it."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from onnx import TensorProto, numpy_helper

from compressor.errors import ExportError
from exporters.base import Session
from exporters.onnx import file as onnx_file
from exporters.onnx import runtime as onnx_runtime
from exporters.onnx.prepare import quiet
from exporters.ort.exporter import Level

LIMIT = 2_000_000_000  # bytes of weights: a flatbuffer addresses less than 2 GiB
TABLE = 16_000_000  # bytes from which a turned copy of a weight is not stored beside the weight itself
OPERATORS, TYPES = "required_operators.config", "required_operators_and_types.config"
LOOKUP = "GatherBlockQuantized"
FOUR_BITS = frozenset({TensorProto.INT4, TensorProto.UINT4})
SETTINGS = {
    "session.save_model_format": "ORT",
    "session.qdqisint8allowed": "0",  # left alone this follows the exporting machine: 1 on ARM
}


def convert(source: Path, target: Path, level: Level) -> None:
    """Write the ONNX graph `source` as `target` in ONNX Runtime's format, optimized as far as `level` says.

    "basic" leaves operators of ONNX alone; "extended" fuses them to ONNX Runtime's own for its CPU provider. Neither
    depends on the CPU of the exporting machine: only the level above them changes layouts to its vector width.

    Raises:
        ExportError: the weights are too large for the format, or ONNX Runtime cannot convert them.
    """
    size = onnx_file.read(source)["initializer_bytes"]
    if size > LIMIT:
        raise ExportError(
            f"ONNX Runtime's format holds at most 2 GB in one file, and these weights take {size / 1e9:.1f} GB: export "
            "a smaller precision (int8, int4), or keep the ONNX export, whose weights may lie beside the graph."
        )
    chosen = onnx_runtime.options(Session())
    chosen.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    chosen.optimized_model_filepath = str(target)
    for key, value in {**SETTINGS, "optimization.constant_folding_max_output_size_in_bytes": str(TABLE)}.items():
        chosen.add_session_config_entry(key, value)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        try:
            onnxruntime.InferenceSession(_whole_bytes(source, Path(scratch)), chosen, providers=[onnx_runtime.CPU])
        except onnx_runtime.FAILURES as error:
            raise ExportError(f"ONNX Runtime cannot convert this graph to its own format: {error}.") from error


def write_operators(path: Path) -> None:
    """Beside `path` the two lists that `build.py --include_ops_by_config` of ONNX Runtime reads."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # its reader leaves the file to the garbage collector
        tools: Any = import_module("onnxruntime.tools.ort_format_model")
        logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
        for name, types in {OPERATORS: False, TYPES: True}.items():
            listed = path.with_name(name)
            tools.create_config_from_models([path], listed, types)
            listed.write_text(listed.read_text().replace(str(path), path.name))  # no path of the exporting machine


def nodes(path: Path) -> dict[str, int]:
    """How often each operator stands in the graph at `path`."""
    import_module("onnxruntime.tools.ort_format_model")  # puts the classes of the format where they can be imported
    session: Any = import_module("ort_flatbuffers_py.fbs.InferenceSession").InferenceSession
    graph = session.GetRootAs(path.read_bytes()).Model().Graph()
    found = Counter(graph.Nodes(place).OpType().decode() for place in range(graph.NodesLength()))
    return dict(sorted(found.items()))


def _whole_bytes(source: Path, scratch: Path) -> Path:
    """The graph with four-bit tables stored two numbers to a byte: the format has no type of four bits.

    Its lookups take both, and computes the same of them.

    Raises:
        ExportError: there are four-bit weights of another operator, or in rows of an odd length.
    """
    if not _small(onnx.load(source, load_external_data=False).graph):
        return source
    model = onnx.load(source)
    weights = _small(model.graph)
    tables = {name for name, tensor in weights.items() if _fills_bytes(tensor)}
    for node in model.graph.node:
        if node.op_type == LOOKUP and node.input[0] in tables:
            node.attribute.append(onnx.helper.make_attribute("bits", 4))
            for name in {node.input[0], *node.input[3:]} & _small(model.graph).keys():  # a table may serve two nodes
                weights[name].CopyFrom(numpy_helper.from_array(_pairs(weights[name]), name))
    left = sorted(_small(model.graph))
    if left:
        raise ExportError(
            f"ONNX Runtime's format has no type of four bits, and {', '.join(left)} cannot be stored in bytes: export "
            "this model to ort in int8, or in int4 to onnx."
        )
    path = scratch / source.name
    onnx_file.save(onnx_ir.from_proto(model), path)
    return path


def _small(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in graph.initializer if tensor.data_type in FOUR_BITS}


def _fills_bytes(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.UINT4 and tensor.dims[-1] % 2 == 0


def _pairs(tensor: TensorProto) -> np.ndarray:
    """Numbers (rows, n) of four bits as bytes (rows, ceil(n / 2)), the first of each two in the low half."""
    numbers = numpy_helper.to_array(tensor).astype(np.uint8)
    even = np.pad(numbers, ((0, 0), (0, numbers.shape[1] % 2)))
    return even[:, ::2] | even[:, 1::2] << 4
