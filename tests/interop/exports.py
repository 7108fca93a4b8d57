"""The exports that other tools are given, with what our own runner says of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PRECISIONS = ("fp32", "int8")
LABELS, KEEP, LENGTH, NEW_TOKENS = 8, 0.5, 64, 16
ASKED = "asked.json"  # what every tool is asked, in the folder of each kind of model
TEXTS = (
    "The card has not arrived yet, is it lost?",
    "Why was I charged twice?",
    "A cat sleeps on the warm roof.",
    "Interest rates were raised again by the central bank.",
    "The orchestra played until midnight.",
    "Photosynthesis turns light into sugar.",
    "He scored in the last minute of the match.",
    "Please cancel my subscription today.",
    "Snow fell over the mountains all night.",
    "The compiler reports an undefined symbol.",
    "She bakes bread with rye and honey.",
    "Is there a train to Vienna before noon?",
    "  Ünïcode, CAPITALS \N{EM DASH} 3.14%;   wide  spaces\nand a new line  ",
    "No.",
    "How do I change the PIN of my card, and what does it cost to have a new one sent abroad by courier?",
    "word " * 100,  # longer than LENGTH: cut
)


def make(root: Path) -> None:
    """`classifier/onnx-*` and `decoder/onnx-*` under `root`, where they are not there yet."""
    for kind, build in {"classifier": _classifier, "decoder": _decoder}.items():
        if not (root / kind / ASKED).is_file():
            model, processor, task, asked = build()
            _export(model, processor, task, root / kind)
            (root / kind / ASKED).write_text(json.dumps(asked))


def ours(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What our runner says: one row at a time, without padding."""
    from exporters.base import Session
    from exporters.generate import continuation
    from exporters.onnx import runtime as onnx_runtime

    runner = onnx_runtime.load(folder, Session())
    if "prompts" in asked:
        inputs = [_arrays({"input_ids": prompt, "attention_mask": [1] * len(prompt)}) for prompt in asked["prompts"]]
        tokens = [list(continuation(runner, one, new_tokens=asked["new_tokens"])) for one in asked["prompts"]]
        return {"logits": [runner(one)["logits"][0, -1].tolist() for one in inputs], "tokens": tokens}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = [tokenizer(text, truncation=True, max_length=asked["max_length"]) for text in asked["texts"]]
    return {"logits": [runner(_arrays(one))["logits"][0].tolist() for one in encoded]}


def _arrays(encoded: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np

    return {name: np.array([row]) for name, row in encoded.items()}


def _export(model: Any, processor: Any, task: str, folder: Path) -> None:
    """The model with its layers as two factors each, in every precision."""
    import shutil

    from compressor import registry
    from compressor.factorize import factorize_, fold_, plan
    from compressor.methods.spectral import Spectral

    method = Spectral()
    fold_(factorize_(model, method, {}, plan(model, method, {}, keep=KEEP)))
    for precision in PRECISIONS:
        target = folder / f"onnx-{precision}"
        shutil.rmtree(target, ignore_errors=True)
        registry.exporter("onnx", precision).export(model.eval(), registry.task(task).example(processor), target)
        processor.save_pretrained(target)


def _classifier() -> tuple[Any, Any, str, dict[str, Any]]:
    """all-MiniLM-L6-v2 under $RANKFOLD_MODELS, or a tiny BERT; a wide random head tells texts apart."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

    torch.manual_seed(0)
    real = _real("minilm-l6")
    if real:
        processor = AutoTokenizer.from_pretrained(real)
        model = AutoModelForSequenceClassification.from_pretrained(real, num_labels=LABELS)
    else:
        processor = _tokenizer()
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = BertConfig(vocab_size=len(processor), num_labels=LABELS, initializer_range=0.2, **sizes)
        model = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.classifier.weight)
    return model, processor, "text-classification", {"texts": TEXTS, "max_length": LENGTH}


def _decoder() -> tuple[Any, Any, str, dict[str, Any]]:
    """SmolLM2-135M under $RANKFOLD_MODELS, or a tiny Llama; prompts are token ids."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    torch.manual_seed(0)
    real = _real("smollm2-135m")
    if real:
        processor = AutoTokenizer.from_pretrained(real)
        model = AutoModelForCausalLM.from_pretrained(real, dtype=torch.float32)
    else:
        processor = _tokenizer()
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(vocab_size=len(processor), num_key_value_heads=2, initializer_range=0.3, **sizes)
        model = AutoModelForCausalLM.from_config(config)
    prompts = [processor(text)["input_ids"] for text in TEXTS[:12]]
    return model, processor, "text-generation", {"prompts": prompts, "new_tokens": NEW_TOKENS}


def _real(name: str) -> Path | None:
    folder = Path(os.environ.get("RANKFOLD_MODELS", "")) / name
    return folder if "RANKFOLD_MODELS" in os.environ and folder.is_dir() else None


def _tokenizer() -> Any:
    """BERT's, over the letters of TEXTS and some whole words."""
    from transformers import BertTokenizerFast

    words = sorted({word.strip(".,?!").lower() for text in TEXTS for word in text.split()})
    letters = sorted({letter for word in words for letter in word})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words[::2]])
    return BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)})
