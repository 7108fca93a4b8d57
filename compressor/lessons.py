"""A teacher's lessons on every row of a data set, written to a file once and read a batch at a time.

A teacher whose lessons are written is needed neither in memory while its pupil learns nor anew in every epoch. What it
says of a row does not depend on the rows beside it but for rounding: padding is masked, and nothing is dropped out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor import data, progress
from compressor.devices import beside
from compressor.distillation import Lesson, lesson_of
from compressor.recipe import Distillation
from compressor.tasks.base import Task

MOST = 2 << 30  # bytes of a file; where lessons take more, the teacher stays and is asked in every step
ROW = "row"  # column of a training set with the rows' numbers

Shapes = tuple[tuple[int, int], ...]  # of the logits, then of each layer's states


@dataclass(frozen=True, eq=False)
class Notes:
    """What a teacher said of each row."""

    numbers: np.memmap[Any, np.dtype[np.float32]]  # row by row
    starts: Mapping[int, int]  # of each row in the numbers
    shapes: Mapping[int, Shapes]

    def of(self, rows: Sequence[int]) -> Lesson:
        """The lesson on a batch of rows, in their order."""
        logits, *states = map(torch.cat, zip(*map(self._parts, rows), strict=True))
        return Lesson(logits, tuple(states))

    def _parts(self, row: int) -> list[Tensor]:
        sizes = [count * width for count, width in self.shapes[row]]
        start = self.starts[row]
        whole = torch.from_numpy(np.array(self.numbers[start : start + sum(sizes)]))
        return [part.view(shape) for part, shape in zip(torch.split(whole, sizes), self.shapes[row], strict=True)]


def take(
    teacher: nn.Module,
    encoded: Any,
    task: Task,
    processor: Any,
    section: Distillation,
    file: Path,
    *,
    batch_size: int = 32,
    most: int = MOST,
) -> Notes | None:
    """Write what a teacher says of every encoded row; None where that takes more than `most` bytes, or half the disk.

    Args:
        teacher: the adapted dense model, in evaluation mode.
        encoded: rows that `task.collate` puts together the same way each time.
        task: the task.
        processor: the task's.
        section: what of the teacher is wanted.
        file: written anew.
        batch_size: rows that the teacher is given at once.
        most: bytes that the file may have.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    room = min(most, shutil.disk_usage(file.parent).free // 2)
    batches = data.batches(encoded, task, processor, batch_size).then(giving(teacher, section, task.terms))
    if expected_bytes(batches) > room:
        return None
    starts, shapes, place = dict[int, int](), dict[int, Shapes](), 0
    with file.open("wb") as out:
        said = (one for batch in progress.track(batches, "taking lessons") for one in by_row(batch))
        for row, parts in zip(batches.order.tolist(), said, strict=True):
            starts[row], shapes[row] = place, tuple((len(part), part.shape[1]) for part in parts)
            place += sum(out.write(part.numpy().tobytes()) for part in parts) // 4
            if 4 * place > room:
                break
    if len(starts) < len(encoded) or not place:
        file.unlink()
        return None
    return Notes(np.memmap(file, np.float32, "r"), starts, shapes)


def expected_bytes(batches: Sequence[Lesson]) -> int:
    """What the lessons on all rows may take, by the middle batch: they are in the order of their rows' lengths."""
    return byte_count(batches[len(batches) // 2]) * len(batches)


def giving(
    teacher: nn.Module, section: Distillation, terms: Callable[[Mapping[str, Tensor]], Tensor]
) -> Callable[[Mapping[str, Tensor]], Lesson]:
    """A collated batch -> the lesson on it, on the CPU in float32."""

    def give(batch: Mapping[str, Tensor]) -> Lesson:
        found = lesson_of(teacher, beside(teacher, batch), section, terms)
        return found.to("cpu", torch.float32)

    return give


def by_row(lesson: Lesson) -> Iterator[tuple[Tensor, ...]]:
    """The rows' parts of a batch's lesson: logits, then each layer's states."""
    parts = (lesson.logits, *lesson.states)
    yield from zip(
        *(torch.split(part, list(sizes)) for part, sizes in zip(parts, lesson.sizes, strict=True)), strict=True
    )


def byte_count(lesson: Lesson) -> int:
    """What a lesson takes."""
    return 4 * sum(part.numel() for part in (lesson.logits, *lesson.states))
