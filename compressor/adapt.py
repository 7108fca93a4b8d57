"""Training whatever a model leaves trainable, through `transformers.Trainer`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor import progress
from compressor.distillation import Lesson, lesson_of, one_copy, taught_loss
from compressor.errors import ModelError
from compressor.lessons import ROW, Notes, take
from compressor.recipe import Distillation, Training
from compressor.tasks.base import Task

History = list[dict[str, float]]
Lessons = Callable[[dict[str, Any]], Lesson]  # a batch, whose rows' numbers are taken out of it -> what is said of it
LESSONS = "lessons.bin"
WHOLE = "whole"  # an empty file in every checkpoint that was written to its end


def trainable(model: nn.Module) -> int:
    """How many numbers training may move."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def adapt_(
    model: Any,
    task: Task,
    processor: Any,
    train: Any,
    validation: Any | None,
    training: Training,
    *,
    folder: Path,
    seed: int = 0,
    title: str = "training",
    teacher: Any | None = None,
    distillation: Distillation | None = None,
) -> History:
    """Train what requires gradients; ends with the best checkpoint on the validation data, or the last without any.

    Checkpoints after every epoch lie in `folder`; a call that finds some there goes on from the last, with the same
    random numbers, so that it ends where an uninterrupted one would.

    Args:
        model: a transformers model, dense or factorized.
        task: puts rows together into batches, and says what the best checkpoint is chosen by.
        processor: the task's, for its batches.
        train: an encoded split (`task.encode`).
        validation: one that chooses the checkpoint, or None.
        training: epochs, learning rate, batch size, ...
        folder: where checkpoints go; removed at the end.
        seed: of order and dropout.
        title: what the progress bar says.
        teacher: an adapted dense model, or () -> one, that the training loss is also held against; validation is by
            labels alone. Its lessons are written to `folder` before, and it is let go, where they are not too large.
        distillation: how; default: Distillation(). Without a teacher it does nothing.

    Returns:
        one row per logged loss and per evaluation: step, epoch, loss | eval_loss and eval_accuracy.

    Raises:
        ModelError: nothing is trainable, or the loss is not finite.
    """
    if not trainable(model):
        raise ModelError("Nothing in the model is trainable: the method's core is frozen and the model has no head.")
    arguments = _arguments(training, folder, seed, train, task.chooses_by if validation is not None else None)
    section, kept = distillation or Distillation(), None
    lessons: Lessons | None = None
    if teacher is not None:
        asked = teacher if isinstance(teacher, nn.Module) else teacher()
        asked.eval().requires_grad_(False).to(arguments.device)
        notes = take(asked, train, task, processor, section, folder / LESSONS, batch_size=training.batch_size)
        if notes is None:
            lessons, kept = partial(lesson_of, asked, section=section, terms=task.terms), asked
        else:
            lessons, train = _noted(notes), train.add_column(ROW, list(range(len(train))))
        del teacher, asked
    trainer = _trainer(task, lessons, section)(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=partial(_collate, task, processor),
        compute_metrics=_accuracy if task.chooses_by == "accuracy" else None,
        preprocess_logits_for_metrics=_logits,
        callbacks=[_progress_callback(title)],
    )
    trainer.remove_callback(_printer())
    with nullcontext() if kept is None else one_copy(trainer.model, kept):
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
    history = _history(trainer.state.log_history)
    shutil.rmtree(folder, ignore_errors=True)
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise ModelError(f"{title.capitalize()} diverged: lower the learning rate ({training.learning_rate:g}).")
    return history


def _collate(task: Task, processor: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch, with the numbers of its rows where they have some."""
    batch = task.collate([{key: value for key, value in row.items() if key != ROW} for row in rows], processor)
    return batch | ({ROW: torch.tensor([row[ROW] for row in rows])} if ROW in rows[0] else {})


def _noted(notes: Notes) -> Lessons:
    def find(inputs: dict[str, Any]) -> Lesson:
        rows = inputs.pop(ROW)
        return notes.of(rows.tolist()).to(rows.device)

    return find


def _trainer(task: Task, lessons: Lessons | None, distillation: Distillation) -> Any:
    """The Trainer class, plain or with lessons."""
    from transformers import PreTrainedModel, Trainer

    class PlainTrainer(Trainer):  # type: ignore[misc]
        """Writes the tied weights of a module of one's own apart: safetensors refuses what shares memory."""

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            if not isinstance(self.model, PreTrainedModel):
                shared = state_dict or self.model.state_dict()
                state_dict = {name: tensor.clone().contiguous() for name, tensor in shared.items()}
            super()._save(output_dir, state_dict)

    if lessons is None:
        return PlainTrainer
    lesson: Lessons = lessons

    class TaughtTrainer(PlainTrainer):
        """Adds the lessons to the training loss; the evaluation loss stays comparable with the baseline's."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            if not model.training:
                return super().compute_loss(model, inputs, return_outputs, **kwargs)
            said = lesson(inputs)
            loss, outputs = taught_loss(model, said, inputs, distillation, task.terms)
            return (loss, outputs) if return_outputs else loss

    return TaughtTrainer


def _last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was written to its end; those that a kill or a full disk cut short are removed."""
    whole: dict[int, Path] = {}
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / WHOLE).is_file():
            whole[int(checkpoint.name.rpartition("-")[2])] = checkpoint
        else:
            shutil.rmtree(checkpoint)
    return str(whole[max(whole)]) if whole else None


def _arguments(training: Training, folder: Path, seed: int, train: Any, chosen_by: str | None) -> Any:
    from transformers import TrainingArguments

    evaluated = chosen_by is not None
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.epochs,
        learning_rate=training.learning_rate,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=2 * training.batch_size,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup,  # below 1 it is a share of all steps
        lr_scheduler_type="cosine",
        train_sampling_strategy="group_by_length" if "length" in train.column_names else "random",
        remove_unused_columns=False,  # the task's collate takes what it needs
        eval_strategy="epoch" if evaluated else "no",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=evaluated,
        metric_for_best_model=chosen_by,
        prediction_loss_only=chosen_by == "loss",
        label_names=["labels"],  # which is looked for in the signature otherwise, where a module of one's own has none
        logging_strategy="steps",
        logging_steps=10,
        disable_tqdm=True,
        report_to="none",
        seed=seed,
        dataloader_pin_memory=False,
    )


def _logits(outputs: Any, _labels: Any) -> Any:
    """The first of what a model gives beside its loss; the others, as an encoder's states, would fill the memory."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def _history(log: list[dict[str, float]]) -> History:
    kept = ("step", "epoch", "loss", "learning_rate", "eval_loss", "eval_accuracy")
    rows = ({key: row[key] for key in kept if key in row} for row in log)
    return [row for row in rows if "loss" in row or "eval_loss" in row]


def _progress_callback(title: str) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):  # type: ignore[misc]
        """Advances the progress bar, and marks the checkpoints that are complete."""

        steps: Iterator[int] = iter(())
        checks: Iterator[int] | None = None  # while the validation data is passed

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps = iter(progress.track(count(state.global_step), title, state.max_steps - state.global_step))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            next(self.steps, None)

        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.checks = self.checks or iter(progress.track(range(len(kwargs["eval_dataloader"])), "validating"))
            next(self.checks, None)

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_log = True  # so that a resumed run, which starts at an epoch's end, logs the same averages

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                said = f"loss {logs['loss']:.4f}, learning rate {logs['learning_rate']:.1e}"
                progress.detail(f"  step {state.global_step}: {said}")

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            for _ in self.checks or ():  # to its end, so that a bar goes away
                pass
            self.checks = None
            name = "accuracy" if "eval_accuracy" in metrics else "loss"
            progress.note(f"  epoch {state.epoch:.0f}: validation {name} {metrics[f'eval_{name}']:.4f}")

    return Progress


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def save_history(path: Path, history: History) -> None:
    """Write as JSON."""
    path.write_text(json.dumps(history, indent=1) + "\n")


def load_history(path: Path) -> History:
    """Read what `save_history` wrote; nothing where there is no file."""
    return json.loads(path.read_text()) if path.is_file() else []
