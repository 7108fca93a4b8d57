"""The timed sides solve the same problem, a stage is measured once, and its table can be told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import decomposition
import numpy as np
import pytest
import straightforward
import torch
from costs import decomposition as table
from decomposition import BUDGETS, Job, bench_of, measure
from results import Rows, read
from suites import Suite

from compressor.targets import dense_layer


def job_of(suite: Suite, folder: Path, metric: decomposition.Metric) -> Job:
    return Job(bench_of(suite, 0, folder), metric)


@pytest.mark.parametrize("metric", decomposition.METRICS)
def test_both_sides_gather_the_same_moments(
    tiny_suite: Callable[..., Suite], tmp_path: Path, metric: decomposition.Metric
) -> None:
    ours, reference = job_of(tiny_suite(), tmp_path, metric).sides()
    ours.calibrate()
    reference.calibrate()
    for name, layer in reference.layers.items():
        pair = ours.moments[name]
        for side, moment in {"input": pair.input, "output": pair.gradient}.items():
            assert (side in layer.sums) == (moment is not None)
            if moment is not None:
                count = layer.rows if side == "input" else ours.job.rows  # gradients: of a text's label
                expected = (layer.sums[side] / count).numpy()
                np.testing.assert_allclose(moment.matrix, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("metric", decomposition.METRICS)
def test_both_sides_lose_the_same_and_are_measured_once(
    tiny_suite: Callable[..., Suite], tmp_path: Path, metric: decomposition.Metric
) -> None:
    job, path = job_of(tiny_suite(), tmp_path, metric), tmp_path / "rows.jsonl"
    for _ in range(2):
        measure(Rows(path), job, 1, lambda side: {"ours": 1.0, "reference": 2.0}[side])
        rows = {row["stage"]: row for row in read(path)}
        assert list(rows) == ["calibrate", "first", "next", "quality", "memory"]
        assert len(read(path)) == 5
    found = rows["quality"]
    assert found["same_ranks"]
    assert found["largest_difference"] < 1e-3
    assert found["loss"]["ours"] == pytest.approx(found["loss"]["reference"], rel=1e-3)
    assert found["error"]["ours"] > 1e-3
    assert min(rows["first"]["ours"] + rows["first"]["reference"]) > 0
    *_, line = table(read(path))
    assert line.count("|") == 9
    assert "1 / 2 MiB" in line


def test_the_reference_is_the_truncated_svd_of_the_scaled_weight(
    tiny_suite: Callable[..., Suite], tmp_path: Path
) -> None:
    job = job_of(tiny_suite(), tmp_path, "both")
    _, reference = job.sides()
    reference.calibrate()
    reference.first()
    name, rank = next(iter(reference.plans[BUDGETS[0]].ranks.items()))
    layer, weight = reference.layers[name], dense_layer(job.model, name).weight.detach().double().numpy()
    roots = [np.linalg.cholesky(damped(layer, side)) for side in ("output", "input")]
    u, s, vt = np.linalg.svd(roots[0].T @ weight @ roots[1])
    expected = np.linalg.solve(roots[0].T, (u[:, :rank] * s[:rank]) @ vt[:rank]) @ np.linalg.inv(roots[1])
    down, up = (one.weight.detach().double().numpy() for one in reference.made.get_submodule(name))
    np.testing.assert_allclose(up @ down, expected, atol=1e-4 * np.abs(expected).max())


def damped(layer: straightforward.Layer, side: str) -> np.ndarray:
    moment = (layer.sums[side] / layer.rows).double().numpy()
    return moment + 0.01 * np.diag(moment).mean() * np.eye(len(moment))


def test_the_dense_model_is_left_as_it_was(tiny_suite: Callable[..., Suite], tmp_path: Path) -> None:
    job = job_of(tiny_suite(), tmp_path, "input")
    before = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    for side in job.sides():
        side.calibrate()
        side.first()
    after = job.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_line_whose_stages_are_not_all_there_is_left_out() -> None:
    assert len(list(table([{"suite": "trec", "metric": "input", "rows": 8, "stage": "calibrate"}]))) == 2
