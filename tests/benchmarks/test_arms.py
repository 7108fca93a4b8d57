"""Every arm on a small random BERT: it trains a step, its counts are true, and no row is made twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import adapters
import comparison
import numpy as np
import pytest
import rows as suite_rows
import torch
from arms import ARMS, DENSE, MATCHED, MATCHED_BUDGET, TAUGHT, Arm
from bench import Bench
from results import Rows
from suites import GROUPS, SUITES, Suite, chosen, named
from training_memory import training_bytes

from compressor import adapt, data, factorize, targets
from compressor.errors import InputError
from compressor.recipe import Source

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PLAIN = {"FactorizedLinear", "Linear"}
BASE = [arm for arm in ARMS.values() if not arm.name.endswith("-pretrained")]
LORAS = [name for name in adapters.ADAPTERS if name != "psoft"]


def needs_peft(arm: Arm) -> None:
    if arm.adapter:
        pytest.importorskip("peft", reason="needs peft: pip install 'rankfold[bench]'")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The bench that all arms share, once it is there."""
    return {"folder": tmp_path_factory.mktemp("bench")}


@pytest.fixture
def bench(shared: dict[str, Any], tiny_suite: Callable[..., Suite]) -> Bench:
    """One bench for all arms: its dense model is trained once."""
    if "bench" not in shared:
        shared["bench"] = Bench(tiny_suite(), 0, 0.0, shared["folder"], dense_rate=1e-3)
    return shared["bench"]


def kinds(model: Any) -> set[str]:
    return {type(one).__name__ for one in model.modules()}


def laid(bench: Bench, arm: Arm) -> tuple[Any, Callable[[], Any]]:
    """An arm's untrained model, and what folds or merges it."""
    model, _ = bench.start(arm, 0.5)
    if not arm.adapter:
        return model, partial(factorize.fold_, model)
    return model, adapters.lay_(model, arm.adapter, arm.rank or 4)


@pytest.mark.parametrize("arm", BASE, ids=lambda arm: arm.name)
def test_every_arm_learns_in_one_step_and_ends_as_plain_layers(bench: Bench, arm: Arm) -> None:
    needs_peft(arm)
    model, finish = laid(bench, arm)
    batch = bench.batches(bench.data.train, 8)[0]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    learned = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=1e-2)
    before = model.eval()(**batch).loss
    before.backward()
    optimizer.step()
    with torch.no_grad():
        after, logits = model(**batch).loss, model(**inputs).logits
        ended = finish().eval()
        assert after < before
        assert torch.allclose(ended(**inputs).logits, logits, atol=1e-4)
    assert {type(one).__name__ for one in ended.modules()} <= PLAIN | {
        type(one).__name__ for one in bench.probed.modules()
    }


@pytest.mark.parametrize("name", ["dense", "dense-lora", "jactus", "cersa-pretrained", "adapt-svdllm"])
def test_a_run_tells_quality_counts_and_costs(bench: Bench, name: str) -> None:
    arm = ARMS[name]
    needs_peft(arm)
    budget = 0.5 if arm.method else 1.0
    found = bench.run(arm, budget, bench.suite.rates_of(arm)[0])
    assert 0 <= found["accuracy"] <= 1
    assert found["kept"] <= budget
    assert found["retained"]["targets"] <= budget * sum(one.out_features * one.in_features for one in bench.targets)
    if arm.learns == "nothing":
        assert found["trainable"] == 0
        assert found["accuracy"] == found["before_training"]
    else:
        assert np.isfinite(found["final_loss"])
        assert found["training_bytes"]["peak"] > 0
        assert ("teacher" in found["training_bytes"]) == arm.taught


@pytest.mark.parametrize("name", LORAS)
def test_a_matched_adapter_trains_within_5_percent_of_jactus(bench: Bench, name: str) -> None:
    pytest.importorskip("peft", reason="needs peft: pip install 'rankfold[bench]'")
    wanted = adapt.trainable(bench.start(MATCHED, MATCHED_BUDGET)[0])
    model = copy.deepcopy(bench.probed)
    adapters.lay_(model, name, adapters.matching_rank(model, name, wanted))
    assert abs(adapt.trainable(model) / wanted - 1) < 0.05


@pytest.mark.parametrize("name", adapters.ADAPTERS)
def test_an_adapter_trains_the_numbers_that_its_row_counts(bench: Bench, name: str) -> None:
    pytest.importorskip("peft", reason="needs peft: pip install 'rankfold[bench]'")
    model, rank = copy.deepcopy(bench.probed), 3
    head = sum(one.numel() for one in targets.head_parameters(model).values())
    counted = sum(adapters.ADAPTERS[name].numbers(one.out_features, one.in_features, rank) for one in bench.targets)
    adapters.lay_(model, name, rank)
    assert adapt.trainable(model) == head + counted


@pytest.mark.parametrize("name", adapters.ADAPTERS)
def test_an_untrained_adapter_merges_into_the_dense_model(bench: Bench, name: str) -> None:
    pytest.importorskip("peft", reason="needs peft: pip install 'rankfold[bench]'")
    model = copy.deepcopy(bench.probed).eval()
    batch = {key: value for key, value in bench.batches(bench.data.train, 4)[0].items() if key != "labels"}
    with torch.no_grad():
        before = model(**batch).logits
        merged = adapters.lay_(model, name, 4)()
        after = merged.eval()(**batch).logits
    assert torch.allclose(before, after, atol=1e-4)
    assert [key for key, _ in merged.named_parameters()] == [key for key, _ in bench.probed.named_parameters()]


def test_psoft_stops_at_the_smallest_side_of_a_target(bench: Bench) -> None:
    assert adapters.matching_rank(bench.probed, "psoft", 10**9) == 32


@pytest.mark.parametrize("arm", TAUGHT, ids=lambda arm: arm.name)
def test_every_compressed_arm_can_start_as_published_instead(arm: Arm) -> None:
    twin = ARMS[f"{arm.name}-pretrained"]
    assert (twin.method, twin.strategy, twin.learns) == (arm.method, arm.strategy, arm.learns)
    assert (arm.taught, twin.taught, twin.needs_dense) == (True, False, False)


def test_what_arms_are_called_is_never_told_twice() -> None:
    assert len({arm.label for arm in ARMS.values()} - {""}) >= len(ARMS) - 1  # svd and the like, truncated or adapted
    assert all("|" not in arm.label for arm in ARMS.values())


def test_a_second_call_runs_nothing_again(
    tiny_suite: Callable[..., Suite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "SELECT_BUDGET", 0.5)  # of so small a model 0.3 cannot be kept
    rates = {"weights": (1e-4, 1e-3), "factors": (1e-3, 2e-3)}
    suite, rows = tiny_suite(rates=rates, before=False), Rows(tmp_path / "rows.jsonl")
    arms = comparison.arms_of(suite, ["jactus"])
    assert [arm.name for arm in arms] == ["dense", "jactus"]  # which teaches it
    for _ in range(2):
        comparison.select(rows, suite, arms, tmp_path / "models")
        comparison.final(rows, suite, arms, 0, tmp_path / "models")
        rows = Rows(rows.path)
        assert len(rows.find(phase="select")) == 4
        assert len(rows.find(phase="final")) == 2
    chosen_rate = comparison.best_rate(rows, suite, ARMS["jactus"])
    assert rows.find(phase="final", arm="jactus")[0]["learning_rate"] == chosen_rate
    assert (tmp_path / "models" / "tiny-jactus-0.5-0" / "plan.json").is_file()


def test_full_fine_tuning_is_measured_again_on_a_machine_that_has_no_row_of_it(
    tiny_suite: Callable[..., Suite], tmp_path: Path
) -> None:
    suite, rows = tiny_suite(rates={"weights": (1e-3,)}, before=False), Rows(tmp_path / "rows.jsonl")
    rows.add({"phase": "final", "suite": suite.name, "arm": "dense", "budget": 1.0, "seed": 0, "gpu": "a card"})
    for _ in range(2):
        comparison.final(rows, suite, [DENSE], 0, tmp_path / "models")
        assert [row["gpu"] for row in rows.find(arm="dense")] == ["a card", comparison._here()["gpu"]]


def test_a_rate_is_chosen_by_held_out_accuracy_or_loss_and_of_equals_the_lower_one(tmp_path: Path) -> None:
    suite, rows = SUITES["trec"], Rows(tmp_path / "rows.jsonl")

    def tried(arm: str, **fields: Any) -> None:
        rows.add({"phase": "select", "suite": "trec", "arm": arm} | fields)

    for rate, accuracy in ((1e-4, 0.8), (2e-4, 0.9), (4e-4, 0.9)):
        tried("dense", learning_rate=rate, accuracy=accuracy)
    for rate, loss in ((1e-3, 2.0), (2e-3, 1.5)):
        tried("jactus", learning_rate=rate, accuracy=1 - loss / 4, held_out_loss=loss)
    assert comparison.best_rate(rows, suite, DENSE) == 2e-4
    assert comparison.best_rate(rows, suite, ARMS["jactus"]) == 2e-3


def test_the_held_out_loss_is_that_of_the_labels(tiny_suite: Callable[..., Suite], tmp_path: Path) -> None:
    bench = Bench(tiny_suite(), 0, 0.4, tmp_path, probe=False)
    (split,) = bench.data.measured.values()
    assert (len(split), len(bench.data.train)) == (24, 36)  # of 60; three whole batches of 8
    logits = data.outcomes(bench.probed, bench.task, data.posed(split, bench.task, bench.processor))
    shifted = logits.values - logits.values.max(-1, keepdims=True)
    chances = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    expected = -np.log(chances[np.arange(24), logits.labels]).mean()
    assert bench.held_out_loss(bench.probed) == pytest.approx(expected, rel=1e-4)


def test_one_source_gives_the_rows_that_a_run_of_the_recipe_would(tiny_suite: Callable[..., Suite]) -> None:
    from suites import located

    from compressor.recipe import DataSection

    suite = tiny_suite(train=Source(path="data", limit=40))
    processor = suite.processor(suite.checkpoint)
    for holdout in (0.0, 0.25):
        section = DataSection(
            train=located(suite.train),
            evaluation=located(suite.evaluation),
            holdout=holdout,
            calibration=suite.calibration,
        )
        theirs = data.prepare(section, suite.task, processor, suite.max_length, 3)
        ours = suite_rows.prepare(suite, processor, holdout=holdout, seed=3)
        (measured,) = ours.measured.values()
        assert ours.train.to_list() == theirs.train.to_list()
        assert ours.calibration.to_list() == theirs.calibration.to_list()
        assert measured.to_list() == (theirs.validation if holdout else theirs.evaluation).to_list()
        assert ours.digests == {name: theirs.facts[name]["digest"] for name in ("train", "evaluation")}


def test_several_sources_are_learned_together_and_each_set_is_measured(
    tiny_suite: Callable[..., Suite], tmp_path: Path
) -> None:
    sources = (Source(path="data", limit=20), Source(path="data", split="test"))
    suite = tiny_suite(train=sources, others={"again": Source(path="data", limit=10)}, select_rows=10)
    found = Bench(suite, 0, 0.0, tmp_path).run(DENSE, 1.0, 1e-3)
    assert found["rows"] == {"train": 50, "measured": 40}
    assert set(found["sets"]) == {"data", "again"}
    assert found["accuracy"] == pytest.approx(sum(found["sets"].values()) / 2)
    assert [one.limit for one in suite.sources(holdout=0.1)] == [5, 5]


def test_every_suite_of_a_group_is_there_and_has_rates_for_all_its_arms() -> None:
    for suite in chosen(sorted(GROUPS), full=False):
        assert all(suite.rates_of(arm) for arm in suite.arms)
        assert len(suite.seeds) == 3
        assert named(suite.at_full_size().name) == suite.at_full_size()


def test_a_missing_folder_is_told_by_the_variable_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKFOLD_MODELS", raising=False)
    with pytest.raises(InputError, match=r"\$RANKFOLD_MODELS is not set"):
        _ = SUITES["trec"].checkpoint


def test_training_memory_counts_every_part(tiny_bert: Callable[..., Any]) -> None:
    model = tiny_bert().train()
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.long), "labels": torch.zeros(2, dtype=torch.long)}
    found = training_bytes(model, lambda: model(**batch).loss)
    numbers = 4 * sum(one.numel() for one in model.parameters())
    assert found["gradients"] == numbers
    assert found["optimizer"] == 2 * numbers
    assert found["peak"] == sum(found[key] for key in ("weights", "gradients", "optimizer", "activations"))
