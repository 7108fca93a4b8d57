"""How text generation is measured: what is timed, what is told of it, and that a file is not measured twice."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import decode_probe
import decoding
import export_tables
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from exporters.base import Session
from exporters.onnx import OnnxExporter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a small decoder."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=41, num_hidden_layers=1, max_position_embeddings=128, **sizes))
    tokens = torch.arange(1, 7).reshape(2, 3)
    path: Path = tmp_path_factory.mktemp("decoding") / "onnx-fp32"
    OnnxExporter().export(model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, path)
    return path


def test_the_prompt_is_timed_apart_from_what_follows(folder: Path) -> None:
    runner, ticks = OnnxExporter().load(folder, Session("cpu", 1)), iter((10, 30, 75))
    assert decode_probe.said(runner, [5, 6], 4, lambda: next(ticks)) == (20, 45)


def test_every_runner_is_timed_in_every_run_and_the_first_is_not_counted(folder: Path) -> None:
    runner = OnnxExporter().load(folder, Session("cpu", 1))
    found = decode_probe.measured([runner, runner], [5, 6], 3, runs=2)
    assert np.asarray(found).shape == (2, 2, 2)
    assert (np.asarray(found) > 0).all()


def test_figures_are_medians_in_milliseconds_and_tokens_per_second() -> None:
    said = decoding.NEW_TOKENS - 1
    times = [(2_000_000, said * 10**6), (4_000_000, said * 10**7), (3_000_000, said * 2 * 10**6)]
    assert decoding.figures(times) == pytest.approx({"prefill_ms": 3.0, "tokens_per_second": 500.0})


def test_a_row_has_both_sides_from_processes_without_torch_and_the_table_tells_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "NEW_TOKENS", 3)
    found: dict[str, Any] = {"export": "tiny/onnx-fp32"}
    found |= decoding.row(folder, folder, [5, 6, 7], argparse.Namespace(runs=2, threads=1), 12.3)
    assert (found["precision"], found["prompt"], found["new_tokens"]) == ("fp32", 3, 2)
    assert found["speedup"] == found["candidate"]["tokens_per_second"] / found["dense"]["tokens_per_second"]
    assert 0 < found["floor_mib"] < found["peak_mib"]
    assert set(found["digests"]) == {"model.onnx"}
    *_, line = export_tables.decoding([found, found | {"export": "half", "file_bytes": found["file_bytes"] / 2}])
    assert line.startswith("| half | 1 |")
    assert "| 0.500x |" in line


def test_a_measurement_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(decoding.RuntimeFailure, match="is no ONNX export"):
        decoding.ask([tmp_path], [1, 2], 1, 1)


def test_an_export_with_float_tables_has_a_folder_of_its_own() -> None:
    names = [kind.name for kind in decoding.KINDS]
    assert len(set(names)) == len(names)
    assert decoding.Kind("int4", embeddings=False).exporter() == OnnxExporter(precision="int4", embeddings=False)
