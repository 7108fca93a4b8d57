"""Small causal language models with random weights, and a tokenizer of whole words that has no padding token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

WORDS = ["<s>", "</s>", "<unk>", "Question", ":", "Answer", "one", "two", "three", "four", "five", "six", "red", "blue"]
WORDS += ["text", "a", "another", ",", "somewhat", "longer", "for", "the", "tracer", "third"]
IDS = {"bos_token_id": 0, "eos_token_id": 1}
SMALL = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "initializer_range": 0.2}
GROUPED = SMALL | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": None,
}
CONFIGS = {
    "llama": LlamaConfig(**GROUPED, **IDS),
    "mistral": MistralConfig(**GROUPED, **IDS),
    "qwen2": Qwen2Config(**GROUPED, **IDS, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=32, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.2, **IDS),
}


@pytest.fixture(params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each of the architectures in turn."""
    return str(request.param)


@pytest.fixture
def decoder() -> Callable[[str], Any]:
    """A model of an architecture, the same at every call."""

    def build(kind: str = "llama") -> Any:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()

    return build


@pytest.fixture
def words() -> Callable[..., Any]:
    """A tokenizer of whole words, which opens each text with <s> or with nothing."""

    def build(*, opens: bool = False) -> Any:
        told = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
        told.pre_tokenizer = Whitespace()
        if opens:
            told.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        return PreTrainedTokenizerFast(tokenizer_object=told, bos_token="<s>", eos_token="</s>", unk_token="<unk>")

    return build


@pytest.fixture
def surprise() -> Callable[[Any, list[int], int], float]:
    """-log p of the tokens of a text from `start` on, one token at a time and in float64."""

    def measured(model: Any, tokens: list[int], start: int = 1) -> float:
        total = 0.0
        for place in range(start, len(tokens)):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([tokens[:place]])).logits[0, -1].double().numpy()
            total -= float(logits[tokens[place]] - np.log(np.exp(logits).sum()))
        return total

    return measured


@pytest.fixture
def numpied() -> Callable[[Mapping[str, torch.Tensor]], dict[str, np.ndarray]]:
    """A batch for numpy."""
    return lambda batch: {name: tensor.numpy() for name, tensor in batch.items()}
