"""Attention's masks said as briefly as ONNX Runtime understands them.

A traced encoder computes, in some thirty small nodes, a bias (B, 1, T, T) of zeros and large negative numbers for all
of its attention. Where it hides nothing it is dropped; where it hides, from every token, those that an input mask has
at zero, `MultiHeadAttention` reads that input instead. What a bias says is found by computing it, for several shapes
and random masks: two of them are as long as its computation's largest table and longer than any whole number in it, so
that a window of attention is seen; inputs that are no mask hold those whole numbers too, so that a padding token is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir
import onnxruntime
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.base import Arrays
from exporters.onnx.file import PRODUCTS
from exporters.onnx.runtime import FAILURES
from exporters.onnx.values import OWN

PADDING, BIAS = 4, 5  # inputs of MultiHeadAttention
HIDDEN = -10000.0  # what is added to the score of a hidden token, or less
LOWEST = float(np.finfo(np.float32).min)
NOTHING = ""  # is what a bias hides, where it names no input
SHAPES = ((1, 3), (2, 5), (3, 8))  # rows and tokens that a bias is computed for, besides a long one
LONGEST = 4096  # tokens of the long one at most
ENDLESS = 2**31 - 1  # whole numbers from here on mean "to the end"
NAMED = "mask"  # in an input's name: it is zeros and ones
SEED = 0


def simplify(model: onnx_ir.Model) -> None:
    """Drop the bias of every `MultiHeadAttention` that hides nothing, or put an input's padding in its place."""
    heads = [node for node in model.graph if node.domain == OWN and node.op_type == "MultiHeadAttention"]
    heads = [node for node in heads if len(node.inputs) == BIAS + 1 and node.inputs[PADDING] is None]
    for bias in dict.fromkeys(node.inputs[BIAS] for node in heads):
        hidden = None if bias is None else hides(model, bias)
        if hidden is not None:
            _say(model.graph, [node for node in heads if node.inputs[BIAS] is bias], hidden)
    RemoveUnusedNodesPass()(model)


def hides(model: onnx_ir.Model, bias: onnx_ir.Value) -> str | None:
    """The input (B, T) whose zeros a bias hides, NOTHING where it hides nothing, None where it says anything else."""
    if bias.producer() is None:
        return None
    graph = onnx_ir.convenience.extract(model.graph, model.graph.inputs, [bias])
    lengths = _lengths(graph)
    if max(lengths) > LONGEST or any(node.op_type in PRODUCTS for node in graph):
        return None
    names = [NOTHING, *(str(value.name) for value in graph.inputs if _is_mask(value))]
    try:
        session = _loaded(graph, model.ir_version)
        return next((name for name in names if _says(session, graph, name, lengths)), None)
    except FAILURES:
        return None


def _says(session: onnxruntime.InferenceSession, graph: onnx_ir.Graph, name: str, lengths: list[int]) -> bool:
    """Whether the bias hides the zeros of the input of that name alone, or nothing."""
    ways = [frozenset({name})] if NAMED in name else [frozenset({name}), frozenset[str]()]
    shapes = [*SHAPES, *((1, length) for length in lengths)]
    feeds = (feed for bits in ways for feed in _feeds(graph, shapes, bits))
    return all(_is_hidden(session.run(None, feed)[0], feed.get(name)) for feed in feeds)


def _say(graph: onnx_ir.Graph, heads: list[onnx_ir.Node], hidden: str) -> None:
    """Give attention the padding mask of an input, in the type that it reads, or none."""
    padding = None
    if hidden != NOTHING:
        source = next(value for value in graph.inputs if value.name == hidden)
        cast = onnx_ir.node("Cast", [source], {"to": onnx_ir.DataType.INT32})
        graph.insert_before(heads[0], cast)
        padding = cast.outputs[0]
    for node in heads:
        node.replace_input_with(BIAS, None)
        node.replace_input_with(PADDING, padding)
        node.attributes["mask_filter_value"] = onnx_ir.AttrFloat32("mask_filter_value", LOWEST)


def _is_mask(value: onnx_ir.Value) -> bool:
    return value.dtype is not None and not value.dtype.is_floating_point() and len(value.shape or ()) == 2


def _lengths(graph: onnx_ir.Graph) -> list[int]:
    """More tokens than any whole number in a computation, and as many as its largest table is long."""
    sides = [side for array in _arrays(graph) for side in array.shape if array.size > 1]
    more = 2 + max((number for number in _numbers(graph) if number < ENDLESS), default=0)
    return [more, min(max(sides, default=1), LONGEST)]


def _arrays(graph: onnx_ir.Graph) -> list[np.ndarray]:
    return [value.const_value.numpy() for value in graph.initializers.values() if value.const_value is not None]


def _numbers(graph: onnx_ir.Graph) -> set[int]:
    """The whole numbers in a computation's constants, those of tables as floats left out."""
    found = set[int]()
    for array in _arrays(graph):
        if array.dtype.kind in "iu" or (array.dtype.kind == "f" and array.size == 1):
            finite = np.unique(array[np.isfinite(array)])
            found |= {int(number) for number in finite if number == int(number)}
    return found


def _loaded(graph: onnx_ir.Graph, version: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    proto = onnx_ir.to_proto(onnx_ir.Model(graph, ir_version=version))
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])


def _feeds(graph: onnx_ir.Graph, shapes: list[tuple[int, int]], bits: Collection[str]) -> Iterator[Arrays]:
    """Random whole numbers as inputs; the first axis is rows, other free axes are tokens. No row is all zeros.

    Inputs of the names `bits`, or that are called a mask, hold zeros and ones.
    """
    source = np.random.default_rng(SEED)
    near = {number + step for number in _numbers(graph) for step in (-1, 0, 1)}
    wide = sorted({0, 1} | {number for number in near if 0 <= number < ENDLESS})
    for rows, tokens in shapes:
        feed = {}
        for value in graph.inputs:
            sizes = [size if isinstance(size, int) else tokens for size in value.shape or ()]
            narrow = value.name in bits or NAMED in str(value.name)
            array = source.choice([0, 1] if narrow else wide, (rows, *sizes[1:]))
            array[:, :1] = 1
            feed[str(value.name)] = array.astype(value.dtype.numpy() if value.dtype else np.float32)
        yield feed


def _is_hidden(bias: np.ndarray, mask: np.ndarray | None) -> bool:
    """Whether a bias (B or 1, 1, T, T) is zero where a mask (B, T) is not, and very low where it is; without: zero."""
    shown = np.ones((1, 1, 1, 1), bool) if mask is None else (mask != 0)[:, None, None]
    if bias.ndim != 4 or bias.shape[1] != 1 or shown.shape[3] not in (1, bias.shape[3]):
        return False
    bias, shown = np.broadcast_arrays(bias, shown)
    return bool(np.all(np.where(shown, bias == 0, bias <= HIDDEN)))
