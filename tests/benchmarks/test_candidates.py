"""The candidates: a changed start is the same function, what is trained is what was said, rows are not run again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import candidates
import pytest
import torch
from bench import Bench
from candidates import CANDIDATES, Trial
from results import read
from suites import SUITES, Suite

from compressor.allocation import Spectrum
from compressor.layers import CoreLinear
from compressor.recipe import Distillation


@pytest.fixture
def trial(tiny_suite: Callable[..., Suite], tmp_path: Path) -> Trial:
    return Trial(tiny_suite(before=False), 0, 0.25, tmp_path, 1e-4)


def started(trial: Trial, name: str) -> torch.nn.Module:
    of, _, short = name.rpartition(":")
    trial.candidate = CANDIDATES[of or "jactus", short]
    model = trial.start(trial.candidate.arm, 0.5)[0]
    assert isinstance(model, torch.nn.Module)
    return model


@pytest.mark.parametrize("name", ["rotated", "whitened"])
def test_coordinates_of_a_core_change_no_product(trial: Trial, name: str) -> None:
    plain, turned = started(trial, "default"), started(trial, name)
    for path, layer in plain.named_modules():
        if isinstance(layer, CoreLinear):
            other = turned.get_submodule(path)
            assert isinstance(other, CoreLinear)
            torch.testing.assert_close(other.left @ other.core() @ other.right, layer.left @ layer.core() @ layer.right)
            assert not torch.allclose(other.core(), layer.core())


def test_in_whitened_coordinates_a_core_reads_inputs_of_one_variance(trial: Trial) -> None:
    plain, turned = started(trial, "default"), started(trial, "whitened")
    for name, layer in turned.named_modules():
        if isinstance(layer, CoreLinear):
            moment = trial.moments(adapted=True)[name].input
            assert moment is not None
            other = plain.get_submodule(name)
            assert isinstance(other, CoreLinear)
            before = other.right @ moment.matrix.float() @ other.right.mT
            after = layer.right @ moment.matrix.float() @ layer.right.mT
            assert torch.linalg.cond(after) < torch.linalg.cond(before)
            spread = after - torch.diag(after.diagonal())
            assert spread.abs().max() < 1e-3 * after.diagonal().max()


def test_vectors_add_all_parameters_with_one_dimension_and_nothing_else(trial: Trial) -> None:
    before, after = (
        {name for name, one in started(trial, which).named_parameters() if one.requires_grad}
        for which in ("default", "vectors")
    )
    model = started(trial, "default")
    assert after - before
    assert after == before | {name for name, one in model.named_parameters() if one.ndim == 1}


@pytest.mark.parametrize("name", ["orthogonal core", "diagonal core"])
def test_another_core_starts_at_the_same_matrix_and_trains_less(trial: Trial, name: str) -> None:
    default, changed = (started(trial, f"jactus-corrected:{which}") for which in ("default", name))
    pairs = [(default.get_submodule(path), one) for path, one in changed.named_modules() if isinstance(one, CoreLinear)]
    assert pairs
    for before, after in pairs:
        assert isinstance(before, CoreLinear)
        torch.testing.assert_close(after.core(), before.core())
        trained = [sum(one.numel() for one in layer.core.parameters()) for layer in (after, before)]
        assert 0 < trained[0] < trained[1]


def test_ranks_are_bought_by_roots_of_gains_where_a_candidate_says_so(trial: Trial) -> None:
    spectrum = Spectrum("layer", 8, 8, [16.0, 4.0, 1.0], 25.0)
    trial.candidate = CANDIDATES["jactus", "roots of gains"]
    assert trial.bent(spectrum) == Spectrum("layer", 8, 8, [4.0, 2.0, 1.0], 5.0)
    trial.candidate = CANDIDATES["jactus", "default"]
    assert trial.bent(spectrum) == spectrum


def test_a_candidate_is_trained_by_its_own_lessons(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Distillation] = []
    adapt_ = candidates.adapt.adapt_

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.append(options["distillation"])
        return adapt_(*arguments, **options)

    monkeypatch.setattr("bench.adapt.adapt_", spy)
    for name in ("default", "predictions 0.9"):
        trial.candidate = CANDIDATES["jactus", name]
        trial.run(trial.candidate.arm, 0.5, 1e-3)
    assert [one.predictions for one in seen[-2:]] == [Distillation().predictions, 0.9]


def test_the_unseen_rows_are_those_of_train_beyond_the_limit(tiny_suite: Callable[..., Suite], tmp_path: Path) -> None:
    suite = tiny_suite()
    assert not isinstance(suite.train, tuple)
    limited = replace(suite, train=suite.train.model_copy(update={"limit": 20}))
    whole, part = Bench(suite, 0, 0.0, tmp_path, probe=False), Trial(limited, 0, 0.0, tmp_path, probe=False)
    (unseen,) = part.data.measured.values()
    assert len(part.data.train) == 20
    assert len(unseen) == len(whole.data.train) - 20


def test_a_candidate_is_run_once_and_held_against_the_default(
    tiny_suite: Callable[..., Suite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SUITES, "banking77", replace(tiny_suite(), name="banking77"))
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "candidates.py",
            "banking77",
            "--names",
            "default",
            "whitened",
            "svdllm-lora:default",
            "--budgets",
            "0.5",
            "--models",
            str(tmp_path / "models"),
            "--out",
            str(tmp_path / "rows.jsonl"),
        ],
    )
    for _ in range(2):
        assert candidates.main() == 0
        rows = read(tmp_path / "rows.jsonl")
        assert [(row["arm"], row["what"]) for row in rows] == [
            ("jactus", "default"),
            ("jactus", "whitened"),
            ("svdllm-lora", "default"),
        ]
    assert rows[0]["against_default"]["difference"] == 0
    assert rows[1]["trainable"] == rows[0]["trainable"]
