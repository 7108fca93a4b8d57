"""The head's probe."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from compressor import probing
from compressor.probing import probe_head_
from compressor.targets import head_parameters

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    return hf.ViTForImageClassification(hf.ViTConfig(**SMALL, image_size=16, patch_size=8, **options))


def encoder(cls: Any, config: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return cls(config(**SMALL, vocab_size=40, max_position_embeddings=20, pad_token_id=1, **options))


def pictures(count: int = 6, labels: Any = None) -> list[dict[str, Tensor]]:
    """Batches of four images whose class is which channel is bright."""
    torch.manual_seed(1)
    batches = []
    for _ in range(count):
        classes = torch.randint(3, (4,))
        images = 0.1 * torch.randn(4, 3, 16, 16)
        images[torch.arange(4), classes] += 1
        batches.append({"pixel_values": images, "labels": classes if labels is None else labels})
    return batches


def texts(count: int = 6) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    ids = [torch.randint(2, 40, (4, 7)) for _ in range(count)]
    return [{"input_ids": one, "attention_mask": torch.ones_like(one), "labels": one[:, 0] % 3} for one in ids]


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """How often the whole model runs."""
    calls: list[int] = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


def loss_of(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> float:
    with torch.no_grad():
        return sum(float(model.eval()(**batch).loss) for batch in batches) / len(batches)


def test_a_head_of_its_own_is_trained_on_one_pass_of_the_encoder() -> None:
    model, batches = vit(), pictures()
    before, fresh = copy.deepcopy(model.state_dict()), loss_of(model, batches)
    with counted(model) as calls:
        probe_head_(model, batches)
    assert len(calls) == len(batches)
    assert loss_of(model, batches) < 0.9 * fresh
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(head_parameters(model)) == {"classifier.weight", "classifier.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_replayed_head_ends_where_training_through_the_whole_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = vit(), pictures()
    other = copy.deepcopy(model)
    torch.manual_seed(2)
    probe_head_(model, batches)
    monkeypatch.setattr(probing, "_replayed", lambda *_: None)
    monkeypatch.setattr(probing, "EPOCHS", probing.REPLAYED)
    torch.manual_seed(2)
    probe_head_(other, batches)
    assert torch.allclose(model.classifier.weight, other.classifier.weight, atol=1e-5)


def test_a_head_of_several_layers_in_one_module_is_replayed_too() -> None:
    model = encoder(hf.RobertaForSequenceClassification, hf.RobertaConfig, hidden_dropout_prob=0.5)
    batches = texts()
    fresh = loss_of(model, batches)
    with counted(model) as calls:
        probe_head_(model, batches)
    assert len(calls) == len(batches)
    assert loss_of(model, batches) < fresh


@pytest.mark.parametrize(
    ("make", "batches", "why"),
    [
        (lambda: encoder(hf.BertForSequenceClassification, hf.BertConfig), texts(), "pooler and classifier lie apart"),
        (
            lambda: vit(problem_type="multi_label_classification"),
            pictures(labels=torch.eye(3)[[0, 1, 2, 0]]),
            "the loss is no cross entropy",
        ),
    ],
    ids=["apart", "another-loss"],
)
def test_any_other_head_is_trained_through_the_whole_model(make: Any, batches: Any, why: str) -> None:
    model = make()
    fresh = loss_of(model, batches)
    with counted(model) as calls:
        probe_head_(model, batches)
    assert len(calls) >= probing.EPOCHS * len(batches), why
    assert loss_of(model, batches) < fresh


def test_what_the_head_reads_is_kept_only_where_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MOST", 6 * 4 * 16 * 4 - 1)  # batches, rows, features, bytes each
    model, batches = vit(), pictures()
    with counted(model) as calls:
        probe_head_(model, batches)
    assert len(calls) == 1 + probing.EPOCHS * len(batches)
