"""From an nn.Module to an ONNX graph with free axes and named weights, by torch.onnx (dynamo)."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import rewriter
from torch import Tensor, nn

from compressor.errors import ExportError
from exporters.onnx import file
from exporters.tracing import BATCH, TOTAL, Tracing, require_free, spans, tracing_of
from exporters.verify import Inputs, Spans, positions, sequences

TURNED = ".T"  # ends the name of a transposed weight
PREFIX = "model."  # what a tracing puts before every weight's name
PART = 4_000_000  # bytes of a matrix that are digested at once
SEEN = ("_graph", "_match", "_current_node")  # of a matcher, which sets them anew for every node
KNOWN_WARNINGS = (
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "# The axis name: .* will not be used, since it shares the same shape constraints",
)


def write(model: nn.Module, example: Inputs, opset: int, path: Path) -> Spans:
    """Trace `model` on `example` and save the graph as `path`.

    Returns:
        For how many tokens the graph is sure to be the model: torch quietly traces a model that branches on a text's
        length as if it had but one branch.

    Raises:
        ExportError: the example or the model cannot be traced, an axis that should be free was fixed, or torch.onnx
            does not write this opset.
    """
    _check(model, example)
    tracing = tracing_of(model, example)
    program = _trace(model, tracing, opset)
    graph = program.model
    _check_axes(graph, tracing)
    _check_opset(graph, opset)
    _name_weights(graph, model)
    ClearMetadataAndDocStringPass()(graph)  # stack traces name paths of the exporting machine
    file.save(graph, path)
    _have_rules_forget()
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"torch.onnx wrote a graph that the ONNX checker refuses: {error}") from error
    assert program.exported_program is not None
    return spans(program.exported_program, tracing)


def _bytes(tensor: Tensor) -> Any:
    """The raw bytes in row-major order; numpy has no bfloat16, so they are read as uint8."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _check(model: nn.Module, example: Inputs) -> None:
    other = sorted({str(tensor.dtype) for tensor in model.parameters()} - {"torch.float32"})
    if other:
        raise ExportError(f"The model has weights of {', '.join(other)}; call `model.float()` before exporting fp32.")
    counted = sequences(example)
    small = [name for name, tensor in example.items() if min(tensor.shape[: 1 + (name in counted)], default=0) < 2]
    if small or not example:
        raise ExportError(
            f"The example needs at least 2 rows and 2 tokens, since torch fixes axes of length 1; too small: "
            f"{', '.join(small) or 'no inputs at all'}."
        )


def _trace(model: nn.Module, tracing: Tracing, opset: int) -> torch.onnx.ONNXProgram:
    try:
        with _quiet():
            program = torch.onnx.export(
                tracing.module.eval(),
                tuple(tracing.inputs.values()),
                dynamo=True,
                dynamic_shapes=_dynamic_shapes(tracing, positions(model)),
                input_names=tuple(tracing.inputs),
                output_names=tracing.outputs,
                opset_version=opset,
                verbose=False,
                optimize=False,
            )
            assert program is not None  # dynamo=True without a file returns the program
            program.optimize()
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(
            f"torch.onnx cannot export {type(model).__name__} at opset {opset}: {_reason(error)}"
        ) from error
    return program


def _have_rules_forget() -> None:
    """onnxscript's rules keep the last nodes that they have seen, and with them all weights and the traced program."""
    for rule in getattr(rewriter, "_DEFAULT_REWRITE_RULES", ()):
        for seen in SEEN:
            vars(getattr(rule, "_matcher", SimpleNamespace())).pop(seen, None)


def _dynamic_shapes(tracing: Tracing, longest: int) -> tuple[Any, ...]:
    """The free axes of each input, as torch wants them for the one starred argument of the module's forward.

    Models that keep a table of their attention's mask (GPT-Neo) hold no text longer than it, which has to be said.
    """
    dim = torch.export.Dim
    sizes = {name: dim.AUTO if name == TOTAL else dim(name, max=longest) for name in tracing.sizes - {BATCH}}
    sizes[BATCH] = dim(BATCH)
    return (tuple({axis: sizes[name] for axis, name in free.items()} for free in tracing.axes.values()),)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of things that do not matter, and of failures before it raises them."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            for message in KNOWN_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    """The innermost cause in one sentence, with its place in the model's code; torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    place = re.search(r'File "(.+?)", line (\d+)', str(error))
    said = re.match(r"(.*:\s*\n)*.*", str(error).strip())  # a line that ends in a colon is continued by the next
    assert said is not None
    return f"{type(error).__name__}: {' '.join(said[0].split())}" + (f" ({place[1]}:{place[2]})" if place else "")


def _check_axes(graph: onnx_ir.Model, tracing: Tracing) -> None:
    """torch.onnx quietly fixes an axis that the model turns into a number; that graph would serve one length only."""
    fixed = []
    for value in graph.graph.inputs:
        for axis, name in tracing.axes[str(value.name)].items():
            if value.shape is not None and not isinstance(value.shape[axis], onnx_ir.SymbolicDim):
                fixed.append(f"{name} of {value.name} to {value.shape[axis]}")
            elif value.shape is not None and name == TOTAL:
                value.shape = onnx_ir.Shape([name if place == axis else size for place, size in enumerate(value.shape)])
    require_free(fixed)


def _check_opset(graph: onnx_ir.Model, opset: int) -> None:
    """torch.onnx writes another where it cannot write, or turn its graph into, the one asked for."""
    written = graph.opset_imports.get("")
    if written != opset:
        raise ExportError(
            f"torch.onnx {torch.__version__} writes this model in opset {written} of ONNX, not in {opset}: ask for "
            f"`opset: {written}`."
        )


def _name_weights(graph: onnx_ir.Model, model: nn.Module) -> None:
    """Call every weight as the model does; one that was transposed for MatMul gets `.T` behind its name.

    Where a layer is called several times, its weight was transposed for each call: one of them is kept. A weight that
    is called as an input, or as a value, such as `mean` that an operator of this name gave, keeps torch's name for it.
    """
    weights, own = graph.graph.initializers, model.state_dict().keys()
    values = [*graph.graph.inputs, *(value for node in graph.graph.all_nodes() for value in node.outputs)]
    taken = {value.name for value in values}
    transposed = {_key(tensor.mT): f"{name}{TURNED}" for name, tensor in _matrices(model).items()}
    for value in list(weights.values()):
        name = (value.name or "").removeprefix(PREFIX)
        tensor = value.const_value
        turned = tensor is not None and tensor.dtype == onnx_ir.DataType.FLOAT and len(tensor.shape) == 2
        if tensor is not None and turned and name not in own:
            name = transposed.get(_key(torch.from_numpy(tensor.numpy())), name)
        if name in weights:
            if name.endswith(TURNED) and weights[name] is not value:
                value.replace_all_uses_with(weights[name])
                del weights[str(value.name)]
        elif name not in taken:
            value.name = name


def _matrices(model: nn.Module) -> Mapping[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.ndim == 2}


def _key(tensor: Tensor) -> tuple[tuple[int, ...], bytes]:
    """Shape and digest of a matrix, some rows at a time, since those of a turned one have to be copied."""
    digest = hashlib.sha256()
    for rows in torch.split(tensor, max(1, PART // max(1, tensor.shape[1] * tensor.element_size()))):
        digest.update(_bytes(rows))
    return tuple(tensor.shape), digest.digest()
