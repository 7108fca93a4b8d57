"""Decompositions on disk are those in memory, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from compressor import subspaces, tensors
from compressor.errors import ArtifactError
from compressor.methods.base import Method, Moments, Subspace
from compressor.methods.cersa import Cersa
from compressor.methods.jactus import Jactus
from compressor.metrics import SecondMoment
from compressor.planning import Plan, PlanLayer

ROWS, COLUMNS = 12, 20


def moment(size: int) -> SecondMoment:
    rows = torch.randn(64, size) * torch.logspace(0, -2, size)
    return SecondMoment(rows.mT @ rows / 64)


def found(method: Method) -> Subspace:
    torch.manual_seed(0)
    return method.subspace(torch.randn(ROWS, COLUMNS), Moments(moment(COLUMNS), moment(ROWS)), 7)


def planned(**ranks: int | None) -> Plan:
    rows = (PlanLayer(name, ROWS, COLUMNS, rank, 8, 0.1, 0.9) for name, rank in ranks.items())
    return Plan("gain", 0.5, "two-factor", 1, tuple(rows))


def product(one: Subspace) -> Tensor:
    return one.left @ one.core @ one.right


@pytest.mark.parametrize("method", [Jactus(), Jactus("R1"), Cersa(alpha=0.9, beta=0.5)])
def test_what_is_read_is_what_a_rank_takes_to_the_bit(method: Method, tmp_path: Path) -> None:
    whole = {"a": found(method), "b.c": found(method), "dense": found(method)}
    subspaces.save(whole, planned(**{"a": 3, "b.c": 5, "dense": None}), tmp_path / "found.safetensors")
    for again in range(4):  # the same bytes each time
        subspaces.save(whole, planned(**{"a": 3, "b.c": 5, "dense": None}), tmp_path / f"{again}.safetensors")
        assert (tmp_path / f"{again}.safetensors").read_bytes() == (tmp_path / "found.safetensors").read_bytes()
    read = subspaces.load(tmp_path / "found.safetensors")
    assert read.keys() == {"a", "b.c"}
    for name, rank in (("a", 3), ("b.c", 5)):
        expected, again = whole[name].truncate(rank), read[name].truncate(rank)
        for field in ("left", "core", "right", "gains"):
            assert torch.equal(getattr(expected, field), getattr(again, field)), (name, field)
        assert again.total == whole[name].total
        assert torch.equal(
            *(torch.cat([p.flatten() for p in method.core(one).parameters()]) for one in (expected, again))
        )
        assert torch.allclose(product(again), product(whole[name].first(rank)), atol=1e-12)


def test_layers_that_were_not_decomposed_are_left_out_and_a_plan_without_ranks_is_empty(tmp_path: Path) -> None:
    subspaces.save({"a": found(Cersa())}, planned(a=2, other=2), tmp_path / "found.safetensors")
    assert subspaces.load(tmp_path / "found.safetensors").keys() == {"a"}
    subspaces.save({"a": found(Cersa())}, planned(a=None), tmp_path / "none.safetensors")
    assert subspaces.load(tmp_path / "none.safetensors") == {}


def test_a_missing_a_cut_and_another_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "found.safetensors"
    with pytest.raises(ArtifactError, match=r"cannot be read as subspaces: .*Plan again"):
        subspaces.load(path)
    subspaces.save({"a": found(Cersa())}, planned(a=2), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match="cannot be read as subspaces"):
        subspaces.load(path)
    tensors.save_tensors({"a": torch.ones(2)}, path)
    with pytest.raises(ArtifactError, match="cannot be read as subspaces"):
        subspaces.load(path)
