"""What NNCF makes of an fp32 IR: weights alone in eight bits, or weights and what they are multiplied with."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor import registry
from compressor.errors import ExportError, first_line
from exporters.base import Arrays
from exporters.openvino import runtime
from exporters.openvino.runtime import INSTALL

PACKAGES: Mapping[str, str] = {"nncf": INSTALL}  # needed to export int8, not to run it


def compressed(graph: Any) -> Any:
    """The graph with the weights of its products and its embedding tables in eight bits; nothing is printed."""
    with _quiet() as nncf:
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)


def quantized(graph: Any, path: Path, samples: Sequence[Arrays]) -> Any:
    """The graph with weights and activations in eight bits, by ranges measured on `samples`; nothing is printed.

    Args:
        graph: the fp32 IR, read.
        path: where it lies, for messages.
        samples: batches of the model's inputs.

    Raises:
        ExportError: the graph is a decoder's, or NNCF fails on it.
    """
    feed = runtime.feed_of(path, graph)
    if feed.cache:
        raise ExportError(
            "int8-static is not for a model with a cache: a scale for all numbers of an activation loses the outliers "
            "of language models. Export int8, which leaves activations to OpenVINO, or fp16."
        )
    feeds = [feed(batch) for batch in samples]
    with _quiet() as nncf, np.errstate(over="ignore"):  # masks hold the least float, and are summed
        try:
            return nncf.quantize(
                graph, nncf.Dataset(feeds), subset_size=len(feeds), model_type=nncf.ModelType.TRANSFORMER
            )
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            raise ExportError(f"NNCF cannot quantize this graph: {first_line(error)}. Export int8 instead.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """NNCF, with its progress bars beside ours and errors only in its log."""
    (nncf,) = registry.imported(PACKAGES)
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):
        yield nncf
