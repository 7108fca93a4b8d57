"""Checkpoints for tests: small random models of many architectures, and real weights packed in other ways."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor

from compressor import registry
from compressor.models import auto_class
from compressor.tasks.text import EXAMPLE

CLASSIFIES, GENERATES, SEES = "text-classification", "text-generation", "image-classification"
SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # tokens 0 to 3
COLORS = ("red", "green", "blue", "gray")
WORDS = ("one", "two", "three", "four", "five", "six")
VOCABULARY, SIZE, ROWS = 64, 32, 16

RANDOM = {"initializer_range": 0.2}
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"vocab_size": VOCABULARY, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
POSITIONS = {"max_position_embeddings": 40}
ENCODER = RANDOM | BLOCKS | TEXT | POSITIONS | {"intermediate_size": 64}
GROUPED = ENCODER | {"num_key_value_heads": 2}  # two query heads share a key and a value
GPT2 = RANDOM | TEXT | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
DISTILBERT = RANDOM | TEXT | POSITIONS | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
DEBERTA = ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
DEBERTA |= {"share_att_key": True, "norm_rel_ebd": "layer_norm"}
MODERNBERT = ENCODER | {"cls_token_id": 0, "sep_token_id": 2, "local_attention": 8}
GPT_NEO = RANDOM | BLOCKS | TEXT | POSITIONS | {"attention_types": [[["global", "local"], 1]]}
OPT = BLOCKS | TEXT | POSITIONS | {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2}
HALF = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
VISION = RANDOM | BLOCKS | {"intermediate_size": 64, "image_size": SIZE, "patch_size": 8}
DINOV2 = RANDOM | BLOCKS | {"image_size": 56, "patch_size": 8, "mlp_ratio": 2}  # its positions are interpolated to SIZE
STAGES = {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4}
SWIN = RANDOM | STAGES | {"image_size": SIZE, "patch_size": 4}
PAIR = RANDOM | TEXT | POSITIONS | {"d_model": 32, "decoder_start_token_id": 2, "init_std": 0.2}  # encoder and decoder
PAIR |= {f"{side}_{size}": number for side in ("encoder", "decoder") for size, number in HALF.items()}
HIERA = {"embed_dim": 16, "image_size": [SIZE, SIZE], "patch_stride": [4, 4], "depths": [1, 1], "num_heads": [1, 2]}
HIERA |= {"query_stride": [2, 2], "masked_unit_size": [4, 4], "num_query_pool": 1}
SEGFORMER = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32]}
SEGFORMER |= {"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
BEIT = VISION | {"use_relative_position_bias": True}


class Family(NamedTuple):
    """An architecture: a config in which one is small, and what it is adapted to do."""

    config: Any
    task: str = CLASSIFIES
    segments: bool = False  # whether it reads token_type_ids


FAMILIES = {
    "bert": Family(hf.BertConfig(**ENCODER), segments=True),
    "mpnet": Family(hf.MPNetConfig(**ENCODER)),  # a bias of relative positions, shared by all blocks
    "deberta-v2": Family(hf.DebertaV2Config(**DEBERTA), segments=True),  # keys also read the relative positions
    "albert": Family(hf.AlbertConfig(**ENCODER, embedding_size=16), segments=True),  # one block, called twice
    "modernbert": Family(hf.ModernBertConfig(**MODERNBERT)),  # one layer makes query, key and value; no biases
    "dinov2": Family(hf.Dinov2Config(**DINOV2), SEES),
    "swin": Family(hf.SwinConfig(**SWIN), SEES),  # stages of different widths
    "beit": Family(hf.BeitConfig(**BEIT), SEES),  # keys without bias
    "llama": Family(hf.LlamaConfig(**GROUPED), GENERATES),
    "gpt2": Family(hf.GPT2Config(**GPT2), GENERATES),  # Conv1D in place of linear layers
    "opt": Family(hf.OPTConfig(**OPT), GENERATES),
    "gpt-neox": Family(hf.GPTNeoXConfig(**ENCODER), GENERATES),
}
KIN = {
    "bart": Family(hf.BartConfig(**PAIR)),  # reads the decoder where the text ends
    "roberta": Family(hf.RobertaConfig(**ENCODER)),
    "distilbert": Family(hf.DistilBertConfig(**DISTILBERT)),
    "electra": Family(hf.ElectraConfig(**ENCODER, embedding_size=16), segments=True),
    "vit": Family(hf.ViTConfig(**VISION), SEES),
    "deit": Family(hf.DeiTConfig(**VISION, architectures=["DeiTForImageClassification"]), SEES),
    "mistral": Family(hf.MistralConfig(**GROUPED, sliding_window=None), GENERATES),
    "qwen2": Family(hf.Qwen2Config(**GROUPED, tie_word_embeddings=True), GENERATES),
    "gpt-neo": Family(hf.GPTNeoConfig(**GPT_NEO), GENERATES),  # a table of its attention's mask
    "phi": Family(hf.PhiConfig(**ENCODER), GENERATES),
    "gemma": Family(hf.GemmaConfig(**GROUPED, head_dim=8), GENERATES),
    "llama-classifies": Family(hf.LlamaConfig(**GROUPED)),
    "qwen3": Family(hf.Qwen3Config(**GROUPED, head_dim=8), GENERATES),  # norms of queries and keys
    "phi3": Family(hf.Phi3Config(**GROUPED), GENERATES),  # one layer makes query, key and value, one gate and up
    "granite": Family(hf.GraniteConfig(**GROUPED), GENERATES),
    "olmo2": Family(hf.Olmo2Config(**GROUPED), GENERATES),
    "smollm3": Family(hf.SmolLM3Config(**GROUPED), GENERATES),
    "gemma3": Family(hf.Gemma3TextConfig(**GROUPED, head_dim=8), GENERATES),
    "starcoder2": Family(hf.Starcoder2Config(**GROUPED), GENERATES),
    "lfm2": Family(hf.Lfm2Config(**GROUPED), GENERATES),  # convolutions beside attention
    "siglip": Family(hf.SiglipConfig(vision_config=VISION, text_config=ENCODER), SEES),
    "clip": Family(hf.CLIPConfig(vision_config=VISION, text_config=ENCODER), SEES),
    "dinov2-registers": Family(hf.Dinov2WithRegistersConfig(**DINOV2), SEES),
    "swinv2": Family(hf.Swinv2Config(**SWIN), SEES),  # its bias of positions is a small network
    "hiera": Family(hf.HieraConfig(**HIERA), SEES),  # patches that overlap
    "segformer": Family(hf.SegformerConfig(**SEGFORMER), SEES),
    "convnextv2": Family(hf.ConvNextV2Config(hidden_sizes=[16, 32, 32, 32], depths=[1, 1, 1, 1]), SEES),
}


# ---- small random models and what they read ----


def checkpoint(family: Family, folder: Path) -> None:
    """A random model as people publish it: without a head for the task, where the task brings one."""
    torch.manual_seed(0)
    model = auto_class(registry.task(family.task)).from_config(family.config)
    (model if family.task == GENERATES else model.base_model).save_pretrained(folder)
    processor = hf.ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})
    (processor if family.task == SEES else tokenizer(family)).save_pretrained(folder)


def tokenizer(family: Family) -> Any:
    """Of byte pairs, since some classes read nothing else; classified texts are opened and closed."""
    told = Tokenizer(models.BPE())
    told.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL.values()), show_progress=False)
    told.train_from_iterator([*COLORS, *WORDS, *EXAMPLE], trainer)
    if family.task == CLASSIFIES:
        ends = [("<s>", 0), ("</s>", 2)]
        told.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", ends)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    names = names if family.segments else names[::2]
    return hf.PreTrainedTokenizerFast(tokenizer_object=told, model_input_names=names, **SPECIAL)


def write_rows(task: str, folder: Path, split: str) -> Path:
    """Rows whose label is a color: of the image, or a word of the text."""
    rng = np.random.default_rng(len(split))
    labels = [COLORS[number % len(COLORS)] for number in range(ROWS)]
    if task == SEES:
        shades = [50 * COLORS.index(label) + rng.integers(0, 56, (SIZE, SIZE, 3)) for label in labels]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        table = {"image": [Image.fromarray(shade.astype(np.uint8)) for shade in shades], "label": labels}
        path = folder / f"{split}.parquet"
        datasets.Dataset.from_dict(table, features=features).to_parquet(str(path))
        return path
    texts = [" ".join([label, *rng.choice(WORDS, rng.integers(1, 8))]) for label in labels]
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    path = folder / f"{split}.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


# ---- the same weights in the packings that people have ----


def whole(model: Any, folder: Path) -> None:
    """With the head, so that the other names carry the prefix of the model that has it."""
    model.save_pretrained(folder)


def headless(model: Any, folder: Path) -> None:
    """Without the head, and so without that prefix."""
    model.base_model.save_pretrained(folder)


def sharded(model: Any, folder: Path) -> None:
    """Several files and an index."""
    model.save_pretrained(folder, max_shard_size="40MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert (folder / "model.safetensors.index.json").is_file()


def halved(dtype: torch.dtype) -> Callable[[Any, Path], None]:
    """In half the width."""
    return lambda model, folder: copy.deepcopy(model).to(dtype).save_pretrained(folder)


PACKINGS: dict[str, tuple[Callable[[Any, Path], None], float]] = {  # and how far logits may be from the original's
    "whole": (whole, 1e-5),
    "headless": (headless, 1e-5),
    "sharded": (sharded, 1e-5),
    "bfloat16": (halved(torch.bfloat16), 2e-2),
    "float16": (halved(torch.float16), 2e-2),
}


# ---- the same weights as another architecture that can compute the same ----

Weights = dict[str, Tensor]
BERT_TO_DISTILBERT = {
    r"encoder\.layer": "transformer.layer",
    r"attention\.self\.(query|key|value)": lambda found: f"attention.{found[1][0]}_lin",
    r"attention\.output\.dense": "attention.out_lin",
    r"attention\.output\.LayerNorm": "sa_layer_norm",
    r"intermediate\.dense": "ffn.lin1",
    r"(\d)\.output\.dense": r"\1.ffn.lin2",
    r"(\d)\.output\.LayerNorm": r"\1.output_layer_norm",
}
DINOV2_TO_VIT = {
    r"^encoder\.layer\.": "layers.",
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
}


def as_roberta(model: Any) -> Any:
    """BERT's weights; RoBERTa counts positions from the one after the padding token's number."""
    config, weights = model.config.to_dict(), model.state_dict()
    positions = weights["embeddings.position_embeddings.weight"]  # (P, d)
    weights["embeddings.position_embeddings.weight"] = torch.cat([positions[:1], positions])
    config |= {"max_position_embeddings": len(positions) + 1}
    return filled(hf.RobertaModel(hf.RobertaConfig(**described(config))), weights)


def as_distilbert(model: Any) -> Any:
    """BERT's weights; the embedding of the first segment goes into that of the positions."""
    config, weights = model.config, renamed(model.state_dict(), BERT_TO_DISTILBERT)
    segments = weights.pop("embeddings.token_type_embeddings.weight")
    weights["embeddings.position_embeddings.weight"] = weights["embeddings.position_embeddings.weight"] + segments[0]
    sizes = {"dim": config.hidden_size, "n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads}
    sizes |= {"hidden_dim": config.intermediate_size, "vocab_size": config.vocab_size}
    return filled(hf.DistilBertModel(hf.DistilBertConfig(**sizes, pad_token_id=config.pad_token_id)), weights)


def as_mistral(model: Any) -> Any:
    """Llama's weights as they are."""
    config = described(model.config.to_dict()) | {"sliding_window": None}
    return filled(hf.MistralForCausalLM(hf.MistralConfig(**config)), model.state_dict())


def as_qwen2(model: Any) -> Any:
    """Llama's weights, and biases of zero."""
    made = hf.Qwen2ForCausalLM(hf.Qwen2Config(**described(model.config.to_dict())))
    biases = {name: torch.zeros_like(found) for name, found in made.state_dict().items() if name.endswith("proj.bias")}
    return filled(made, model.state_dict() | biases)


def as_vit(model: Any, size: int = 98) -> Any:
    """DINOv2's weights: the layer scales go into the weights before them, the positions are those of one image size."""
    config, weights = model.config.to_dict(), model.state_dict()
    for name in [name for name in weights if "layer_scale" in name]:
        scale, block = weights.pop(name), name.partition("layer_scale")[0]
        scaled = f"{block}{'attention.o_proj' if 'layer_scale1' in name else 'mlp.fc2'}"
        weights[f"{scaled}.weight"] = scale[:, None] * weights[f"{scaled}.weight"]
        weights[f"{scaled}.bias"] = scale * weights[f"{scaled}.bias"]
    patches = model.embeddings.patch_embeddings(torch.zeros(1, 3, size, size))  # (1, N, d)
    tokens = torch.cat([patches[:, :1], patches], dim=1)  # (1, 1 + N, d)
    weights["embeddings.position_embeddings"] = model.embeddings.interpolate_pos_encoding(tokens, size, size).detach()
    config |= {"image_size": size, "intermediate_size": config["mlp_ratio"] * config["hidden_size"]}
    made = hf.ViTModel(hf.ViTConfig(**described(config)), add_pooling_layer=False)
    return filled(made, renamed(weights, DINOV2_TO_VIT))


SIBLINGS = {
    ("minilm-l6", "roberta"): as_roberta,
    ("minilm-l6", "distilbert"): as_distilbert,
    ("dinov2-small", "vit"): as_vit,
    ("smollm2-135m", "mistral"): as_mistral,
    ("smollm2-135m", "qwen2"): as_qwen2,
}


def described(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says of sizes, and nothing of the class that it is of."""
    return {name: value for name, value in config.items() if name not in ("model_type", "architectures")}


def renamed(weights: Weights, rules: dict[str, Any]) -> Weights:
    """The weights under the names that the rules make of theirs."""
    found = {}
    for old, weight in weights.items():
        name = old
        for pattern, replacement in rules.items():
            name = re.sub(pattern, replacement, name)
        found[name] = weight
    return found


def filled(model: Any, weights: Weights) -> Any:
    """The model with these weights; those that it has no place for may only be a pooler's or the mask token."""
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not missing
    assert all("pooler" in name or "mask_token" in name for name in unexpected)
    return model.eval()
