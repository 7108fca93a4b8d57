"""The ablations: what they count is right, and a variation is run once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ablations
import pytest
import torch
from bench import Bench
from results import Rows, read
from suites import Suite
from tables import ablations as table

from compressor import factorize, linalg
from compressor.methods.jactus import Jactus
from compressor.targets import find_targets


@pytest.fixture(autouse=True)
def _half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so small a model three tenths cannot be kept."""
    monkeypatch.setattr(ablations, "BUDGET", 0.5)


def test_what_a_basis_holds_is_1_inside_it_0_outside_and_the_share_of_the_dimensions_by_chance() -> None:
    eye = torch.eye(6, dtype=torch.float64)
    assert ablations.held(eye[:, :3], eye[:, :2]) == 1
    assert ablations.held(eye[:, :3], eye[:, 4:]) == 0
    random = [torch.linalg.qr(torch.randn(60, 15, dtype=torch.float64)).Q for _ in range(40)]
    assert sum(ablations.held(one, torch.eye(60).double()[:, :4]) for one in random) / 40 == pytest.approx(
        0.25, abs=0.03
    )


def test_a_larger_share_of_the_union_holds_more_of_the_task_directions(
    tiny_suite: Callable[..., Suite], tmp_path: Path
) -> None:
    bench, found = Bench(tiny_suite(), 0, 0.1, tmp_path), {}
    for share in (0.0, 0.5):
        arm = ablations.Variation("union", str(share), Jactus(union=share)).arm
        shares = ablations.overlaps(bench.decomposed(arm), bench.plan(arm, 0.5), bench.moments(adapted=False))
        found[share] = shares["gradient"]["held"]
    assert found[0.5] > found[0.0]


def test_the_projected_core_is_the_best_one_in_the_plain_norm_and_not_in_the_metric(
    tiny_suite: Callable[..., Suite], tmp_path: Path
) -> None:
    bench = Bench(tiny_suite(), 0, 0.1, tmp_path)
    arm = ablations.VARIATIONS[0].arm
    subspaces, plan = bench.decomposed(arm), bench.plan(arm, 0.5)
    plain = ablations.projected(bench.probed, subspaces, plan)
    name, rank = next(iter(plan.ranks.items()))
    weight = bench.probed.get_parameter(f"{name}.weight").detach().double()
    pair = bench.moments(adapted=False)[name]
    assert pair.gradient is not None
    assert pair.input is not None
    metrics = pair.gradient.metric(0.01), pair.input.metric(0.01)

    def errors(one: factorize.Subspace) -> tuple[float, float]:
        rest = weight - one.left @ one.core @ one.right
        return float(rest.norm()), float(linalg.whiten(rest, *metrics).norm())

    projection, weighted = errors(plain[name]), errors(subspaces[name].truncate(rank))
    assert projection[0] < weighted[0]
    assert projection[1] > weighted[1]


def test_every_variation_but_the_first_differs_in_one_knob() -> None:
    default, *others = ablations.VARIATIONS
    fields = ("method", "strategy", "samples", "probe", "projected", "blind")
    for one in others:
        assert sum(getattr(one, field) != getattr(default, field) for field in fields) == 1


def test_a_variation_is_run_once_and_its_row_can_be_told(tiny_suite: Callable[..., Suite], tmp_path: Path) -> None:
    chosen = tuple(one for one in ablations.VARIATIONS if one.axis in ("default", "core start"))
    for _ in range(2):
        ablations.ablate(Rows(tmp_path / "rows.jsonl"), tiny_suite(), 0, chosen)
        rows = read(tmp_path / "rows.jsonl")
        assert [(row["axis"], row["value"]) for row in rows] == [("default", ""), ("core start", "projection")]
    assert rows[0]["before_training"] is not None
    assert 0 < rows[0]["overlap"]["gradient"]["chance"] < 1
    assert sum(1 for _ in table(rows)) == 2 + 2


def test_layers_without_an_output_metric_are_truncated_by_their_inputs_alone(
    tiny_suite: Callable[..., Suite], tmp_path: Path
) -> None:
    bench = Bench(tiny_suite(), 0, 0.1, tmp_path)
    found = ablations.blinded(bench, ablations.Variation("output metric", "", blind=("query", "key")))
    names = [target.name for target in find_targets(bench.probed)]
    assert list(found) == [name for name in names if name.endswith(("query", "key"))]
    name, subspace = next(iter(found.items()))
    weight, moment = bench.probed.get_parameter(f"{name}.weight").detach().double(), bench.moments(adapted=False)[name]
    assert moment.input is not None
    root = torch.linalg.cholesky(moment.input.matrix.double() + 0.01 * moment.input.matrix.trace() / 32 * torch.eye(32))
    rank = 5
    kept = subspace.left[:, :rank] @ subspace.core[:rank, :rank] @ subspace.right[:rank]
    lost = ((weight - kept) @ root).square().sum()
    assert float(lost) == pytest.approx(float(torch.linalg.svdvals(weight @ root)[rank:].square().sum()), rel=1e-5)
