"""`plan.budget: auto` on a tiny model: trials, resumption, what stands in the folder, and every way to fail."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compressor import adapt, bisection, factorize, line, pipeline, probing, progress, proving, recipe
from compressor import search as searching
from compressor.artifact import SEARCH, TRIALS, Artifact, reseal, verify
from compressor.cli import app
from compressor.errors import ArtifactError, BudgetError, DataError, GateError, RecipeError
from compressor.files import file_digest
from compressor.packaging.assemble import package
from compressor.search import TrialLine
from exporters.record import EXPORT_FILE
from validators import compare
from validators.base import Finding
from validators.export_report import ExportReport
from validators.report import Report

AUTO = "plan={budget: auto, multiple_of: 4}"
Search = Callable[..., Report]
Gates = Callable[[float, str], dict[str, bool]]  # of a budget and a split: whether the gate on each quantity holds


def asked(task: Path, *settings: str) -> recipe.Recipe:
    return recipe.read(task, [AUTO, *settings])


def written(out: Path) -> dict[str, Any]:
    return json.loads((out / SEARCH).read_text())


def budgets(out: Path) -> list[float]:
    return [trial["budget"] for trial in written(out)["trials"]]


@pytest.fixture(scope="module")
def task(tiny_task: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of seconds, not to be changed."""
    return tiny_task(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def found(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of two trials, whose gates all hold, measured in earnest; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "auto"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bisection, "TRIALS", 2)
        assert pipeline.run(asked(task), out).verdict == "pass"
    return out


# ---- a search that finds something, measured in earnest ----


def test_the_smallest_budget_that_held_stands_in_the_folder(found: Path) -> None:
    chosen = min(budgets(found))
    trial = found / TRIALS / f"{chosen:.3f}"
    assert written(found)["chosen"] == chosen == Artifact.open(found).plan.budget
    for name in ("model.safetensors", "plan.json", "exports/onnx-fp32/model.onnx", "baseline/model.safetensors"):
        assert file_digest(found / name) == file_digest(trial / name), name
    assert Artifact.open(found).manifest["recipe"]["plan"]["budget"] == "auto"


def test_the_folder_and_every_trial_are_sealed_by_themselves(found: Path, tmp_path: Path) -> None:
    for folder in (found, *(found / TRIALS).iterdir()):
        verify(folder)
    copy = Path(shutil.copytree(found, tmp_path / "copy"))
    trial = copy / TRIALS / f"{max(budgets(found)):.3f}"
    (trial / "notes.txt").write_text("mine")
    verify(copy)
    with pytest.raises(ArtifactError, match=r"notes\.txt is not in the manifest"):
        verify(trial)


def test_trials_are_measured_on_the_rows_that_were_held_out_and_the_winner_on_the_evaluation_data(found: Path) -> None:
    """60 rows, a fifth of them held out; 30 rows to evaluate on."""
    winner, trial = (Report.read(folder).context["data"]["evaluation"] for folder in (found, one_trial(found)))
    assert (winner["rows"], trial["rows"]) == (30, 12)
    assert "held out of train" in trial["path"]
    assert Report.read(found).exports[0].finding("accuracy").details["n"] == 30  # type: ignore[union-attr]
    assert Report.read(one_trial(found)).exports[0].finding("accuracy").details["n"] == 12  # type: ignore[union-attr]


def one_trial(out: Path) -> Path:
    return out / TRIALS / f"{budgets(out)[0]:.3f}"


def test_trials_compare_with_each_other_but_not_with_the_winner(found: Path) -> None:
    one, other = (found / TRIALS / f"{budget:.3f}" for budget in budgets(found))
    compare.compare(*compare.read(one, other), {})
    with pytest.raises(DataError, match="evaluation data differs"):
        compare.compare(*compare.read(one, found), {})


def test_the_report_shows_what_was_tried(found: Path) -> None:
    page, text = (found / "report.html").read_text(), (found / "report.md").read_text()
    assert "Budgets tried" in page
    assert "Accuracy against size of the matrices" in page
    assert "hold, chosen" in page
    assert "### Budgets tried" in text
    assert all(f"{budget:.3f}" in str(Report.read(found)) for budget in budgets(found))


def test_a_validation_of_the_winner_later_says_the_same_and_breaks_no_seal(found: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(found, tmp_path / "copy"))
    again = proving.validate(copy)
    assert again.context["search"] == written(found)
    verify(copy)


def test_a_finished_search_that_is_resumed_does_not_measure_its_winner_again(
    found: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(found, tmp_path / "copy"))
    monkeypatch.setattr(bisection, "TRIALS", 2)
    monkeypatch.setattr(searching, "validate", lambda *_, **__: pytest.fail("the evaluation data was used twice"))
    assert pipeline.run(asked(task), copy, resume=True).to_dict() == Report.read(found).to_dict()


def test_the_winner_is_packaged_like_any_other(found: Path, tmp_path: Path) -> None:
    assert package(found, tmp_path / "auto.tar.gz").export == "onnx-fp32"


def test_a_packaged_trial_says_that_its_rows_chose_something(found: Path, tmp_path: Path) -> None:
    package(one_trial(found), tmp_path / "trial.tar.gz")
    shutil.unpack_archive(tmp_path / "trial.tar.gz", tmp_path, filter="data")
    card = (tmp_path / "model-onnx-fp32" / "README.md").read_text()
    assert "12 validation rows" in card
    assert "chosen" in card


# ---- searches over gates that are known: exports and measurements are stood in for ----


def stand_in(artifact: Artifact, recipe: recipe.Recipe) -> None:
    """Exports that nobody runs."""
    for folder in (artifact.path / "exports" / "onnx-fp32", artifact.path / "baseline" / "onnx-fp32"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / EXPORT_FILE).write_text('{"runtime": "onnx", "precision": "fp32"}')
    reseal(artifact.path)


def judge(gates: Gates) -> Callable[..., Report]:
    """A measurement whose gates hold or not by budget and split."""

    def validate(artifact: Artifact, **_code: Any) -> Report:
        held = gates(artifact.plan.budget, artifact.manifest["recipe"]["validate"]["split"])
        findings = tuple(_finding(quantity, ok) for quantity, ok in held.items())
        context = {"search": written(artifact.path)} if (artifact.path / SEARCH).is_file() else {}
        report = Report((ExportReport("onnx-fp32", "onnx", "fp32", "candidate", findings),), context)
        (artifact.path / "report.json").write_text(json.dumps(report.to_dict()))
        return report

    return validate


def _finding(quantity: str, ok: bool) -> Finding:
    better: Any = "lower" if quantity in ("size", "latency_p50") else "higher"
    verdict: Any = "pass" if ok else "fail"
    return Finding(quantity, "", better, 0.9, 0.8, limit=0.8, verdict=verdict)


@pytest.fixture
def search(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """Runs (or resumes) a search in `tmp_path / "run"` over gates that are given by budget and split."""

    def run(gates: Gates, *settings: str, trials: int = 6, stops: dict[str, int] | None = None, **more: Any) -> Report:
        steps: dict[str, Callable[..., Any]] = {"export_all": stand_in, "validate": judge(gates)}
        monkeypatch.setattr(bisection, "TRIALS", trials)
        for name, step in steps.items():
            monkeypatch.setattr(searching, name, stopping(step, (stops or {}).get(name)))
        return pipeline.run(asked(task, *settings), tmp_path / "run", **more)

    return run


def stopping(step: Callable[..., Any], last: int | None) -> Callable[..., Any]:
    """The same step, interrupted when it is taken for the last time."""
    calls: list[None] = []

    def taken(*values: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == last:
            raise KeyboardInterrupt
        return step(*values, **options)

    return taken


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """A list that grows by one with each call."""
    calls, step = list[None](), getattr(owner, name)

    def taken(*values: Any, **options: Any) -> Any:
        calls.append(None)
        return step(*values, **options)

    monkeypatch.setattr(owner, name, taken)
    return calls


def least(budget: float) -> Gates:
    return lambda tried, split: {"accuracy": tried >= budget}


def test_what_does_not_depend_on_the_budget_is_made_once(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes, calibrations = counted(monkeypatch, probing, "probe_head_"), counted(monkeypatch, line, "calibrate")
    decompositions, trainings = counted(monkeypatch, factorize, "decompose"), counted(monkeypatch, adapt, "adapt_")
    search(least(0.6), trials=3)
    assert len(budgets(tmp_path / "run")) == 3
    assert [len(calls) for calls in (probes, calibrations, decompositions, trainings)] == [1, 1, 1, 1 + 3]


def test_a_trial_is_the_run_that_its_budget_makes_by_itself(search: Search, task: Path, tmp_path: Path) -> None:
    search(least(0.0), trials=2)
    budget = budgets(tmp_path / "run")[1]
    settings = [f"plan={{budget: {{parameters: {budget}}}, multiple_of: 4}}"]
    alone = pipeline.compress(recipe.read(task, settings), tmp_path / "alone")
    trial = tmp_path / "run" / TRIALS / f"{budget:.3f}"
    assert file_digest(alone.path / "model.safetensors") == file_digest(trial / "model.safetensors")


@pytest.mark.parametrize(
    ("owner", "step", "last", "trained"),
    [
        (TrialLine, "_choose", 2, 1),
        (TrialLine, "adapt", 2, 1),
        (TrialLine, "fold", 2, 0),
        (line, "seal", 2, 0),
        (searching, "export_all", 2, 0),
        (searching, "validate", 2, 0),
        (line, "seal", 3, 0),
        (searching, "validate", 3, 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).rpartition(".")[2],
)
def test_a_search_that_was_killed_goes_on_at_the_trial_and_stage_where_it_was(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str, last: int, trained: int
) -> None:
    """Two trials and the winner: a third call of a step is the winner's."""
    with monkeypatch.context() as patch:
        if owner is not searching:
            patch.setattr(owner, step, stopping(getattr(owner, step), last))
        with pytest.raises(KeyboardInterrupt):
            search(least(0.0), trials=2, stops={step: last})
    trainings = counted(monkeypatch, adapt, "adapt_")
    report = search(least(0.0), trials=2, resume=True)
    assert len(trainings) == trained
    assert report.verdict == "pass"
    assert Artifact.open(tmp_path / "run").plan.budget == min(budgets(tmp_path / "run"))
    verify(tmp_path / "run")


def test_a_finished_search_that_is_resumed_tries_nothing_again(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(least(0.0), trials=2)
    before = written(tmp_path / "run")
    calls = [counted(monkeypatch, owner, name) for owner, name in ((adapt, "adapt_"), (factorize, "decompose"))]
    search(least(0.0), trials=2, resume=True)
    assert calls == [[], []]
    assert written(tmp_path / "run") == before


def test_nothing_is_overwritten_unasked(search: Search, tmp_path: Path) -> None:
    search(least(0.0), trials=1)
    with pytest.raises(ArtifactError, match="--resume to go on or --overwrite"):
        search(least(0.0), trials=1)


def test_a_trial_that_was_edited_is_not_taken_for_the_winner(search: Search, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(least(0.0), trials=1, stops={"validate": 2})
    out = tmp_path / "run"
    (out / TRIALS / f"{budgets(out)[0]:.3f}" / "plan.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"plan\.json has been changed"):
        search(least(0.0), trials=1, resume=True)


def test_a_gate_that_no_budget_meets_is_named_after_the_largest(search: Search, tmp_path: Path) -> None:
    out = tmp_path / "run"
    report = search(lambda budget, split: {"accuracy": budget > 0.4, "parity": False})
    assert budgets(out) == [0.5, max(written(out)["budgets"])]
    with pytest.raises(GateError) as error:
        report.raise_for_gates()
    for said in (
        "low-rank is not the answer here",
        "Whatever the budget, the gate on parity of onnx-fp32 does not hold",
        f"The closest is {max(budgets(out)):.3f}",
    ):
        assert said in str(error.value)
    assert "low-rank is not the answer here" in (out / "report.html").read_text()
    with pytest.raises(ArtifactError, match=r"no trial won: .*search\.json"):
        Artifact.open(out)


def test_a_search_whose_record_is_damaged_says_what_to_do_and_trains_nothing(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(least(0.0), trials=2, stops={"validate": 2})
    (tmp_path / "run" / SEARCH).write_text('{"schema_version": 1, "budgets": [0.5]}')
    trainings = counted(monkeypatch, adapt, "adapt_")
    with pytest.raises(
        ArtifactError, match=r"(?s)search\.json cannot be read:.*rows: Field.* remove it and go on with"
    ):
        search(least(0.0), trials=2, resume=True)
    (tmp_path / "run" / SEARCH).unlink()
    assert search(least(0.0), trials=2, resume=True).verdict == "pass"
    assert trainings == []


@pytest.mark.parametrize("now", [0.5, 1.0], ids=["another-is-chosen", "none-is-chosen"])
def test_what_stands_in_the_folder_is_not_passed_for_another_end_of_the_search(
    search: Search, tmp_path: Path, now: float
) -> None:
    out = tmp_path / "run"
    search(least(0.0), trials=2)
    before = Report.read(out).to_dict()
    stood = min(budgets(out))
    (out / SEARCH).unlink()
    with pytest.raises(ArtifactError, match=rf"Budget {stood:.3f} stands in .*/run, but the search now ends otherwise"):
        search(least(now), trials=2, resume=True)
    assert written(out)["chosen"] == (0.5 if now == 0.5 else None)
    assert Report.read(out).to_dict() == before


def test_gates_that_pull_apart_end_the_search_and_are_told(search: Search, tmp_path: Path) -> None:
    search(lambda budget, split: {"accuracy": budget >= 0.7, "size": budget <= 0.3})
    found = written(tmp_path / "run")
    assert budgets(tmp_path / "run") == [0.5]
    assert "At 0.500 accuracy would need a larger budget, size a smaller one." in found["conclusion"]


def test_a_winner_that_fails_on_the_evaluation_data_fails_with_what_to_try_next(search: Search, tmp_path: Path) -> None:
    report = search(lambda budget, split: {"accuracy": split == "validation"}, trials=2)
    smaller, larger = sorted(budgets(tmp_path / "run"))
    with pytest.raises(GateError) as error:
        report.raise_for_gates()
    said = " ".join(str(error.value).split())
    assert f"Budget {smaller:.3f} held its gates on the validation rows, but not on the evaluation data" in said
    assert f"Worth trying next is {larger:.3f}, which held" in said


def test_one_line_is_said_of_each_trial(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    progress.set_level("normal")
    try:
        search(least(0.6), trials=2)
    finally:
        progress.set_level("off")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  budget ")]
    assert len(lines) == 2
    assert re.match(
        r"  budget 0\.500 \(\d\d\.\d% of the matrices\): onnx-fp32 accuracy 80\.00% .*: fails accuracy$", lines[0]
    )
    assert lines[1].endswith(": holds")


# ---- faults ----


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["data.holdout=0"], "plan.budget: is auto and chosen on validation rows, of which there are none"),
        (["gates={}"], "plan.budget: is auto, but no gate limits accuracy or perplexity"),
        (["gates={size: {type: threshold, value: 9}}"], "no gate limits accuracy or perplexity"),
        (["validate.split=validation"], "validate.split: is validation, but plan.budget: auto proves its winner"),
        (["plan.path=recipe.yaml"], "plan.path: replays ranks, so plan.budget: auto has nothing to choose"),
        (["plan.budget=automatic"], "plan.budget"),
        (["plan.budget=0.5"], "plan.budget"),
    ],
)
def test_what_cannot_be_searched_is_told(task: Path, settings: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        asked(task, *settings)
    assert said in str(error.value)


def test_validation_rows_that_are_not_there_are_told(task: Path) -> None:
    with pytest.raises(RecipeError, match=r"validate\.split: is validation, of which there are none"):
        recipe.read(task, ["validate.split=validation", "data.holdout=0"])


@pytest.mark.parametrize("verb", [pipeline.compress, pipeline.plan])
def test_only_run_searches(task: Path, tmp_path: Path, verb: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match=r"auto is found by `run` alone.*plan\.budget=\{parameters: 0\.5\}"):
        verb(asked(task), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_layers_too_small_for_their_ranks_are_told(search: Search) -> None:
    with pytest.raises(BudgetError, match=r"plan\.multiple_of is too large"):
        search(least(0.0), "plan.multiple_of=64")


def test_a_dry_run_shows_the_search(task: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(task), "--dry-run", "--set", AUTO, "--out", "there"])
    assert done.exit_code == 0, done.output
    assert re.search(r"search +at most 6 budgets.* there/trials", done.output)
