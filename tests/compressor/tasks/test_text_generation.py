"""Language models through the whole line, and running text in blocks; sums are made one token at a time."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor import data, progress, registry
from compressor.adapt import adapt_
from compressor.calibration import calibrate, own_label_loss
from compressor.distillation import distillation_loss
from compressor.errors import DataError
from compressor.factorize import factorize_, fold_, plan, restructure_
from compressor.layers import FactorizedLinear
from compressor.methods.base import Moment
from compressor.methods.jactus import Jactus
from compressor.methods.spectral import Spectral
from compressor.probing import probe_head_
from compressor.recipe import DataSection, Distillation, Source, Training
from compressor.targets import find_targets, head_parameters
from compressor.tasks.text_generation import TextGeneration
from compressor.transposed import as_linear
from exporters.onnx import OnnxExporter

TASK = TextGeneration()
TEXTS = ["one two three four five six", "red blue red", "one red two blue three", "six five four"]
OWN_LAYERS = {"llama": 7, "mistral": 7, "qwen2": 7, "gpt2": 4}  # linear layers of a block


def rows(texts: list[str]) -> Any:
    return datasets.Dataset.from_dict({"text": texts})


@pytest.fixture
def tokenizer(words: Callable[..., Any]) -> Any:
    return words()


@pytest.fixture
def encoded(tokenizer: Any) -> Any:
    """20 tokens in blocks of 6, 6, 6 and 2."""
    return TASK.encode(rows(TEXTS), tokenizer, None, 6, "data.train")


# ---- running text ----


def test_texts_are_joined_by_the_end_token_and_cut_into_blocks(encoded: Any, tokenizer: Any) -> None:
    joined = [token for ids in encoded["input_ids"] for token in ids]
    assert tokenizer.decode(joined) == " </s> ".join(TEXTS)
    assert list(encoded["length"]) == [6, 6, 6, 2]
    assert encoded["labels"] == encoded["input_ids"]


def test_each_text_opens_as_the_tokenizer_opens_one(words: Callable[..., Any]) -> None:
    tokenizer = words(opens=True)
    found = TASK.encode(rows(["one two", "red"]), tokenizer, None, 32, "data.train")
    assert tokenizer.decode(found["input_ids"][0]) == "<s> one two </s> <s> red"


def test_blocks_are_the_same_however_many_texts_are_tokenized_together(
    words: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = words(opens=True)
    whole = TASK.encode(rows([*TEXTS, "one"]), tokenizer, None, 2, "data.train")
    monkeypatch.setattr("compressor.tasks.text.AT_ONCE", 2)
    parts = TASK.encode(rows([*TEXTS, "one"]), tokenizer, None, 2, "data.train")
    assert (parts.to_dict(), parts.features) == (whole.to_dict(), whole.features)


def test_a_last_token_that_nothing_predicts_is_left_out(tokenizer: Any) -> None:
    assert list(TASK.encode(rows(["one two three four"]), tokenizer, None, 3, "data.train")["length"]) == [3]


@pytest.mark.parametrize("text", ["", "one"])
def test_too_little_text_is_refused(tokenizer: Any, text: str) -> None:
    with pytest.raises(DataError, match=r"data\.train holds [01] tokens of text: at least 2 are needed"):
        TASK.encode(rows([text]), tokenizer, None, 8, "data.train")


def test_a_plain_text_file_is_one_text_of_many_blocks(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "train.txt").write_text("one two\n\nthree red\n" * 10)
    found = data.read(Source(path=str(tmp_path)), TASK)
    assert list(found["text"]) == ["one two\n\nthree red\n" * 10]
    assert len(TASK.encode(found, tokenizer, None, 4, "data.train")) == 10


def test_a_column_of_numbers_is_no_text(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": [1]}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="the text column 'text' holds int64, not strings"):
        data.read(Source(path=str(tmp_path / "rows.parquet")), TASK)


def test_the_example_needs_no_padding_token(tokenizer: Any) -> None:
    assert TASK.example(tokenizer, 3)["input_ids"].shape[1] == 3
    example = TASK.example(tokenizer)
    assert tokenizer.pad_token is None
    assert list(example) == ["input_ids", "attention_mask"]
    assert example["attention_mask"].sum(1).tolist() == [2, 8, 2]


def test_a_single_block_cannot_be_held_out_of(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, text in (("train", "one two three four"), ("test", "two one four three")):
        (tmp_path / f"{split}.txt").write_text(text)
    given = DataSection(train=Source(path=str(tmp_path)), evaluation=Source(path=str(tmp_path), split="test"))
    with pytest.raises(DataError, match=r"single example.*data\.holdout: 0"):
        data.prepare(given, TASK, tokenizer, 8, 0)
    assert len(data.prepare(given, TASK, tokenizer, 2, 0).train) == 1  # two blocks of two


# ---- what is predicted, and what it is worth ----


def test_outcomes_are_the_log_probabilities_of_a_loop_over_tokens(
    decoder: Callable[..., Any], encoded: Any, tokenizer: Any, surprise: Callable[..., float], kind: str
) -> None:
    model = decoder(kind)
    found = data.outcomes(model, TASK, data.posed(encoded, TASK, tokenizer))
    assert found.values.shape == (5 + 5 + 5 + 1, 1)
    expected = sum(surprise(model, ids) for ids in encoded["input_ids"])
    assert -found.values.sum() == pytest.approx(expected, rel=1e-4)
    assert sorted(found.labels) == sorted(token for ids in encoded["input_ids"] for token in ids[1:])


def test_outcomes_of_logits_that_are_not_finite_are_neither_right_nor_likely(numpied: Any) -> None:
    batch = {"labels": np.array([[0, 0, 0]])}
    logits = np.zeros((1, 3, 4), np.float32)
    logits[0, 1, 2] = np.nan
    found = TASK.outcomes(logits, batch)
    assert found.predictions.tolist() == [0, -1]
    assert found.values[0, 0] == pytest.approx(-math.log(4))
    assert np.isnan(found.values[1, 0])


def test_terms_are_the_tokens_that_the_models_loss_is_the_mean_of(
    decoder: Callable[..., Any], encoded: Any, tokenizer: Any
) -> None:
    model = decoder()
    (batch,) = data.batches(encoded, TASK, tokenizer, 4)
    mask = TASK.terms(batch)
    assert mask.sum(1).tolist() == [1, 5, 5, 5]
    with torch.no_grad():
        output = model(**batch)
    targets = batch["labels"].roll(-1, dims=1)[mask]
    expected = nn.functional.cross_entropy(output.logits[mask], targets)
    assert float(output.loss) == pytest.approx(float(expected), rel=1e-5)


# ---- gradients and lessons, by token ----


def test_gradients_are_those_of_each_predicted_token(decoder: Callable[..., Any], encoded: Any, tokenizer: Any) -> None:
    """The sum of the token losses is differentiated by hand; the mean's count must be undone by the terms."""
    model = decoder().float()
    name = "model.layers.0.mlp.gate_proj"
    batches = list(data.batches(encoded, TASK, tokenizer, 3))
    found = calibrate(model, batches, frozenset(Moment), targets=[name], terms=TASK.terms)[name].gradient
    expected, terms = torch.zeros(48, 48, dtype=torch.float64), 0
    for ids in encoded["input_ids"]:
        seen: list[Tensor] = []
        handle = model.get_submodule(name).register_forward_hook(lambda *call, seen=seen: seen.append(call[2]))
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        handle.remove()
        total = sum(-logits[place].log_softmax(-1)[ids[place + 1]] for place in range(len(ids) - 1))
        gradient = torch.autograd.grad(total, seen)[0][0].double()  # (T, 48)
        expected += gradient.mT @ gradient
        terms += len(ids) - 1
    assert found is not None
    torch.testing.assert_close(found.matrix.double(), expected / terms, rtol=1e-3, atol=1e-7)


def test_own_labels_are_drawn_for_each_predicted_token(
    decoder: Callable[..., Any], encoded: Any, tokenizer: Any
) -> None:
    model = decoder()
    (batch,) = data.batches(encoded, TASK, tokenizer, 4)
    torch.manual_seed(7)
    found = float(own_label_loss(model, batch, 2.0, TASK.terms).detach())
    losses = []
    torch.manual_seed(7)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits / 2.0
    asked = [logits[row, place] for row in range(4) for place in range(int(batch["attention_mask"][row].sum()) - 1)]
    drawn = torch.multinomial(torch.stack(asked).softmax(-1), 1)[:, 0]
    losses = [-float(row.log_softmax(-1)[label]) for row, label in zip(asked, drawn, strict=True)]
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


def test_predictions_are_matched_at_predicted_tokens_only(
    decoder: Callable[..., Any], encoded: Any, tokenizer: Any
) -> None:
    student, teacher = decoder(), decoder()
    nn.init.normal_(teacher.lm_head.weight)
    (batch,) = data.batches(encoded, TASK, tokenizer, 4)
    section = Distillation(predictions=1.0, hidden=0.0, temperature=2.0)
    loss, _ = distillation_loss(student, teacher, batch, section, TASK.terms)
    divergences = []
    with torch.no_grad():
        ours, theirs = (m(input_ids=batch["input_ids"]).logits.double() / 2.0 for m in (student, teacher))
    for row in range(4):
        for place in range(int(batch["attention_mask"][row].sum()) - 1):
            p, q = theirs[row, place].softmax(-1), ours[row, place].softmax(-1)
            divergences.append(float((p * (p / q).log()).sum()))
    assert float(loss.detach()) == pytest.approx(4 * np.mean(divergences), rel=1e-4)


# ---- the line ----


def test_the_targets_of_a_decoder_are_its_blocks_and_its_vocabulary_is_no_head(
    decoder: Callable[..., Any], kind: str
) -> None:
    model = decoder(kind)
    assert len(find_targets(model)) == 2 * OWN_LAYERS[kind]
    assert head_parameters(model) == {}
    before = copy.deepcopy(model.state_dict())
    probe_head_(model, [])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_transposed_layer_is_read_as_a_linear_one(decoder: Callable[..., Any]) -> None:
    layer = decoder("gpt2").transformer.h[0].mlp.c_fc  # (32, 128)
    linear, x = as_linear(layer), torch.randn(2, 3, 32)
    assert linear is not None
    assert (linear.in_features, linear.out_features) == (32, 128)
    assert torch.allclose(linear(x), layer(x), atol=1e-6)


@pytest.mark.parametrize("updates", [0, 2])
def test_every_decoder_goes_through_the_line(
    decoder: Callable[..., Any],
    encoded: Any,
    tokenizer: Any,
    kind: str,
    updates: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, method = decoder(kind), Jactus(updates=updates)
    batches = list(data.batches(encoded, TASK, tokenizer, 2))
    moments = calibrate(
        model, batches, method.needs(), loss=partial(own_label_loss, terms=TASK.terms), terms=TASK.terms
    )
    chosen = plan(model, method, moments, keep=0.6, multiple_of=4)
    assert chosen.ranks
    assert chosen.kept  # both ways to deploy a layer are seen
    factorize_(model, method, moments, chosen)
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "head" in name)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    training = Training(epochs=2, batch_size=4, learning_rate=1e-2, warmup=0)
    section = Distillation()
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_level", "normal")
    adapt_(
        model,
        TASK,
        tokenizer,
        encoded,
        encoded,
        training,
        folder=tmp_path / "w",
        teacher=decoder(kind),
        distillation=section,
    )
    said = capsys.readouterr().err
    assert re.search(r"validating: (\d+)/\1 done", said), said
    assert "epoch 2: validation loss" in said
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(p.requires_grad for name, p in model.named_parameters() if name in moved)
    with torch.no_grad():
        adapted = model.eval()(**batches[0]).logits
        fold_(model)
        assert torch.allclose(model(**batches[0]).logits, adapted, atol=1e-4)
        again = restructure_(decoder(kind), chosen)
        again.load_state_dict(model.state_dict())
        assert torch.allclose(again(**batches[0]).logits, adapted, atol=1e-4)
    deployed = [type(model.get_submodule(layer.name)) for layer in chosen.layers]
    assert set(deployed) == {FactorizedLinear, nn.Linear}
    if updates:
        return
    facts = OnnxExporter().export(model, TASK.example(tokenizer), tmp_path / "onnx-fp32").facts
    assert max(figure["max_difference"] for figure in facts["parity"]) < 1e-4


def test_a_transposed_weight_of_few_directions_is_kept_by_as_many(decoder: Callable[..., Any], encoded: Any) -> None:
    model, method = decoder("gpt2"), Spectral()
    inputs = torch.tensor(encoded["input_ids"][:3])
    with torch.no_grad():
        for target in find_targets(model):
            weight = model.get_parameter(f"{target.name}.weight")
            weight.copy_(torch.randn(len(weight), 3) @ torch.randn(3, weight.shape[1]) / 8)
        dense = model(inputs).logits
        chosen = plan(model, method, {}, keep=0.5, multiple_of=4)
        fold_(factorize_(model, method, {}, chosen))
        assert chosen.ranks
        assert torch.allclose(model(inputs).logits, dense, atol=1e-4)


def test_the_row_of_the_table_is_this_task() -> None:
    assert registry.task("text-generation") == TASK
    assert TASK.chooses_by == "loss"
