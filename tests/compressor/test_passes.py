"""How many passes over the sample a model's moments take, and how much memory a container leaves."""

from __future__ import annotations

import math
from pathlib import Path

import psutil
import pytest
import torch

from compressor import cgroup, memory
from compressor.methods.base import Moment
from compressor.passes import in_passes
from compressor.targets import Target

BOTH = frozenset(Moment)
TARGETS = [Target("a", 8, 4), Target("b", 4, 4), Target("c", 16, 8), Target("d", 4, 4)]  # 320, 128, 1280, 128 bytes


@pytest.mark.parametrize(
    ("needs", "free", "expected"),
    [
        (BOTH, 1e9, ["abcd"]),
        (BOTH, 2 * (320 + 128), ["ab", "c", "d"]),
        (BOTH, 2 * (320 + 128) - 1, ["a", "b", "c", "d"]),
        (BOTH, 0, ["a", "b", "c", "d"]),
        ({Moment.INPUT}, 2 * (64 + 64), ["ab", "c", "d"]),
        ({Moment.GRADIENT}, 2 * (64 + 1024), ["ab", "cd"]),
        (frozenset(), 0, ["abcd"]),
    ],
)
def test_as_many_targets_go_together_as_fit_into_half_of_what_is_free(
    needs: frozenset[Moment], free: float, expected: list[str]
) -> None:
    assert ["".join(names) for names in in_passes(TARGETS, needs, free)] == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 500\ninactive_file 150\n"}, 450),
        ({"memory.max": "1000\n", "memory.current": "1100\n", "memory.stat": "anon 500\n"}, 0),
        ({"memory.max": "max\n", "memory.current": "700\n", "memory.stat": "anon 500\n"}, math.inf),
        (
            {
                "memory/memory.limit_in_bytes": "900\n",
                "memory/memory.usage_in_bytes": "300\n",
                "memory/memory.stat": "inactive_file 9\ntotal_inactive_file 100\n",
            },
            700,
        ),
        ({}, math.inf),
    ],
)
def test_a_container_allows_its_limit_less_what_it_cannot_give_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: float
) -> None:
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.allowance() == expected
    here = memory.free(torch.device("cpu"))
    free = pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert here == (free if math.isinf(expected) else expected)
