"""Decoders with their cache: one graph that reads a prompt, continues it as torch does, and reads padded batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.decoders import ByteFallback, Fuse, Metaspace, Replace, Sequence, Strip
from tokenizers.models import WordLevel
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from compressor import registry
from compressor.errors import ArtifactError, ExportError, InputError, RuntimeFailure
from compressor.factorize import factorize_, fold_, plan
from compressor.methods.spectral import Spectral
from compressor.packaging import predict
from exporters import generate, tracing
from exporters.generate import continuation, ends, load, places, text, turn
from exporters.onnx import OnnxExporter
from exporters.onnx.runtime import OnnxRunner

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
}
LOCAL = {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6)),  # texts are longer
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **LOCAL, sliding_window=6, head_dim=8)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "roberta": lambda: RobertaForCausalLM(RobertaConfig(**SIZES, pad_token_id=0, is_decoder=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.4)
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, OnnxRunner]:
    """A model and its export; the first is folded, so that its graph holds factors."""
    torch.manual_seed(0)
    model = MODELS[request.param]().eval()
    if request.param == "llama":
        method = Spectral()
        fold_(factorize_(model, method, {}, plan(model, method, {}, keep=0.6, multiple_of=1)))
    path: Path = tmp_path_factory.mktemp(request.param) / "onnx-fp32"
    tokens = torch.randint(1, VOCABULARY, (2, 3))
    exporter = OnnxExporter()
    exporter.export(model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, path)
    return model, exporter.load(path)


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """By whole forward passes, without any cache."""
    said = list(prompt)
    for _ in range(count):
        said.append(int(model(input_ids=torch.tensor([said]), use_cache=False).logits[0, -1].argmax()))
    return said[len(prompt) :]


def test_it_continues_twenty_prompts_token_by_token_as_torch_does(decoder: tuple[Any, OnnxRunner]) -> None:
    model, runner = decoder
    generator = np.random.default_rng(0)
    for _ in range(20):
        prompt = generator.integers(1, VOCABULARY, generator.integers(1, 9)).tolist()
        assert list(continuation(runner, prompt, new_tokens=64)) == greedy(model, prompt, 64)


def test_cache_names_are_those_that_other_tools_expect(decoder: tuple[Any, OnnxRunner]) -> None:
    _, runner = decoder
    cache = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert list(runner.feed.dtypes)[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert list(runner.feed.dtypes)[3:] == [f"past_key_values.{name}" for name in cache]
    assert list(runner.outputs) == ["logits", *(f"present.{name}" for name in cache)]


def test_a_padded_batch_behind_a_cache_gives_each_row_what_it_gives_alone(decoder: tuple[Any, OnnxRunner]) -> None:
    _, runner = decoder
    rows = [[5, 9, 2, 7, 3], [4, 8]]
    ids = np.array([rows[0], [0, 0, 0, *rows[1]]])  # padded on the left
    mask = np.array([[1] * 5, [0, 0, 0, 1, 1]])
    first = runner.step({"input_ids": ids, "attention_mask": mask})
    cache = {f"past_key_values{name.removeprefix('present')}": v for name, v in first.items() if name != "logits"}
    longer = np.concatenate([mask, np.ones((2, 1), int)], axis=1)
    second = runner({"input_ids": np.array([[6], [6]]), "attention_mask": longer, **cache})["logits"]
    for row, tokens in enumerate(rows):
        alone = runner({"input_ids": np.array([[*tokens, 6]]), "attention_mask": np.ones((1, len(tokens) + 1))})
        assert np.allclose(second[row, -1], alone["logits"][0, -1], atol=1e-4)


def test_a_continuation_ends_at_its_stop_tokens_and_needs_a_prompt(decoder: tuple[Any, OnnxRunner]) -> None:
    _, runner = decoder
    free = list(continuation(runner, [5, 6], new_tokens=8))
    assert list(continuation(runner, [5, 6], new_tokens=8, stop=frozenset(free[2:3]))) == free[: free.index(free[2])]
    with pytest.raises(InputError, match="The prompt has no tokens"):
        list(continuation(runner, [], new_tokens=1))


def test_a_continuation_ends_where_the_models_positions_do(decoder: tuple[Any, OnnxRunner]) -> None:
    _, runner = decoder
    free = list(continuation(runner, [5, 6], new_tokens=8))
    assert list(continuation(runner, [5, 6], new_tokens=8, longest=4)) == free[:3]  # the last one is said, not read
    with pytest.raises(InputError, match="has 5 tokens, of which the model reads 4 at most: shorten it"):
        list(continuation(runner, [5] * 5, new_tokens=1, longest=4))


def test_positions_and_ends_are_those_that_a_config_names() -> None:
    assert (places({"n_positions": 64}), places({"max_position_embeddings": 32, "n_positions": 64})) == (64, 32)
    assert places({"max_position_embeddings": None}) is None
    long = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    assert (turn({"rope_parameters": long}), turn({"rope_parameters": {"rope_type": "default"}}), turn({})) == (
        4096,
        None,
        None,
    )
    old = {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 16}
    assert turn(old) == 16
    assert (ends({"eos_token_id": 2}), ends({"eos_token_id": [2, 3]}), ends({})) == ([2], [2, 3], [])


class Broken:
    """A decoder whose logits have overflown."""

    path, cached = Path("broken"), True

    def step(self, inputs: Any) -> dict[str, np.ndarray]:
        return {"logits": np.full((1, inputs["input_ids"].shape[1], 4), np.nan)}


def test_logits_that_are_not_finite_say_no_token() -> None:
    with pytest.raises(RuntimeFailure, match="broken gives logits that are not finite after 2 tokens"):
        list(continuation(Broken(), [5, 6], new_tokens=1))


def test_padding_and_cutting_that_a_tokenizers_file_asks_for_are_no_part_of_a_prompt(
    decoder: tuple[Any, OnnxRunner], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    example = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    OnnxExporter().export(decoder[0], example, tmp_path / "onnx-fp32")
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    said = []
    for change in (lambda: None, lambda: tokenizer.enable_padding(length=9), lambda: tokenizer.enable_truncation(2)):
        change()
        tokenizer.save(str(tmp_path / "onnx-fp32" / "tokenizer.json"))
        said.append("".join(text(tmp_path / "onnx-fp32", "w5 w6 w7", new_tokens=5)))
    assert said[0]
    assert said == said[:1] * 3


def test_exports_of_other_runtimes_are_continued_too(decoder: tuple[Any, OnnxRunner], tmp_path: Path) -> None:
    _, runner = decoder
    tokens = torch.randint(1, VOCABULARY, (2, 3))
    example = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    registry.exporter("ort", "fp32").export(decoder[0], example, tmp_path / "ort-fp32")
    expected = list(continuation(runner, [5, 6], new_tokens=8))
    assert list(continuation(load(tmp_path / "ort-fp32"), [5, 6], new_tokens=8)) == expected


def test_an_export_without_a_cache_is_told_which_ones_are_continued(tmp_path: Path) -> None:
    facts = {"runtime": "torch-export", "precision": "fp32", "inputs": [{"name": "input_ids"}]}
    (tmp_path / "export.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"to torch-export, has no cache .* onnx, ort or openvino\."):
        load(tmp_path)
    with pytest.raises(ArtifactError, match=r"export\.json is missing"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "decoder", [Metaspace(), Sequence([Replace("▁", " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)])]
)
def test_the_space_between_prompt_and_continuation_is_kept(
    decoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoders of this kind take the first space of a text away, and a continuation read alone begins with one."""
    words = {"▁The": 0, "▁capital": 1, "▁is": 2, "▁Paris": 3, "<0xC3>": 4, "<unk>": 5}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoder
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    said = [3, 3]
    monkeypatch.setattr(generate, "load", lambda *_: None)
    monkeypatch.setattr(generate, "continuation", lambda *_, **__: iter(said))
    assert "".join(generate.text(tmp_path, "The capital is")) == " Paris Paris"
    model = SimpleNamespace(tokenizer=tokenizer)
    monkeypatch.setattr(predict, "continuation", lambda *_: iter(said))
    assert "".join(predict.generate(model, "The capital is", 2)) == " Paris Paris"  # type: ignore[arg-type]


def test_a_state_space_model_has_no_cache_of_keys_and_values() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4)).eval()
    with pytest.raises(ExportError, match="MambaForCausalLM is a NoneType, not keys and values"):
        tracing._cache_shapes(model, torch.tensor([[1, 2, 3]]))


def test_a_decoder_whose_first_position_is_not_known_is_refused() -> None:
    class Odd(GPT2LMHeadModel):
        def forward(self, input_ids: Any = None, position_ids: Any = None, **others: Any) -> Any:
            counted = torch.arange(5, 5 + input_ids.shape[1])[None] if position_ids is None else position_ids
            return super().forward(input_ids=input_ids, position_ids=counted, **others)

    sizes = {"vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = Odd(GPT2Config(**sizes, initializer_range=0.4, pad_token_id=1)).eval()
    with pytest.raises(ExportError, match=r"Odd counts positions neither from 0 nor from behind its padding's \(1\)"):
        tracing._first_position(model, torch.tensor([[3, 4, 5]]))
