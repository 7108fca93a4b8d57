"""Where models are run, on a machine whose GPU is pretended."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from compressor import adapt, data, devices, progress, storage
from compressor.line import Line
from validators import prove


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to models that are lent, in order."""
    found: list[str] = []

    @contextmanager
    def lent(model: Any) -> Iterator[None]:
        found.append(f"{model} is lent")
        yield
        found.append(f"{model} is back")

    monkeypatch.setattr(devices, "lent", lent)
    return found


def test_training_says_where_it_runs_and_gives_the_model_back(seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "described", lambda: "NVIDIA H200")
    monkeypatch.setattr(progress, "note", seen.append)
    monkeypatch.setattr(adapt, "adapt_", lambda *_, **__: seen.append("trained"))
    names = ("sources", "run", "recipe")
    line: Any = SimpleNamespace(**{name: SimpleNamespace() for name in names})
    line.sources = SimpleNamespace(task=None, processor=None, data=SimpleNamespace(train=None, validation=None))
    line.recipe.seed = None
    line.run.scratch = Path()
    Line._train(line, "the model", None, "adapt")
    assert seen == ["  on NVIDIA H200", "the model is lent", "trained", "the model is back"]


def test_what_exports_are_held_against_is_computed_there_and_exactly(
    seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcomes(*_: object) -> str:
        seen.append(f"computed in {torch.backends.cudnn.conv.fp32_precision}")  # type: ignore[attr-defined]
        return "outcomes"

    monkeypatch.setattr(storage, "load", lambda *_, **__: "the model")
    monkeypatch.setattr(data, "outcomes", outcomes)
    artifact, evaluation = SimpleNamespace(manifest={"task": "a task"}), SimpleNamespace(task=None)
    prover: Any = SimpleNamespace(artifact=artifact, evaluation=evaluation, code={}, batches=[])
    assert prove._Prover._predict(prover, Path()) == "outcomes"
    assert seen == ["the model is lent", "computed in ieee", "the model is back"]


@pytest.mark.parametrize("begun", [True, False])
def test_a_model_that_was_lent_leaves_no_memory_of_the_gpu_behind(monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    done: list[str] = []

    def note(what: str) -> Callable[[], None]:
        return lambda: done.append(what)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: begun)
    monkeypatch.setattr(torch.cuda, "empty_cache", note("emptied"))
    monkeypatch.setattr(gc, "collect", note("collected"))
    with devices.lent(nn.Linear(2, 2)):
        assert done == []
    assert done == (["collected", "emptied"] if begun else [])


def test_convolutions_are_exact_within_and_as_they_were_afterwards() -> None:
    before = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    with devices.exact():
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]
    assert torch.backends.cudnn.conv.fp32_precision == before  # type: ignore[attr-defined]


def test_random_numbers_are_forked_where_the_model_is_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model, state = nn.Linear(2, 2), torch.get_rng_state()
    with devices.fork_rng(model):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    asked: list[list[torch.device]] = []
    monkeypatch.setattr(torch.random, "fork_rng", asked.append)
    there, gpu = nn.Module(), torch.device("cuda", 1)
    monkeypatch.setattr(there, "parameters", lambda: iter([torch.empty(1, device="meta"), Elsewhere(gpu)]))
    devices.fork_rng(there)
    assert asked == [[gpu]]


class Elsewhere:
    """A parameter on another device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device


def test_the_gpu_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.described() == "the CPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert devices.described() == "NVIDIA H200"
