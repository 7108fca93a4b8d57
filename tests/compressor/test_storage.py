"""Weights files are read a part at a time, and what is missing or too much is told as of one."""

from __future__ import annotations

import errno
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from compressor import failures, storage, tensors
from compressor.errors import ArtifactError


def model(*widths: int) -> nn.Sequential:
    """Linear layers from width to width."""
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights of `model(4, 6, 2)`, every tensor a part of its own."""
    monkeypatch.setattr(tensors, "PART", 1)
    tensors.save_tensors(tensors.state_of(model(4, 6, 2)), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_file_of_many_parts_fills_the_whole_model(file: Path) -> None:
    from safetensors.torch import load_file

    found = tensors.load_tensors_(model(4, 6, 2), file).state_dict()
    expected = load_file(file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_each_part_holds_no_more_than_it_may(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(part) for part in tensors._parts(file)] == [1, 1, 1, 1]
    monkeypatch.setattr(tensors, "PART", 10**6)
    assert [len(part) for part in tensors._parts(file)] == [4]


def test_what_is_missing_and_what_is_too_much_are_told_over_all_parts(file: Path) -> None:
    with pytest.raises(ArtifactError, match=r"lacks 2.weight, 2.bias and has nothing too many"):
        tensors.load_tensors_(model(4, 6, 2, 3), file)
    with pytest.raises(ArtifactError, match=r"lacks nothing and has 1.bias, 1.weight too many"):
        tensors.load_tensors_(model(4, 6), file)
    tensors.load_tensors_(model(4, 6, 2, 3), file, strict=False)  # a part of a model is asked for


def test_another_shape_and_a_truncated_file_are_told(file: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        tensors.load_tensors_(model(4, 7, 2), file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="missing, truncated or damaged"):
        tensors.load_tensors_(model(4, 6, 2), file)


class Tied(nn.Module):
    """An embedding and a decoder of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.decoder = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.emb.weight


def test_a_tied_weight_may_be_stored_by_any_of_its_names(tmp_path: Path) -> None:
    weight = torch.randn(5, 3)
    for name in ("emb.weight", "decoder.weight"):
        tensors.save_tensors({name: weight}, tmp_path / "model.safetensors")
        assert torch.equal(tensors.load_tensors_(Tied(), tmp_path / "model.safetensors").emb.weight, weight)
    tensors.save_tensors({"other": weight}, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"lacks emb.weight, decoder.weight and has other too many"):
        tensors.load_tensors_(Tied(), tmp_path / "model.safetensors")


def test_every_token_that_ends_a_text_stands_in_the_config_that_runtimes_read(tmp_path: Path) -> None:
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, eos_token_id=2)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=[2, 7], temperature=0.7, do_sample=False)
    processor = SimpleNamespace(eos_token_id=9, save_pretrained=lambda folder: None)
    storage.save_model(model, processor, tmp_path)
    again = storage.load(tmp_path, "text-generation")
    assert again.config.eos_token_id == [2, 7, 9]
    assert again.generation_config.eos_token_id == [2, 7]
    plain = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, eos_token_id=2))
    storage.save_model(plain, SimpleNamespace(save_pretrained=lambda folder: None), tmp_path / "plain")
    assert storage.load(tmp_path / "plain", "text-generation").config.eos_token_id == 2


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to mmap 99 bytes from file <x>: Cannot allocate memory (12)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_want_of_memory_is_not_taken_for_damage(file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(tensors, "_parts", Mock(side_effect=error))
    with pytest.raises(type(error)) as caught:
        tensors.load_tensors_(model(4, 6, 2), file)
    assert failures.explain(caught.value)[1] == 5
