"""Data sets (local files, folders or hub ids) -> tokenized splits -> padded batches."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from compressor import progress
from compressor.devices import beside
from compressor.errors import DataError, did_you_mean, first_line
from compressor.failures import exhausted
from compressor.recipe import Source
from compressor.sections.data import ONLY_SPLIT, READERS
from compressor.tasks import image, text
from compressor.tasks.base import Column, Outcomes, Task, inputs_of, together

Made = TypeVar("Made")
Other = TypeVar("Other")

AT_ONCE = 64  # rows that are read through together: much faster than one by one, and few enough where they are images
NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0", "No columns to parse", "StopIteration")
UNREADABLE = (OSError, EOFError, ValueError, TypeError, StopIteration, RuntimeError, csv.Error)  # as the readers say it
DOCUMENTS = {"sample_by": "document"}  # lines are no texts of their own: a file is one


def read(source: Source, task: Task, seed: int = 0) -> Any:
    """The rows of one split as a `datasets.Dataset` with the columns that the task reads.

    Raises:
        DataError: missing file, split or column, no rows, or rows with a missing value or one of another type.
    """
    rows = _load(source)
    where = str(source.file) if source.file else f"{source.path}, split '{source.split}'"
    wanted = task.columns(source)
    missing = {role: column.name for role, column in wanted.items() if column.name not in rows.column_names}
    if missing:
        raise _lacking(missing, rows.column_names, where)
    _require_apart(wanted, where)
    rows = rows.select_columns([column.name for column in wanted.values()])
    rows = rows.rename_columns({column.name: role for role, column in wanted.items() if column.name != role})
    if not len(rows):
        raise DataError(f"{where} is empty: it needs at least one row.")
    for role, column in wanted.items():
        _require_filled(rows, role, column, where)
        _require_kind(rows, role, column, where)
        if column.image:
            rows = _as_cells(rows, role, Path(source.path))
    if source.limit and source.limit < len(rows):
        rows = rows.shuffle(seed=seed).select(range(source.limit))
    return rows


def _lacking(missing: Mapping[str, str], there: Sequence[str], where: str) -> DataError:
    """What is said of columns that a split has not, by the task's roles."""
    if _unparted(there):
        said = f"its cells are not parted by commas ({there[0]!r}). Write it with commas, or as .jsonl."
        return DataError(f"{where}: {said}")
    near = {name: did_you_mean(name, there).strip() for name in missing.values()}
    named = (f"'{name}'{f' ({hint})' if hint else ''}" for name, hint in near.items())
    keys = " and ".join(f"`{role}`" for role in missing)
    return DataError(
        f"{where} has no column {', '.join(named)}; it has {', '.join(there)}. Name the right one under {keys}."
    )


def _unparted(names: Sequence[str]) -> bool:
    return any(mark in name for name in names for mark in (";", "\t"))


def _require_apart(wanted: Mapping[str, Column], where: str) -> None:
    counts = Counter(column.name for column in wanted.values())
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        roles = [role for role, column in wanted.items() if column.name in twice]
        raise DataError(f"{where}: the column {', '.join(map(repr, twice))} is named for {' and '.join(roles)}.")


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


def _as_cells(rows: Any, role: str, origin: Path) -> Any:
    """Images as cells `{bytes, path}`, not decoded; paths are relative to the folder that the rows were read from."""
    import datasets

    kind = str(getattr(rows.features[role], "dtype", ""))
    if kind.startswith(text.STRINGS):
        folder = origin.parent if origin.is_file() else origin
        paths = [str(folder / path) for path in rows[role][:]]
        rows = rows.remove_columns(role).add_column(role, paths)
    elif kind == "binary_view":  # which arrow casts to no struct
        rows = rows.cast_column(role, datasets.Value("binary"))
    return rows.cast_column(role, datasets.Image(decode=False))


def _load(source: Source) -> Any:
    import datasets
    from datasets.exceptions import DatasetGenerationError

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is raised, as a sentence
    file = source.file
    if file is not None and file.suffix not in READERS:
        raise DataError(f"{file} is none of the kinds of file that are read: {', '.join(READERS)}.")
    if file is not None:
        named: dict[str, Any] = {"path": READERS[file.suffix], "data_files": str(file)}
    else:
        named = {"path": source.path, "name": source.subset}
    try:
        options = _options(datasets.load_dataset_builder(**named)) if Path(source.path).exists() else {}
        found = datasets.load_dataset(**named, **options)
    except (*UNREADABLE, DatasetGenerationError) as error:
        if exhausted(error):
            raise
        raise _refused(source.path, error.__cause__ or error) from error
    split = source.split if file is None else ONLY_SPLIT
    if split not in found:
        raise DataError(f"{source.path} has no split '{split}'; it has {', '.join(found)}.{did_you_mean(split, found)}")
    return found[split]


def _unnamed(path: str, names: str) -> DataError:
    return DataError(f"{path} has several subsets: {names or 'see its page'}. Name one as `subset`, beside `path`.")


def _options(builder: Any) -> dict[str, Any]:
    """How the local files that a builder reads are read: a CSV as it is written, a text whole."""
    if builder.name == "csv":
        files = [file for split in builder.config.data_files.values() for file in split]
        return _as_written(files, builder.config.sep)
    return DOCUMENTS if builder.name == "text" else {}


def _as_written(files: Iterable[str], separator: str) -> dict[str, Any]:
    """The cells of CSVs as they stand there: "NA" and "007" are no missing value and no 7; empty cells are."""
    names: set[str] = set()
    for file in files:
        names.update(_header(file, separator))
    return {"converters": dict.fromkeys(sorted(names), _cell), "keep_default_na": False, "na_values": [""]}


def _header(file: str, separator: str) -> list[str]:
    """The names of a CSV's columns; of a row with more cells than these the reader would take the first for its name.

    Raises:
        DataError: the first row has more.
    """
    from fsspec import open as opened  # type: ignore[import-untyped]

    as_text = {"newline": "", "encoding": "utf-8-sig", "errors": "replace"}
    with opened(file, "rt", compression="infer", **as_text) as lines:
        rows = filter(None, csv.reader(lines, delimiter=separator))  # empty lines are passed over by the reader, too
        names = next(rows, [])
        first = next(rows, [])
    if len(first) > len(names) and not _unparted(names):
        raise DataError(
            f"{file} names {len(names)} columns, but its first row has {len(first)} cells: put a text that holds "
            f"{separator!r} in double quotes, or name the columns that have no name."
        )
    return names


def _cell(written: str) -> str | None:
    return written or None


def _refused(path: str, error: BaseException) -> DataError:
    reason = first_line(error)
    if "Config name is missing" in reason:
        return _unnamed(path, str(error).partition("configs: ")[2].partition("\n")[0].strip("[]"))
    if any(sign in reason for sign in NO_ROWS):  # what the readers say of a file without rows
        return DataError(f"{path} is empty: it needs at least one row.")
    return DataError(f"{path} cannot be read as a data set: {reason}")


def digest(rows: Any) -> str:
    """sha256 over the rows' contents, independent of the file format; images count by their encoded bytes."""
    return _read_through(rows)[0]


def _read_through(rows: Any) -> tuple[str, list[int]]:
    """The digest of all rows, and for each a number that tells it from others in this process."""
    import datasets

    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    hasher, numbers = hashlib.sha256(), list[int]()
    for part in rows.iter(batch_size=AT_ONCE):
        part |= {name: [hashlib.sha256(image.content(cell)).hexdigest() for cell in part[name]] for name in images}
        for cells in zip(*part.values(), strict=True):
            row = dict(zip(part, cells, strict=True))
            line = json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n"
            hasher.update(line)
            numbers.append(hash(line))
    return hasher.hexdigest(), numbers


def _facts(named: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """Path, rows and digest of each split; of what proves or chooses also how many rows are trained on, too.

    Raises:
        DataError: all of them are.
    """
    seen = {name: _read_through(part) for name, part in rows.items()}
    facts = {name: {"path": named[name].path, "rows": len(rows[name]), "digest": seen[name][0]} for name in rows}
    _require_other_rows(facts)
    learned = set(seen["train"][1])
    for name in (name for name in ("evaluation", "validation") if name in rows):
        count = sum(number in learned for number in seen[name][1])
        facts[name]["rows_also_in_train"] = count
        if count:
            progress.note(f"{count:,} of the {len(rows[name]):,} rows of data.{name} stand in data.train, too.")
    return facts


@dataclass(frozen=True, eq=False)
class Batches(Sequence[Made]):
    """Batches, each made anew whenever it is asked for: decoded images of a whole data set would fill the memory."""

    encoded: Any
    size: int  # rows in a batch
    make: Callable[[list[Any]], Made]

    @cached_property
    def order(self) -> np.ndarray:
        """The rows' numbers (N,), the shortest first where they have a length, so that little is padded."""
        lengths = self.encoded["length"][:] if "length" in self.encoded.column_names else np.zeros(len(self.encoded))
        return np.argsort(lengths, kind="stable")

    def __len__(self) -> int:
        return -(-len(self.encoded) // self.size)

    @overload
    def __getitem__(self, number: int) -> Made: ...
    @overload
    def __getitem__(self, number: slice) -> list[Made]: ...
    def __getitem__(self, number: int | slice) -> Made | list[Made]:
        if isinstance(number, slice):
            return [self[one] for one in range(len(self))[number]]
        start = range(len(self))[number] * self.size
        return self.make([self.encoded[int(row)] for row in self.order[start : start + self.size]])

    def then(self, change: Callable[[Made], Other]) -> Batches[Other]:
        """The same batches in another form."""
        return Batches(self.encoded, self.size, lambda rows: change(self.make(rows)))


def batches(encoded: Any, task: Task, processor: Any, batch_size: int) -> Batches[dict[str, Tensor]]:
    """Batches to learn from."""
    return Batches(encoded, batch_size, lambda rows: task.collate(rows, processor))


def posed(encoded: Any, task: Task, processor: Any) -> Batches[dict[str, Tensor]]:
    """Batches for `outcomes`, as small as the task wants them."""
    return Batches(encoded, task.posed_at_once, lambda rows: task.pose(rows, processor))


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

    What is held out and what calibrates is drawn from encoded rows, since a text may give many of them.

    Raises:
        DataError: whatever is wrong with any of the sources.
    """
    named = {
        "train": section.train,
        "evaluation": section.evaluation,
        "validation": section.validation,
        "calibration": section.calibration.source,
    }
    rows = {name: read(source, task, seed) for name, source in named.items() if source is not None}
    labels = task.labels(rows["train"])
    if labels is not None and len(labels) < 2:
        raise DataError(f"data.train has one class only, {labels[0]!r}: to tell classes apart takes two.")
    facts = _facts(named, rows)
    encoded = {name: task.encode(part, processor, labels, max_length, f"data.{name}") for name, part in rows.items()}
    if section.validation is None and section.holdout:
        encoded |= _hold_out(encoded["train"], section.holdout, seed)
    pool = encoded.get("calibration", encoded["train"])
    encoded["calibration"] = pool.shuffle(seed=seed).select(range(min(section.calibration.samples, len(pool))))
    return Data(
        labels=labels,
        train=encoded["train"],
        validation=encoded.get("validation"),
        calibration=encoded["calibration"],
        evaluation=encoded["evaluation"],
        facts=facts | ({"labels": len(labels)} if labels else {}),
    )


def _require_other_rows(facts: Mapping[str, Any]) -> None:
    """The same rows by another name: what is trained on proves nothing, and chooses nothing."""
    for name, others in {"evaluation": ("train", "validation", "calibration"), "validation": ("train",)}.items():
        for other in others:
            if name in facts and other in facts and facts[name]["digest"] == facts[other]["digest"]:
                raise DataError(
                    f"data.{name} ({facts[name]['path']}) has the very rows of data.{other} ({facts[other]['path']}): "
                    "what was learned from proves nothing. Name other rows."
                )


def _hold_out(train: Any, share: float, seed: int) -> dict[str, Any]:
    if len(train) < 2:
        raise DataError(
            "data.train gives a single example, of which nothing can be held out: add data, name data.validation, set "
            "data.holdout: 0, or (for running text) lower model.max_length."
        )
    held = math.ceil(share * len(train))
    if held >= len(train):
        raise DataError(
            f"data.holdout {share:g} of the {len(train)} examples of data.train is all of them: lower it, add data, or "
            "name data.validation."
        )
    parts = train.train_test_split(test_size=held, seed=seed)
    return {"train": parts["train"], "validation": parts["test"]}


@torch.no_grad()
def outcomes(model: torch.nn.Module, task: Task, inputs: Iterable[Mapping[str, Tensor]]) -> Outcomes:
    """What a torch model says about posed batches, in evaluation mode."""
    model.eval()
    found = []
    for batch in inputs:
        logits = model(**beside(model, inputs_of(batch))).logits
        found.append(task.outcomes(logits.float().cpu().numpy(), arrays(batch)))
    return together(found)


def arrays(batch: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The same batch for numpy."""
    return {key: value.numpy() for key, value in batch.items()}
