"""A table that an embedding and a head share, in the quantized precisions: stored once, and read as what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from exporters.base import Exported
from exporters.generate import continuation
from exporters.onnx import OnnxExporter
from exporters.onnx import tied as onnx_tied
from exporters.onnx.exporter import Precision
from exporters.ort import OrtExporter

WORDS, WIDTH = 200, 64
PRECISIONS: tuple[Precision, ...] = ("int8", "int8-weights", "int4")
TABLE = {  # bytes that a table takes beside the product's: numbers, and what two of them need to be read
    "int8": WORDS * WIDTH,
    "int8-weights": WORDS * (WIDTH + 2 * 4 + 2),
    "int4": WORDS * (WIDTH // 2 + 2 * 4 + 1),
}


class Both(nn.Module):
    """Rows of a table, and the products of what is made of them with all of its rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, width)
        with torch.no_grad():
            self.table.weight[7] *= 1e-3  # nothing is left of it where all rows share one scale

    def forward(self, input_ids: Tensor) -> Tensor:
        rows = self.table(input_ids)
        return torch.cat([rows, nn.functional.linear(rows.tanh(), self.table.weight)], -1)


@pytest.fixture(scope="module")
def ids() -> dict[str, Tensor]:
    """Every row of a table once."""
    return {"input_ids": torch.arange(WORDS).reshape(4, -1)}


def rows_of(export: Exported, ids: dict[str, Tensor], width: int) -> np.ndarray:
    """The rows that an export of `Both` looks up, and nothing of their products."""
    found = OnnxExporter().load(export.path)({name: value.numpy() for name, value in ids.items()})["logits"]
    return found.reshape(WORDS, -1)[:, :width]


def on_steps(block: np.ndarray, steps: int) -> np.ndarray:
    """Each row (of one block) on equal steps from its least to its greatest value, zero among them."""
    low, high = np.minimum(block.min(1, keepdims=True), 0), np.maximum(block.max(1, keepdims=True), 0)
    scale = (high - low) / steps
    zero = np.round(-low / scale)
    return (np.clip(np.round(block / scale + zero), 0, steps) - zero) * scale


@pytest.mark.parametrize("precision", ["int8-weights", "int4"])
def test_rows_are_those_of_the_products_blocks(tmp_path: Path, ids: dict[str, Tensor], precision: Precision) -> None:
    model, steps = Both(WIDTH), 255  # what gives the logits has eight bits in int4 too
    export = OnnxExporter(precision=precision).export(model, ids, tmp_path / "export")
    table = model.table.weight.detach().numpy()
    rounded = np.concatenate([on_steps(table[:, at : at + 32], steps) for at in range(0, WIDTH, 32)], axis=1)
    half_a_step = np.ptp(table.reshape(WORDS, -1, 32), axis=2).max() / steps / 2
    off = np.abs(rows_of(export, ids, WIDTH) - rounded)
    assert (off > 1e-5).mean() < 0.01  # numbers half way between two steps may go either way
    assert off.max() < 2.1 * half_a_step


def test_rows_of_int8_have_a_scale_each(tmp_path: Path, ids: dict[str, Tensor]) -> None:
    model = Both(WIDTH)
    export = OnnxExporter(precision="int8").export(model, ids, tmp_path / "export")
    table = model.table.weight.detach().numpy()
    found = rows_of(export, ids, WIDTH)
    step = np.abs(table).max(1, keepdims=True) / 63  # seven bits
    assert (np.abs(found - table) <= 0.51 * step).all()
    assert len(np.unique(np.round(found[7] / step[7] * 1000))) > 30  # the small row is told apart


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_table_is_stored_once(
    tmp_path: Path, ids: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    once = OnnxExporter(precision=precision).export(Both(WIDTH), ids, tmp_path / "once").facts
    monkeypatch.setattr(onnx_tied, "ties", lambda _: {})
    twice = OnnxExporter(precision=precision).export(Both(WIDTH), ids, tmp_path / "twice").facts
    saved = twice["initializer_bytes"] - once["initializer_bytes"]
    assert TABLE[precision] - WORDS * 2 - 200 < saved <= TABLE[precision] + 10
    assert once["matmul_weight_bytes"] == twice["matmul_weight_bytes"]


def test_rows_that_do_not_fill_their_last_block_keep_a_table_of_their_own(
    tmp_path: Path, ids: dict[str, Tensor]
) -> None:
    model = Both(40)
    export = OnnxExporter(precision="int8-weights").export(model, ids, tmp_path / "export")
    table = model.table.weight.detach().numpy()
    np.testing.assert_allclose(rows_of(export, ids, 40), table, atol=np.ptp(table) / 255)
    stored = {tensor.name for tensor in onnx.load(export.path / "model.onnx").graph.initializer}
    assert "table.weight_bytes" in stored


def test_tables_that_stay_in_floats_are_left_alone(tmp_path: Path, ids: dict[str, Tensor]) -> None:
    model = Both(WIDTH)
    for precision in PRECISIONS:
        exporter = OnnxExporter(precision=precision, embeddings=False)
        export = exporter.export(model, ids, tmp_path / precision)
        np.testing.assert_array_equal(rows_of(export, ids, WIDTH), model.table.weight.detach().numpy())


def test_a_table_whose_rows_go_into_a_product_at_once_is_left_alone(tmp_path: Path, ids: dict[str, Tensor]) -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(WORDS, WIDTH)

        def forward(self, input_ids: Tensor) -> Tensor:
            return nn.functional.linear(self.table(input_ids), self.table.weight)

    model = Direct()
    export = OnnxExporter(precision="int8").export(model, ids, tmp_path / "export")
    expected = model(**ids).detach().numpy().reshape(WORDS, WORDS)
    assert np.corrcoef(rows_of(export, ids, WORDS).ravel(), expected.ravel())[0, 1] > 0.99
    stored = {tensor.name for tensor in onnx.load(export.path / "model.onnx").graph.initializer}
    assert "table.weight_quantized" in stored


@pytest.fixture(scope="module")
def llama() -> Any:
    """A language model whose head is its table of words."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return cast(Callable[..., Any], LlamaForCausalLM)(config).eval()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_decoder_says_the_same_from_one_table_in_both_runtimes(
    tmp_path: Path, llama: Any, padded: Callable[..., dict[str, Tensor]], precision: Precision
) -> None:
    inputs = padded(2, 5, WORDS)
    portable = OnnxExporter(precision=precision).export(llama, inputs, tmp_path / "onnx")
    flat = OrtExporter(precision=cast(Any, precision)).export(llama, inputs, tmp_path / "ort")
    runners = [OnnxExporter().load(portable.path), OrtExporter().load(flat.path)]
    said = [list(continuation(runner, [5, 6, 7], new_tokens=12)) for runner in runners]
    assert said[0] == said[1]
    more = {name: value.numpy() for name, value in padded(3, 9, WORDS).items()}
    with torch.no_grad():
        expected = llama(**padded(3, 9, WORDS)).logits.numpy()
    real = more["attention_mask"].astype(bool)
    for runner in runners:
        found = runner(more)["logits"]
        assert np.corrcoef(found[real].ravel(), expected[real].ravel())[0, 1] > (0.85 if precision == "int4" else 0.99)
    sizes = [int(np.prod(one.dims)) for one in onnx.load(portable.path / "model.onnx").graph.initializer]
    assert sum(size >= WORDS * WIDTH // 2 for size in sizes) == 1
