"""Weights files are read a part at a time, and what is missing or too much is told as of one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor import storage
from compressor.errors import ArtifactError


def model(*widths: int) -> nn.Sequential:
    """Linear layers from width to width."""
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights of `model(4, 6, 2)`, every tensor a part of its own."""
    monkeypatch.setattr(storage, "PART", 1)
    storage.save_tensors(storage.state_of(model(4, 6, 2)), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_file_of_many_parts_fills_the_whole_model(file: Path) -> None:
    from safetensors.torch import load_file

    found = storage.load_tensors_(model(4, 6, 2), file).state_dict()
    expected = load_file(file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_each_part_holds_no_more_than_it_may(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [len(part) for part in storage._parts(file)] == [1, 1, 1, 1]
    monkeypatch.setattr(storage, "PART", 10**6)
    assert [len(part) for part in storage._parts(file)] == [4]


def test_what_is_missing_and_what_is_too_much_are_told_over_all_parts(file: Path) -> None:
    with pytest.raises(ArtifactError, match=r"lacks \['2.weight', '2.bias'\] and has \[\] too many"):
        storage.load_tensors_(model(4, 6, 2, 3), file)
    with pytest.raises(ArtifactError, match=r"lacks \[\] and has \['1.bias', '1.weight'\] too many"):
        storage.load_tensors_(model(4, 6), file)
    storage.load_tensors_(model(4, 6, 2, 3), file, strict=False)  # a part of a model is asked for


def test_another_shape_and_a_truncated_file_are_told(file: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        storage.load_tensors_(model(4, 7, 2), file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="missing, truncated or damaged"):
        storage.load_tensors_(model(4, 6, 2), file)
