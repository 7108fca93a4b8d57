"""Plans that measure: what a recipe may ask, which rows reach a layer, and a tiny BERT timed in ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compressor import display, recipe
from compressor.errors import ModelError, RecipeError
from compressor.measured import Table, sites
from compressor.planning import Plan, PlanLayer
from compressor.timings import Curve, Site

GOOD = """\
model: {path: a/b}
data:
  train:      {path: c/d}
  evaluation: {path: c/d, split: test}
"""


def read(tmp_path: Path, text: str, *settings: str) -> recipe.Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD + text)
    return recipe.read(path, settings)


# ---- the recipe ----


def test_a_budget_is_in_one_quantity() -> None:
    assert (recipe.Budget().quantity, recipe.Budget().share) == ("parameters", 0.5)
    for quantity in ("parameters", "latency", "memory"):
        found = recipe.Budget.model_validate({quantity: 0.6})
        assert (found.quantity, found.share) == (quantity, 0.6)
        assert found.model_dump() == {quantity: 0.6}
        assert recipe.Budget.model_validate(found.model_dump()) == found


def test_a_latency_budget_is_measured_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    found = read(tmp_path, "plan: {budget: {latency: 0.6}}\n").plan
    assert (found.strategy, found.times_layers, found.measures) == ("measured", True, True)
    found = read(tmp_path, "plan: {budget: {latency: 0.6}, strategy: gain}\n").plan
    assert (found.strategy, found.times_layers, found.measures) == ("gain", True, True)
    found = read(tmp_path, "plan: {budget: {memory: 0.6}}\n").plan
    assert (found.strategy, found.times_layers, found.measures) == ("gain", False, True)
    found = read(tmp_path, "plan: {strategy: measured}\n").plan
    assert (found.budget.share, found.times_layers, found.measures) == (0.5, True, True)
    found = read(tmp_path, "").plan
    assert (found.strategy, found.times_layers, found.measures) == ("gain", False, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plan: {budget: {latency: 0.6, memory: 0.5}}\n", "plan.budget: names latency and memory; keep one of them"),
        ("plan: {budget: {parameters: 0.5, latency: 0.6}}\n", "plan.budget: names parameters and latency; keep one"),
        ("plan: {budget: {parameters: null}}\n", "plan.budget: names nothing to keep to: a budget is in parameters,"),
        ("plan: {budget: {latency: 1.5}}\n", "plan.budget.latency: must be less than or equal to 1, not 1.5"),
        ("plan: {budget: {memory: 0}}\n", "plan.budget.memory: must be greater than 0, not 0"),
        ("plan: {budget: {latncy: 0.5}}\n", "plan.budget.latncy: unknown key. Did you mean 'latency'?"),
        ("plan: {budget: {latency: 0.6}}\nexport: []\n", "plan.budget.latency: is measured on the first export, but"),
        ("plan: {budget: {memory: 0.6}}\nexport: []\n", "plan.budget.memory: is measured on the first export, but"),
        ("plan: {strategy: measured}\nexport: []\n", "plan.strategy: is measured on the first export, but `export` is"),
        (
            "plan: {strategy: measured}\nexport: [{runtime: torch-export}]\n",
            "plan.strategy: times layers on the runtime of the first export, torch-export, which cannot time them; put "
            "an export of onnx or ort first.",
        ),
        ("plan: {budget: {latency: 0.5}, layout: pivoted}\n", "plan.layout: pivoted layers cannot be timed: use two-"),
        ("plan: {strategy: measured}\nvalidate: {device: cuda}\n", "validate.device: layers are timed on the cpu only"),
    ],
)
def test_a_budget_that_cannot_be_measured_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)


def test_all_that_keeps_a_plan_from_measuring_is_said_at_once(tmp_path: Path) -> None:
    text = "plan: {budget: {latency: 0.5}, layout: pivoted}\nexport: [{runtime: torch-export}]\n"
    with pytest.raises(RecipeError, match="has 3 faults") as caught:
        read(tmp_path, text + "validate: {device: cuda}\n")
    assert all(name in str(caught.value) for name in ("plan.budget.latency", "plan.layout", "validate.device"))


def test_memory_may_be_measured_where_layers_cannot_be_timed(tmp_path: Path) -> None:
    text = "plan: {budget: {memory: 0.5}, layout: pivoted}\nexport: [{runtime: torch-export}]\n"
    assert read(tmp_path, text).plan.measures


def test_a_replayed_plan_measures_nothing(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    found = read(tmp_path, "plan: {path: ./plan.json, budget: {latency: 0.5}}\nexport: []\ngates: {}\n")
    assert not found.plan.measures


def test_the_stages_name_the_budgets_quantity(tmp_path: Path) -> None:
    found = read(tmp_path, "plan: {budget: {latency: 0.6}}\n")
    rows = {row[0]: row[1] for row in display.stages(found, None)}
    assert rows["plan"] == "measured, keep 60.0% of the latency"


# ---- what is printed and kept ----


def test_a_plan_says_what_was_foretold_and_what_was_measured(tmp_path: Path) -> None:
    layers = (PlanLayer("query", 100, 50, 8, 34, 1200, 0.9),)
    plan = Plan("measured", 0.6, "two-factor", 8, layers, quantity="latency", predicted=0.58, measured=0.61)
    said = display.plan_table(plan).splitlines()[-1]
    assert said.endswith("budget 60.0% of dense fp32's latency, 58.0% predicted, 61.0% measured untrained")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_a_plan_of_before_is_one_of_parameters(tmp_path: Path) -> None:
    layers = (PlanLayer("query", 100, 50, 8, 34, 1200, 0.9),)
    Plan("gain", 0.6, "two-factor", 8, layers).save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    for key in ("quantity", "predicted", "measured"):
        del data[key]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    assert Plan.load(tmp_path / "plan.json").quantity == "parameters"


# ---- calls ----


class Shared(nn.Module):
    """One linear layer that is called twice, a convolution, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 8, 4, stride=4)
        self.twice, self.idle = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        rows = self.image(pixels).flatten(2).mT  # (B, 4, 8)
        return self.twice(self.twice(rows))


def test_the_calls_of_every_layer_are_seen_with_their_rows() -> None:
    pixels = np.zeros((2, 3, 8, 8), np.float32)
    found = sites(Shared(), ["image", "twice"], {"pixels": pixels})
    row = Site(8, 8, (2, 4, 8), False)
    assert found["twice"] == [row, row]
    assert found["image"] == [Site(8, 48, (2, 3, 8, 8), True, (4, 4), (4, 4), (1, 1), (0, 0, 0, 0))]
    with pytest.raises(ModelError, match="does not call idle on the inputs"):
        sites(Shared(), ["twice", "idle"], {"pixels": pixels})


def test_a_layer_that_is_called_twice_costs_twice() -> None:
    row, other = Site(8, 8, (2, 4, 8), False), Site(8, 8, (2, 5, 8), False)
    curves = {row: Curve((2,), (3.0,), 5.0), other: Curve((2,), (4.0,), 6.0)}
    table = Table({"twice": [row, row], "both": [row, other]}, curves, "fake")
    spectrum: Any = type("Named", (), {"name": "twice"})
    assert (table.price(spectrum, 2), table.price(spectrum, None)) == (6.0, 10.0)
    spectrum.name = "both"
    assert (table.price(spectrum, 2), table.price(spectrum, None)) == (7.0, 11.0)
    assert table.record["layers"][0]["targets"] == ["twice", "twice", "both"]


# ---- a whole line, in seconds ----


@pytest.fixture
def tiny(tiny_task: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The ranks of the tiny recipe under other settings, in a cache of their own; gives the plan and its folder."""
    from compressor import pipeline

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tiny_task(tmp_path)

    def build(out: str, *settings: str) -> tuple[Plan, Path]:
        asked = recipe.read(path, ["plan.multiple_of=2", *settings])
        return pipeline.plan(asked, tmp_path / out), tmp_path / out

    return build


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.mark.slow
def test_a_tiny_bert_is_timed_in_onnx_runtime(tiny: Callable[..., Any], tmp_path: Path) -> None:
    plan, folder = tiny("timed", "plan.budget={latency: 1.0}")
    assert (plan.strategy, plan.quantity, plan.ranks, plan.measured) == ("measured", "latency", {}, 1.0)
    kept = json.loads((folder / "measured.json").read_text())
    assert {row["call"] for row in kept["layers"]} == {
        f"{shape} on 1x4x{width} with bias" for shape, width in (("32x32", 32), ("48x32", 32), ("32x48", 48))
    }
    assert sorted(name for row in kept["layers"] for name in row["targets"]) == sorted(row.name for row in plan.layers)
    assert all(time > 0 for row in kept["layers"] for time in row["microseconds"].values())
    assert kept["dense"]["slope"] > 0
    cached = json.loads((tmp_path / "cache" / "rankfold" / "timings.json").read_text())["microseconds"]
    assert sorted(map(len, cached.values())) == sorted(len(row["microseconds"]) for row in kept["layers"])
    digests = json.loads((folder / "run.json").read_text())["stages"]["plan"]["files"]
    assert "measured.json" in digests


@pytest.mark.slow
def test_a_budget_is_met_by_exports_and_a_replay_believes_only_ranks(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage is real but the stopwatch: a layer and a model take what their weights weigh."""
    from validators.end_to_end import Cost, EndToEnd

    def weighed(folder: Path) -> int:
        return json.loads((folder / "export.json").read_text())["matmul_weight_bytes"]

    def cost(self: EndToEnd, quantity: str, candidate: Path) -> Cost:
        return Cost(0.15, weighed(candidate) / weighed(self.dense))

    def timer(self: Any, site: Site, ranks: Any) -> list[float]:
        m, n = site.out_features, site.in_features
        return [m * n / 100, *(rank * (m + n) / 100 for rank in ranks)]

    monkeypatch.setattr(EndToEnd, "cost", cost)
    monkeypatch.setattr("exporters.onnx.timing.OnnxTimer.__call__", timer)
    plan, folder = tiny("weighed", "plan.budget={latency: 0.6}")
    assert plan.measured == pytest.approx(0.6, rel=0.05)
    assert plan.predicted == pytest.approx(plan.measured, abs=0.05)
    rounds = json.loads((folder / "measured.json").read_text())["rounds"]
    assert any(one["ratio"] == pytest.approx(plan.measured, abs=1e-4) for one in rounds)
    replace(plan, layers=(replace(plan.layers[0], rank=3), *plan.layers[1:])).save(tmp_path / "edited.json")
    replayed, _ = tiny("again", f"plan.path={tmp_path / 'edited.json'}")
    assert (replayed.layers[0].rank, replayed.measured, replayed.predicted) == (3, None, None)


def test_a_report_names_the_budget_and_what_was_measured() -> None:
    from validators.context import _budget

    plan = Plan("measured", 0.6, "two-factor", 8, (), quantity="latency", predicted=0.58, measured=0.61)
    assert _budget(plan) == {"budget": {"latency": 0.6}, "predicted": 0.58, "measured_untrained": 0.61}
    assert _budget(Plan("gain", 0.5, "two-factor", 8, ())) == {"budget": 0.5}
