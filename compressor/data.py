"""Data sets (local files, folders or hub ids) -> tokenized splits -> padded batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.errors import DataError, did_you_mean
from compressor.models import first_line
from compressor.recipe import Source

TEXTS = ("string", "large_string")
CLASSES = (*TEXTS, "int", "uint", "bool", "float")  # what the type of a label may begin with
NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0", "No columns to parse", "StopIteration")
READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


def read(source: Source, seed: int = 0) -> Any:
    """The rows of one split as a `datasets.Dataset` with columns `text`, `label` and, if named, `text_pair`.

    Raises:
        DataError: missing file, split or column, no rows, or rows whose text or label is missing or of another type.
    """
    rows = _load(source)
    wanted = {"text": source.text, "label": source.label} | (
        {"text_pair": source.text_pair} if source.text_pair else {}
    )
    missing = [column for column in wanted.values() if column not in rows.column_names]
    if missing:
        hints = " ".join(did_you_mean(column, rows.column_names).strip() for column in missing)
        raise DataError(
            f"{source.path}, split '{source.split}' has no column {', '.join(map(repr, missing))}; "
            f"it has {', '.join(rows.column_names)}. {hints}".rstrip()
        )
    rows = rows.select_columns(list(wanted.values())).rename_columns(
        {old: new for new, old in wanted.items() if old != new}
    )
    if not len(rows):
        raise DataError(f"{source.path}, split '{source.split}' is empty: it needs at least one row.")
    for column in wanted:
        holes = sum(value is None for value in rows[column])
        if holes:
            raise DataError(
                f"{source.path}, split '{source.split}': {holes} rows have no {column} ('{wanted[column]}')."
            )
    _require_kinds(rows, source, wanted)
    if source.limit and source.limit < len(rows):
        rows = rows.shuffle(seed=seed).select(range(source.limit))
    return rows


def _require_kinds(rows: Any, source: Source, wanted: Mapping[str, str]) -> None:
    for column, name in wanted.items():
        kind = str(getattr(rows.features[column], "dtype", rows.features[column]))
        allowed, words = (CLASSES, "strings or whole numbers") if column == "label" else (TEXTS, "strings")
        if not kind.startswith(allowed):
            raise DataError(
                f"{source.path}, split '{source.split}': the {column} column '{name}' holds {kind}, not {words}. "
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


def label_names(train: Any) -> list[str]:
    """The labels of the training rows, as text, in the order of the logits: a class feature's own, else sorted."""
    feature = train.features["label"]
    if hasattr(feature, "names"):
        return list(feature.names)
    return [str(label) for label in sorted(set(train["label"]))]


def digest(rows: Any) -> str:
    """sha256 over the rows' contents, independent of the file format."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return hasher.hexdigest()


def tokenize(rows: Any, tokenizer: Any, labels: Sequence[str], max_length: int, name: str = "data") -> Any:
    """Rows -> a `datasets.Dataset` of input_ids, attention_mask, (token_type_ids,) labels and length.

    Raises:
        DataError: a label that training has not seen.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    names = _names(rows)
    unseen = sorted(set(names) - set(numbers))
    if unseen:
        raise DataError(
            f"{name} has labels that training does not have: {', '.join(map(repr, unseen[:5]))}; "
            f"the {len(labels)} known are {', '.join(map(repr, labels[:5]))}{', ...' if len(labels) > 5 else ''}."
        )
    pairs = list(rows["text_pair"]) if "text_pair" in rows.column_names else None
    encoded = tokenizer(list(rows["text"]), pairs, truncation=True, max_length=max_length)
    columns = {key: encoded[key] for key in encoded}
    import datasets

    return datasets.Dataset.from_dict(
        columns | {"labels": [numbers[label] for label in names], "length": [len(ids) for ids in columns["input_ids"]]}
    )


def _names(rows: Any) -> list[str]:
    feature = rows.features["label"]
    if hasattr(feature, "names"):
        return [feature.names[number] for number in rows["label"]]
    return [str(label) for label in rows["label"]]


def batches(encoded: Any, tokenizer: Any, batch_size: int, *, by_length: bool = True) -> Iterator[dict[str, Tensor]]:
    """Padded batches of tensors `input_ids (B, T)`, ..., `labels (B,)`, shortest first, so that little is padded."""
    order = np.argsort(encoded["length"], kind="stable") if by_length else np.arange(len(encoded))
    plain = encoded.remove_columns("length")
    for start in range(0, len(order), batch_size):
        rows = [plain[int(index)] for index in order[start : start + batch_size]]
        yield dict(tokenizer.pad(rows, return_tensors="pt"))


@dataclass(frozen=True, eq=False)
class Data:
    """All that a run reads, tokenized once."""

    labels: list[str]
    train: Any
    validation: Any | None  # chooses the best checkpoint
    calibration: Any
    evaluation: Any
    facts: Mapping[str, Any]  # for the report: path, rows and digest of each split


def prepare(section: Any, tokenizer: Any, max_length: int, seed: int) -> Data:
    """Read and tokenize the recipe's data section; validation is `holdout` of train where no source is named.

    Raises:
        DataError: whatever is wrong with any of the sources.
    """
    rows = {"train": read(section.train, seed), "evaluation": read(section.evaluation, seed)}
    labels = label_names(rows["train"])
    if section.validation is not None:
        rows["validation"] = read(section.validation, seed)
    facts = {
        name: {"path": getattr(section, name).path, "rows": len(part), "digest": digest(part)}
        for name, part in rows.items()
    }
    if section.validation is None and section.holdout:
        rows |= _hold_out(rows["train"], section.holdout, seed)
    if section.calibration.source is not None:
        rows["calibration"] = read(section.calibration.source, seed)
    pool = rows.get("calibration", rows["train"])
    rows["calibration"] = pool.shuffle(seed=seed).select(range(min(section.calibration.samples, len(pool))))
    encoded = {name: tokenize(part, tokenizer, labels, max_length, f"data.{name}") for name, part in rows.items()}
    return Data(
        labels=labels,
        train=encoded["train"],
        validation=encoded.get("validation"),
        calibration=encoded["calibration"],
        evaluation=encoded["evaluation"],
        facts=facts | {"labels": len(labels)},
    )


def _hold_out(train: Any, share: float, seed: int) -> dict[str, Any]:
    parts = train.train_test_split(test_size=share, seed=seed)
    return {"train": parts["train"], "validation": parts["test"]}


@torch.no_grad()
def predict(model: torch.nn.Module, inputs: Sequence[Mapping[str, Tensor]]) -> np.ndarray:
    """Logits (N, labels) of a torch model over batches, in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    outputs = [
        model(**{key: value.to(device) for key, value in batch.items() if key != "labels"}).logits for batch in inputs
    ]
    return torch.cat(outputs).float().cpu().numpy()
