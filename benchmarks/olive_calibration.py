"""Calibration rows for Olive's data configurations: loaded by Olive as a `user_script`, in Olive's own environment.

The file is an .npz archive with the arrays of row 0, 1, ... as `0/input_ids`, `1/input_ids`, ...
"""

from pathlib import Path

import numpy as np
from olive.data.registry import Registry

Row = tuple[dict[str, np.ndarray], int]


@Registry.register_dataset()
def calibration_rows(path: str, **_: object) -> list[Row]:
    """Rows of named arrays, batch 1, each with a label that nothing reads."""
    rows: dict[int, dict[str, np.ndarray]] = {}
    with np.load(Path(path)) as archive:
        for key in archive.files:
            number, _slash, name = key.partition("/")
            rows.setdefault(int(number), {})[name] = archive[key]
    return [(rows[number], 0) for number in sorted(rows)]


@Registry.register_dataloader()
def one_by_one(
    dataset: list[tuple[dict[str, np.ndarray], int]], **_: object
) -> list[tuple[dict[str, np.ndarray], int]]:
    """The rows as they are: no batch is collated, so that no row is padded."""
    return dataset
