"""Data sets (local files, folders or hub ids) -> tokenized splits -> padded batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.errors import DataError, did_you_mean, first_line
from compressor.recipe import Source
from compressor.tasks.base import Column, Outcomes, Task

NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0", "No columns to parse", "StopIteration")
READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


def read(source: Source, task: Task, seed: int = 0) -> Any:
    """The rows of one split as a `datasets.Dataset` with the columns that the task reads.

    Raises:
        DataError: missing file, split or column, no rows, or rows with a missing value or one of another type.
    """
    rows, where = _load(source), f"{source.path}, split '{source.split}'"
    wanted = task.columns(source)
    missing = [column.name for column in wanted.values() if column.name not in rows.column_names]
    if missing:
        hints = " ".join(did_you_mean(column, rows.column_names).strip() for column in missing)
        raise DataError(
            f"{where} has no column {', '.join(map(repr, missing))}; "
            f"it has {', '.join(rows.column_names)}. {hints}".rstrip()
        )
    rows = rows.select_columns([column.name for column in wanted.values()])
    rows = rows.rename_columns({column.name: role for role, column in wanted.items() if column.name != role})
    if not len(rows):
        raise DataError(f"{where} is empty: it needs at least one row.")
    for role, column in wanted.items():
        _require_filled(rows, role, column, where)
        _require_kind(rows, role, column, where)
    if source.limit and source.limit < len(rows):
        rows = rows.shuffle(seed=seed).select(range(source.limit))
    return rows


def _require_filled(rows: Any, role: str, column: Column, where: str) -> None:
    holes = rows.data.column(role).null_count
    if holes:
        raise DataError(f"{where}: {holes} rows have no {role} ('{column.name}').")


def _require_kind(rows: Any, role: str, column: Column, where: str) -> None:
    feature = rows.features[role]
    kind = str(getattr(feature, "dtype", feature))
    if not kind.startswith(column.kinds):
        raise DataError(
            f"{where}: the {role} column '{column.name}' holds {kind}, not {column.words}. "
            "Name another column or convert it."
        )


def _load(source: Source) -> Any:
    import datasets

    datasets.disable_progress_bars()
    path = Path(source.path)
    file = path if path.is_file() else _split_file(path, source.split)
    try:
        if file is not None:
            if file.suffix not in READERS:
                raise DataError(f"{file} is none of the kinds of file that are read: {', '.join(READERS)}.")
            return datasets.load_dataset(READERS[file.suffix], data_files=str(file), split="train")
        found = datasets.load_dataset(source.path)
    except (OSError, ValueError, StopIteration, datasets.exceptions.DatasetGenerationError) as error:
        raise _refused(source.path, first_line(error.__cause__ or error)) from error
    if source.split not in found:
        raise DataError(
            f"{source.path} has no split '{source.split}'; it has {', '.join(found)}."
            f"{did_you_mean(source.split, found)}"
        )
    return found[source.split]


def _refused(path: str, reason: str) -> DataError:
    if any(sign in reason for sign in NO_ROWS):  # what the readers say of a file without rows
        return DataError(f"{path} is empty: it needs at least one row.")
    return DataError(f"{path} cannot be read as a data set: {reason}")


def _split_file(folder: Path, split: str) -> Path | None:
    """`<folder>/<split>.<kind>`, where there is one."""
    return next((file for kind in READERS if (file := folder / f"{split}{kind}").is_file()), None)


def digest(rows: Any) -> str:
    """sha256 over the rows' contents, independent of the file format."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return hasher.hexdigest()


def batches(encoded: Any, task: Task, processor: Any, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Collated batches, shortest rows first where they have a length, so that little is padded."""
    lengths = encoded["length"] if "length" in encoded.column_names else np.zeros(len(encoded))
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield task.collate([encoded[int(index)] for index in order[start : start + batch_size]], processor)


@dataclass(frozen=True, eq=False)
class Data:
    """All that a run reads, encoded once."""

    labels: list[str] | None  # None where the model gets no new head
    train: Any
    validation: Any | None  # chooses the best checkpoint
    calibration: Any
    evaluation: Any
    facts: Mapping[str, Any]  # for the report: path, rows and digest of each split


def prepare(section: Any, task: Task, processor: Any, max_length: int, seed: int) -> Data:
    """Read and encode the recipe's data section; validation is `holdout` of train where no source is named.

    Raises:
        DataError: whatever is wrong with any of the sources.
    """
    rows = {"train": read(section.train, task, seed), "evaluation": read(section.evaluation, task, seed)}
    labels = task.labels(rows["train"])
    if section.validation is not None:
        rows["validation"] = read(section.validation, task, seed)
    facts = {
        name: {"path": getattr(section, name).path, "rows": len(part), "digest": digest(part)}
        for name, part in rows.items()
    }
    if section.validation is None and section.holdout:
        rows |= _hold_out(rows["train"], section.holdout, seed)
    if section.calibration.source is not None:
        rows["calibration"] = read(section.calibration.source, task, seed)
    pool = rows.get("calibration", rows["train"])
    rows["calibration"] = pool.shuffle(seed=seed).select(range(min(section.calibration.samples, len(pool))))
    encoded = {name: task.encode(part, processor, labels, max_length, f"data.{name}") for name, part in rows.items()}
    return Data(
        labels=labels,
        train=encoded["train"],
        validation=encoded.get("validation"),
        calibration=encoded["calibration"],
        evaluation=encoded["evaluation"],
        facts=facts | ({"labels": len(labels)} if labels else {}),
    )


def _hold_out(train: Any, share: float, seed: int) -> dict[str, Any]:
    parts = train.train_test_split(test_size=share, seed=seed)
    return {"train": parts["train"], "validation": parts["test"]}


@torch.no_grad()
def outcomes(model: torch.nn.Module, task: Task, inputs: Iterable[Mapping[str, Tensor]]) -> Outcomes:
    """What a torch model says about batches, in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    found = []
    for batch in inputs:
        logits = model(**{key: value.to(device) for key, value in batch.items() if key != "labels"}).logits
        found.append(task.outcomes(logits.float().cpu().numpy(), arrays(batch)))
    return together(found)


def arrays(batch: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The same batch for numpy."""
    return {key: value.numpy() for key, value in batch.items()}


def together(found: Sequence[Outcomes]) -> Outcomes:
    """Outcomes of several batches as one."""
    return Outcomes(*(np.concatenate(part) for part in zip(*found, strict=True)))
