"""What ONNX Runtime GenAI is told about a decoder's graph, and what it then says."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from compressor.factorize import factorize_, fold_, plan
from compressor.methods.spectral import Spectral
from exporters.genai import GENAI_FILE, settings
from exporters.generate import continuation
from exporters.onnx import OnnxExporter

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}
GPT2_SIZES = {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 48, "initializer_range": 0.4}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, bos_token_id=1, eos_token_id=[2, 3], pad_token_id=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, eos_token_id=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZES, bos_token_id=1, eos_token_id=2)),
}
TOLD = {  # context_length, heads, key and value heads, head size, layers
    "llama": (64, 4, 2, 8, 2),
    "qwen3": (64, 4, 2, 16, 2),
    "gpt2": (48, 4, 4, 8, 3),
}
PROMPTS = [[5, 6, 7], [96], [2, 11, 2, 40, 8, 8, 30, 61, 17]]
CACHE = [{"name": f"past_key_values.0.{part}", "axes": ["batch_size", 2, "past", 8]} for part in ("key", "value")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """(architecture, precision) -> the export of a folded model, made once; int8 takes the fp32 graph beside it."""

    def export(kind: str, precision: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / "genai" / kind / f"onnx-{precision}"
        if not folder.exists():
            torch.manual_seed(0)
            model, method = MODELS[kind]().eval(), Spectral()
            fold_(factorize_(model, method, {}, plan(model, method, {}, keep=0.6, multiple_of=1)))
            tokens = torch.ones(2, 3, dtype=torch.int64)
            OnnxExporter(precision=precision).export(  # type: ignore[arg-type]
                model, {"input_ids": tokens, "attention_mask": tokens}, folder
            )
        return folder

    return export


@pytest.fixture(params=["llama-fp32", "llama-int8", "qwen3-fp32", "gpt2-fp32"])
def exported(request: pytest.FixtureRequest, folders: Callable[[str, str], Path]) -> tuple[str, Path]:
    """An architecture and its export."""
    kind, precision = request.param.split("-")
    return kind, folders(kind, precision)


def test_genai_is_told_the_sizes_of_the_graph(exported: tuple[str, Path]) -> None:
    kind, folder = exported
    model = json.loads((folder / GENAI_FILE).read_text())["model"]
    decoder = model["decoder"]
    found = ("num_attention_heads", "num_key_value_heads", "head_size", "num_hidden_layers")
    assert (model["context_length"], *(decoder[name] for name in found)) == TOLD[kind]
    assert (model["type"], model["vocab_size"], decoder["hidden_size"]) == ("decoder", 97, 32)


def test_names_of_the_graph_are_those_that_genai_is_told(exported: tuple[str, Path]) -> None:
    _, folder = exported
    decoder = json.loads((folder / GENAI_FILE).read_text())["model"]["decoder"]
    runner = OnnxExporter().load(folder)
    layers = range(decoder["num_hidden_layers"])
    for told, names in ((decoder["inputs"], set(runner.feed.dtypes)), (decoder["outputs"], set(runner.outputs))):
        assert {name % layer if "%d" in name else name for name in told.values() for layer in layers} == names
    assert (folder / decoder["filename"]).is_file()


def test_text_is_continued_greedily_and_ends_where_the_model_ends_it(exported: tuple[str, Path]) -> None:
    kind, folder = exported
    told = json.loads((folder / GENAI_FILE).read_text())
    assert told["search"] == {
        "do_sample": False,
        "num_beams": 1,
        "past_present_share_buffer": False,
        "max_length": told["model"]["context_length"],
    }
    tokens = {name: value for name, value in told["model"].items() if name.endswith("_token_id")}
    assert (
        tokens
        == {
            "llama": {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 2},
            "qwen3": {"eos_token_id": 2},  # null is none, which GenAI refuses
            "gpt2": {"bos_token_id": 1, "eos_token_id": 2},
        }[kind]
    )


@pytest.mark.parametrize(
    ("inputs", "changes"),
    [
        ([{"name": "input_ids", "axes": ["batch_size", "sequence_length"]}], {}),
        ([*CACHE, {"name": "past_key_values.1.key", "axes": ["batch_size", 4, "past", 8]}], {}),
        (CACHE, {"max_position_embeddings": None}),
    ],
    ids=["no cache", "layers of different heads", "no length"],
)
def test_a_decoder_that_genai_cannot_run_gets_no_config(inputs: list[Any], changes: dict[str, Any]) -> None:
    text = SimpleNamespace(**SIZES | changes)
    config = SimpleNamespace(get_text_config=lambda decoder: text)
    assert settings(config, inputs) is None


@pytest.mark.parametrize("prompt", PROMPTS, ids=["three", "one", "end tokens within"])
def test_genai_says_what_we_say(exported: tuple[str, Path], prompt: list[int]) -> None:
    """To the model's last position, or to an end token, which neither says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        genai = pytest.importorskip(
            "onnxruntime_genai", reason="ONNX Runtime GenAI is not installed: pip install onnxruntime-genai"
        )
    kind, folder = exported
    model = genai.Model(str(folder))
    generator = genai.Generator(model, genai.GeneratorParams(model))
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    ends = frozenset({2, 3} if kind == "llama" else {2})
    ours = continuation(OnnxExporter().load(folder), prompt, new_tokens=TOLD[kind][0] - len(prompt), stop=ends)
    assert [*prompt, *ours] == generator.get_sequence(0).tolist()
