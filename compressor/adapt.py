"""Training whatever a model leaves trainable, through `transformers.Trainer`."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor import devices, progress
from compressor.distillation import Lesson, lesson_of, one_copy, taught_loss
from compressor.errors import ModelError
from compressor.files import read_json, write_json
from compressor.lessons import ROW, Notes, take
from compressor.recipe import Distillation, Training
from compressor.tasks.base import Task
from compressor.tensors import load_tensors_, save_tensors, state_of

History = list[dict[str, float]]
Lessons = Callable[[dict[str, Any]], Lesson]  # a batch, whose rows' numbers are taken out of it -> what is said of it
LESSONS = "lessons.bin"
UNTRAINED = "untrained.safetensors"
TIE = 1e-7  # of a loss, in accuracy: less than one row of any validation data
FEW = 5  # steps that hardly teach anything
WHOLE = "whole.json"  # in every checkpoint that was written to its end: the size of each of its files


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

    Where every checkpoint is worse there than the model was before, it ends as that one, and says so.

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
        one row per logged loss and per evaluation, of the untrained model too: step, epoch, loss | eval_loss and
        eval_accuracy.

    Raises:
        ModelError: nothing is trainable, or the loss is not finite.
    """
    if not trainable(model):
        raise ModelError("Nothing in the model is trainable: the method's core is frozen and the model has no head.")
    arguments = _arguments(training, folder, seed, train, task.chooses_by if validation is not None else None)
    section, kept, train = distillation or Distillation(), None, _learnable(model, train, training.batch_size)
    lessons: Lessons | None = None
    if teacher is not None:
        lessons, train, kept = _lessons(teacher, train, task, processor, section, arguments)
        del teacher
    trainer = _trainer(task, lessons, section)(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=partial(_collate, task, processor),
        compute_metrics=_judged if task.chooses_by == "accuracy" else None,
        preprocess_logits_for_metrics=_logits,
        callbacks=[_progress_callback(title)],
    )
    trainer.remove_callback(_printer())
    before = _measured(trainer, folder / UNTRAINED) if validation is not None else {}
    with nullcontext() if kept is None else one_copy(trainer.model, kept):
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder))
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        _remove(folder)
        raise ModelError(f"{title.capitalize()} diverged: lower the learning rate ({training.learning_rate:g}).")
    history = _history([before, *trainer.state.log_history])
    if _spoiled(history, task.chooses_by):
        load_tensors_(model, folder / UNTRAINED, strict=False)
        progress.note(
            f"{title.capitalize()} only made the model worse on the validation data: it is left as it was before. "
            f"Try a lower learning rate than {training.learning_rate:g}."
        )
    _remove(folder)
    return history


def _lessons(
    teacher: Any, train: Any, task: Task, processor: Any, section: Distillation, arguments: Any
) -> tuple[Lessons, Any, nn.Module | None]:
    """Lessons and the rows that they are of: written once and found by row, or said by a teacher that stays."""
    asked = teacher if isinstance(teacher, nn.Module) else teacher()
    asked.eval().requires_grad_(False).to(arguments.device)
    file, batch_size = Path(arguments.output_dir) / LESSONS, arguments.per_device_train_batch_size
    notes = take(asked, train, task, processor, section, file, batch_size=batch_size)
    if notes is None:
        return partial(lesson_of, asked, section=section, terms=task.terms), train, asked
    return _noted(notes), train.add_column(ROW, list(range(len(train)))), None


def _remove(folder: Path) -> None:
    """All at once under its name: a kill meanwhile leaves no part of it to go on from."""
    gone = folder.with_name(f"{folder.name}-done")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _measured(trainer: Any, path: Path) -> dict[str, float]:
    """What the untrained model is worth on the validation data, for the history; what training will change, in a file.

    Training draws the same random numbers after it as without.
    """
    model = trainer.model
    changing = {name for name, one in model.named_parameters() if one.requires_grad}
    changing |= {name for name, _ in model.named_buffers()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors({name: tensor for name, tensor in state_of(model).items() if name in changing}, path)
    with devices.fork_rng(model):
        found = trainer.evaluate()
    return {**found, "step": 0, "epoch": 0.0}


def _spoiled(history: History, chosen_by: str) -> bool:
    """Whether training ends worse than it began, by what the best checkpoint is chosen by."""
    better = max if chosen_by == "accuracy" else min
    found = [row[f"eval_{chosen_by}"] for row in history if f"eval_{chosen_by}" in row]
    return len(found) > 1 and better(found[1:]) != better(found)


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
    from transformers.utils import SAFE_WEIGHTS_NAME

    class PlainTrainer(Trainer):  # type: ignore[misc]
        """Writes checkpoints by the names that the model has: the hub's, of ViT say, are skipped when they are read."""

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(self.model, PreTrainedModel):
                tensors = state_of(self.model)
            else:  # of which reading expects every name, tied or not
                tensors = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            save_tensors(tensors, folder / SAFE_WEIGHTS_NAME)

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
        if _is_whole(checkpoint):
            whole[int(checkpoint.name.rpartition("-")[2])] = checkpoint
        else:
            shutil.rmtree(checkpoint)
    return str(whole[max(whole)]) if whole else None


def _is_whole(checkpoint: Path) -> bool:
    """Whether every file is there: a kill may also come while an old checkpoint is removed."""
    sizes = _sizes(checkpoint)
    return WHOLE in sizes and read_json(checkpoint / WHOLE) == sizes | {WHOLE: 0}


def _sizes(checkpoint: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(checkpoint.iterdir())}


def _learnable(model: nn.Module, train: Any, batch_size: int) -> Any:
    """The rows without the last one where it would be a batch by itself, which a BatchNorm cannot learn from."""
    alone = len(train) > batch_size > 1 and len(train) % batch_size == 1
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return train.select(range(len(train) - 1)) if alone and normed else train


def _arguments(training: Training, folder: Path, seed: int, train: Any, chosen_by: str | None) -> Any:
    from transformers import TrainingArguments

    evaluated = chosen_by is not None
    steps = math.ceil(math.ceil(len(train) / training.batch_size) * training.epochs)
    warmup = training.warmup if steps * training.warmup >= 1 else 0  # a share is rounded up, to a step of rate 0
    if steps < FEW:
        progress.note(f"  steps in all: {steps}; a smaller batch_size, more epochs or more data teach more.")
    found = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=training.epochs,
        learning_rate=training.learning_rate,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=2 * training.batch_size,
        weight_decay=training.weight_decay,
        warmup_steps=warmup,  # below 1 it is a share of all steps
        lr_scheduler_type="cosine",
        train_sampling_strategy="group_by_length" if "length" in train.column_names else "random",
        remove_unused_columns=False,  # the task's collate takes what it needs
        eval_strategy="epoch" if evaluated else "no",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=evaluated,
        metric_for_best_model="worth" if chosen_by == "accuracy" else chosen_by,
        include_for_metrics=["loss"],
        prediction_loss_only=chosen_by == "loss",
        label_names=["labels"],  # which is looked for in the signature otherwise, where a module of one's own has none
        logging_strategy="steps",
        logging_steps=10,
        disable_tqdm=True,
        report_to="none",
        seed=seed,
        use_cpu=devices.fastest().type == "cpu",  # as everything else, also beside GPUs that are not NVIDIA's
        dataloader_pin_memory=False,
    )
    found._n_gpu = min(1, found.n_gpu)  # on several, each step would take as many times the examples
    return found


def _logits(outputs: Any, _labels: Any) -> Any:
    """The first of what a model gives beside its loss; the others, as an encoder's states, would fill the memory."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def _judged(prediction: Any) -> dict[str, float]:
    """The accuracy, and what the best checkpoint is chosen by: of two that are equally often right the surer one."""
    found = _accuracy(prediction)
    return found | {"worth": found["accuracy"] - TIE * float(prediction.losses.mean())}


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
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(checkpoint / WHOLE, _sizes(checkpoint) | {WHOLE: 0})

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                said = f"loss {logs['loss']:.4f}, learning rate {logs['learning_rate']:.1e}"
                progress.detail(f"  step {state.global_step}: {said}")

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            for _ in self.checks or ():  # to its end, so that a bar goes away
                pass
            self.checks = None
            name = "accuracy" if "eval_accuracy" in metrics else "loss"
            progress.note(f"  epoch {state.epoch or 0:.0f}: validation {name} {metrics[f'eval_{name}']:.4f}")

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
