"""adapt_: the untrained model is one of the checkpoints that the validation data chooses among."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor, nn
from transformers import training_args

from compressor import adapt, progress
from compressor.adapt import adapt_
from compressor.errors import ModelError
from compressor.recipe import Training
from compressor.tasks.text_classification import TextClassification

TASK, ROWS, LENGTH = TextClassification(), 24, 5


class Stacking:
    """As much of a tokenizer as collating takes, where all rows are of one length."""

    def pad(self, rows: Sequence[dict[str, Any]], return_tensors: str) -> dict[str, Tensor]:
        assert return_tensors == "pt"
        return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def rows(model: Any, *, wrong: bool) -> Any:
    """Random sentences with what a model says of them as labels, or with what it does not."""
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (ROWS, LENGTH), generator=source)
    with torch.no_grad():
        said = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.argmax(-1)
    labels = (said + 1) % 3 if wrong else said
    return datasets.Dataset.from_dict(
        {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist(), "labels": labels.tolist()}
    )


def trained(model: Any, train: Any, validation: Any, folder: Path, **fields: Any) -> list[dict[str, float]]:
    training = Training(**{"epochs": 2, "batch_size": 8, "learning_rate": 1e-2} | fields)
    return adapt_(model, TASK, Stacking(), train, validation, training, folder=folder, title="adapting")


def losses(history: list[dict[str, float]]) -> list[float]:
    return [row["loss"] for row in history if "loss" in row]


def test_a_model_that_training_only_made_worse_is_left_as_it_was(
    tiny_bert: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, before = tiny_bert(), tiny_bert().state_dict()
    model.bert.embeddings.requires_grad_(False)
    progress.set_level("normal")
    try:
        history = trained(model, rows(tiny_bert(), wrong=True), rows(tiny_bert(), wrong=False), tmp_path / "run")
    finally:
        progress.set_level("off")
    found = [row for row in history if "eval_accuracy" in row]
    assert [(row["epoch"], row["eval_accuracy"] == 1) for row in found] == [(0, True), (1, False), (2, False)]
    assert found[0]["step"] == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert "Adapting only made the model worse" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_that_training_made_better_stays_trained(tiny_bert: Callable[..., Any], tmp_path: Path) -> None:
    model, wrong = tiny_bert(), rows(tiny_bert(), wrong=True)
    history = trained(model, wrong, wrong, tmp_path / "run", epochs=8)
    found = [row["eval_accuracy"] for row in history if "eval_accuracy" in row]
    assert found[0] == 0
    assert max(found) > 0.5
    with torch.no_grad():
        said = model.eval()(**{key: torch.tensor(wrong[key]) for key in ("input_ids", "attention_mask")}).logits
    assert float((said.argmax(-1) == torch.tensor(wrong["labels"])).float().mean()) == pytest.approx(max(found))


def test_measuring_the_untrained_model_changes_no_random_number(tiny_bert: Callable[..., Any], tmp_path: Path) -> None:
    train = rows(tiny_bert(), wrong=True)
    alone = trained(tiny_bert(), train, None, tmp_path / "alone", epochs=1)
    measured = trained(tiny_bert(), train, rows(tiny_bert(), wrong=False), tmp_path / "measured", epochs=1)
    assert losses(alone) == losses(measured)
    assert [row["epoch"] for row in measured if "eval_loss" in row] == [0, 1]
    assert not any("eval_loss" in row for row in alone)


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt", "model.safetensors"])
def test_a_checkpoint_that_a_kill_has_taken_a_file_of_is_not_gone_on_from(
    name: str, tiny_bert: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, folder = rows(tiny_bert(), wrong=True), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("compressor.adapt._remove", lambda _: None)
        whole = trained(tiny_bert(), train, train, folder, epochs=3)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-9"]
    (folder / "checkpoint-9" / name).unlink()
    assert losses(trained(tiny_bert(), train, train, folder, epochs=3)) == losses(whole)
    assert not folder.exists()


@pytest.mark.parametrize(("epochs", "warmup", "rates"), [(1, 0.5, [1e-2, 0]), (3, 0.5, [0, 5e-3])])
def test_a_single_step_is_no_warmup(
    tiny_bert: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    epochs: int,
    warmup: float,
    rates: list[float],
) -> None:
    model, train = tiny_bert(), rows(tiny_bert(), wrong=True)
    before, seen = {name: value.clone() for name, value in model.state_dict().items()}, list[float]()
    step = torch.optim.AdamW.step

    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    progress.set_level("normal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", noted)
        trained(model, train, None, tmp_path / "run", epochs=epochs, batch_size=ROWS, warmup=warmup)
    progress.set_level("off")
    assert [*seen, 0][:2] == pytest.approx(rates)
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])
    assert f"steps in all: {epochs};" in capsys.readouterr().err


def test_training_that_diverges_is_an_error_all_the_same(tiny_bert: Callable[..., Any], tmp_path: Path) -> None:
    model, train = tiny_bert(), rows(tiny_bert(), wrong=True)
    with pytest.raises(ModelError, match="Adapting diverged: lower the learning rate"):
        trained(model, train, train, tmp_path / "run", learning_rate=1e30)
    assert not (tmp_path / "run").exists()


def test_of_checkpoints_that_are_equally_often_right_the_surest_is_kept(
    tiny_bert: Callable[..., Any], tmp_path: Path
) -> None:
    """Accuracy on few rows is soon 1; the first epoch that reaches it is the least trained of those that do."""
    model, easy = tiny_bert(), rows(tiny_bert(), wrong=False)
    history = trained(model, easy, easy, tmp_path / "run", epochs=4, learning_rate=1e-3)
    _, *found = [row for row in history if "eval_accuracy" in row]
    alike = [row["eval_loss"] for row in found if row["eval_accuracy"] == 1]
    with torch.no_grad():
        inputs = {key: torch.tensor(easy[key]) for key in ("input_ids", "attention_mask", "labels")}
        loss = float(model.eval()(**inputs).loss)
    assert loss == pytest.approx(min(alike), rel=1e-3)
    assert loss < alike[0]


class Normed(nn.Module):
    """A classifier that no batch of one row can train."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(50, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """(B, T) -> the loss and logits (B, 3)."""
        logits = self.head(self.norm(self.words(input_ids).mean(1)))
        return ({} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}) | {"logits": logits}


def test_a_last_row_that_a_batch_norm_cannot_learn_from_alone_is_left_out(
    tiny_bert: Callable[..., Any], tmp_path: Path
) -> None:
    some = rows(tiny_bert(), wrong=False).select(range(17))
    assert len(losses(trained(Normed(), some, some.select([0]), tmp_path / "run", batch_size=8))) == 2
    assert len(adapt._learnable(Normed(), some, 8)) == 16
    assert len(adapt._learnable(Normed(), some, 17)) == 17
    assert len(adapt._learnable(tiny_bert(), some, 8)) == 17


def test_training_takes_one_device_of_many(
    tiny_bert: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(adapt.devices, "fastest", lambda: torch.device("cuda"))
    found = adapt._arguments(Training(batch_size=8), tmp_path, 0, rows(tiny_bert(), wrong=False), None)
    assert (found.n_gpu, found.train_batch_size) == (1, 8)


def test_training_takes_the_cpu_beside_gpus_that_nothing_else_here_takes(
    tiny_bert: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_args, "is_torch_mps_available", lambda: True)
    found = adapt._arguments(Training(batch_size=8), tmp_path, 0, rows(tiny_bert(), wrong=False), None)
    assert found.device.type == adapt.devices.fastest().type
