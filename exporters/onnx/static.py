"""Static int8: an fp32 ONNX graph whose weights and activations have scales measured ahead of time (QDQ).

Activations are measured on the task's own data, from the least to the greatest value seen, and weights are rounded by
it (`rounding`). Only what a product, a convolution or a table reads is rounded: products give floats, and norms,
softmax and additions stay as they were.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from compressor.errors import ExportError
from exporters.base import Arrays, Session
from exporters.onnx import file, runtime
from exporters.onnx.channels import by_channels, without_channels
from exporters.onnx.prepare import prepare, quiet

PRODUCTS = ["MatMul", "Gemm"]


def quantize(source: Path, target: Path, *, samples: Sequence[Arrays], embeddings: bool, reduce_range: bool) -> None:
    """Write the fp32 graph `source` as int8 graph `target` between QuantizeLinear and DequantizeLinear.

    Args:
        samples: batches of the model's inputs; a decoder's are read as prompts, with an empty cache.
        embeddings: quantize the tables that Gather reads from too.
        reduce_range: seven-bit weights, which give the same results on CPUs with and without VNNI.

    Raises:
        ExportError: there are no samples, or the quantizer fails.
    """
    if not samples:
        raise ExportError("int8-static measures its scales on data: give `export` at least one batch as `samples`.")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        scratch = Path(folder)
        prepared, quantized = scratch / "prepared.onnx", scratch / "quantized.onnx"
        prepare(by_channels(source, scratch, samples, reduce_range=reduce_range), prepared)
        try:
            with quiet():
                quantize_static(
                    prepared,
                    quantized,
                    _Reader(runtime.load(source.parent, Session()), samples),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=[*PRODUCTS, "Conv", *(["Gather"] if embeddings else [])],
                    nodes_to_exclude=[*without_channels(prepared), *_lookups_of_factors(prepared)],
                    per_channel=True,
                    reduce_range=reduce_range,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    use_external_data_format=True,
                    extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": PRODUCTS},
                )
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
            raise ExportError(f"ONNX Runtime's static quantizer fails on this graph: {error}. Export int8.") from error
        file.save(onnx_ir.load(quantized), target)


def _lookups_of_factors(path: Path) -> list[str]:
    """Lookups in a table that a product reads as it is stored: what they give would get its scales, one per row."""
    graph = onnx_ir.load(path).graph
    products = [node for node in graph.all_nodes() if node.op_type in PRODUCTS]
    factors = {value for node in products for value in node.inputs if value is not None and value.is_initializer()}
    return [str(node.name) for node in graph.all_nodes() if node.op_type == "Gather" and node.inputs[0] in factors]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """The samples as the graph takes them, one at a time."""

    def __init__(self, runner: runtime.OnnxRunner, samples: Sequence[Arrays]) -> None:
        self.feeds: Iterator[Mapping[str, np.ndarray]] = map(runner.feed, samples)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """The next batch, or None after the last one."""
        return next(self.feeds, None)
