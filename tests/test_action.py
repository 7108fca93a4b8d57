"""action.yml: every input is used and documented, none reaches a script as text, and its steps do what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
BASH = ("bash", "--noprofile", "--norc", "-eo", "pipefail")  # what `shell: bash` is on a runner

PYTHON = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
told = json.loads({told!r})
if sys.argv[1:3] == ["-m", "pip"]:
    sys.exit(0)
if told and "compressor" in sys.argv:
    verb = sys.argv[sys.argv.index("compressor") + 1]
    if verb == "run" and told["run"] < 2:
        os.makedirs(os.environ["OUT"], exist_ok=True)
        with open(os.path.join(os.environ["OUT"], "report.json"), "w") as file:
            json.dump({{"verdict": "pass", "advice": "Deploy\\nit."}}, file)
    sys.exit(told[verb])
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


@dataclass
class Runner:
    """As much of a GitHub runner as the action needs: expressions, environment, outputs, and the order of steps."""

    folder: Path
    inputs: dict[str, str]
    codes: dict[str, int] | None = None  # of the verbs, where the program itself is not to be run
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    used: dict[str, dict[str, str]] = field(default_factory=dict)  # of other actions: name -> with

    def __post_init__(self) -> None:
        defaults = {name: str(one.get("default", "")) for name, one in ACTION["inputs"].items()}
        self.inputs = defaults | self.inputs
        (self.folder / "bin").mkdir()
        shim = self.folder / "bin" / "python"
        log, told = str(self.folder / "commands"), json.dumps(self.codes)
        shim.write_text(PYTHON.format(python=sys.executable, log=log, told=told))
        shim.chmod(0o755)

    @property
    def commands(self) -> list[list[str]]:
        """What `python` was called with."""
        return [json.loads(line) for line in (self.folder / "commands").read_text().splitlines()]

    def act(self) -> int:
        """Do all steps; the exit code of the first that failed, after which only `always()` steps run."""
        code = 0
        for step in STEPS:
            condition = str(step.get("if", "")).removeprefix("${{").removesuffix("}}").strip()
            if (code and "always()" not in condition) or (condition and not self._evaluate(condition)):
                continue
            code = code or (self._script(step) if "run" in step else self._use(step))
        return code

    def _use(self, step: dict[str, Any]) -> int:
        self.used[step["uses"]] = {key: self._filled(value) for key, value in step["with"].items()}
        return 0

    def _script(self, step: dict[str, Any]) -> int:
        script, output = self.folder / "script.sh", self.folder / "output"
        script.write_text(step["run"])
        output.write_text("")
        environment = os.environ | {name: self._filled(value) for name, value in step["env"].items()}
        environment |= {
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        place = self.folder / self._filled(step.get("working-directory", "."))
        done = subprocess.run([*BASH, str(script)], env=environment, cwd=place, check=False)
        lines = [line.partition("=") for line in output.read_text().splitlines()]
        self.outputs[step.get("id", "")] = {name: value for name, _, value in lines}
        return done.returncode

    def _filled(self, text: str) -> str:
        return re.sub(r"\$\{\{(.*?)\}\}", lambda found: str(self._evaluate(found[1].strip())), str(text))

    def _evaluate(self, expression: str) -> Any:
        """An expression of the kinds that the action uses."""
        text = re.sub(r"steps\.([\w-]+)\.outputs\.([\w-]+)", self._output, expression)
        text = re.sub(r"inputs\.([\w-]+)", lambda found: repr(self.inputs[found[1]]), text)
        text = text.replace("github.action_path", repr(str(ROOT))).replace("&&", "and").replace("always()", "True")
        return eval(text, {"__builtins__": {}})

    def _output(self, found: re.Match[str]) -> str:
        return repr(self.outputs.get(found[1], {}).get(found[2], ""))

    def told(self) -> dict[str, str]:
        """The action's outputs."""
        return {name: self._filled(one["value"]) for name, one in ACTION["outputs"].items()}


def runner(folder: Path, codes: dict[str, int] | None = None, **inputs: str) -> Runner:
    return Runner(folder, {name.replace("_", "-"): value for name, value in inputs.items()}, codes)


# --- what stands in it


def test_every_input_is_described_documented_and_used() -> None:
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(STEPS)))
    assert used == set(ACTION["inputs"])
    for kind in ("inputs", "outputs"):
        for name, one in ACTION[kind].items():
            assert one["description"].endswith("."), name
            assert f"| `{name}` |" in PAGE, name


def test_the_documented_defaults_are_those_of_the_action() -> None:
    for name, one in ACTION["inputs"].items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*?) \|", PAGE, re.MULTILINE)
        expected = "required" if one.get("required") else f"`{one['default']}`" if one["default"] else "empty"
        assert row == expected, name


def test_no_script_holds_an_expression() -> None:
    scripts = [step["run"] for step in STEPS if "run" in step]
    assert len(scripts) == 4
    for script in scripts:
        assert "${{" not in script  # its value would be run as a part of the script
    for step in STEPS:
        assert step.get("shell", "bash") == "bash"
        assert "github.event" not in json.dumps(step)


def test_other_actions_are_pinned_by_their_major_version() -> None:
    assert [step["uses"] for step in STEPS if "uses" in step] == [
        "actions/setup-python@v6",
        "actions/upload-artifact@v6",
    ]


def test_the_pythons_and_extras_that_it_names_are_those_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    supported = {row.rpartition(" ")[2] for row in project["classifiers"] if re.search(r":: 3\.\d+$", row)}
    assert set(re.findall(r"3\.\d+", ACTION["inputs"]["python-version"]["description"])) == supported
    assert ACTION["inputs"]["python-version"]["default"] in supported
    assert {"cpu", "gpu", "timm"} <= set(project["optional-dependencies"])


# --- what its steps do


def test_torch_comes_from_its_index_and_the_package_from_the_actions_own_checkout(tmp_path: Path) -> None:
    action = runner(tmp_path, {"run": 0}, recipe="recipe.yaml")
    assert action.act() == 0
    index = "https://download.pytorch.org/whl/cpu"
    assert [words[2:] for words in action.commands if words[:2] == ["-m", "pip"]] == [
        ["install", "torch", "--index-url", index],
        ["install", f"{ROOT}[cpu]"],
    ]
    assert action.used["actions/setup-python@v6"] == {"python-version": "3.12"}
    assert "actions/upload-artifact@v6" not in action.used


@pytest.mark.parametrize(
    ("extras", "index", "expected"),
    [
        ("gpu", "", [["install", f"{ROOT}[gpu]"]]),
        ("", "", [["install", f"{ROOT}"]]),
        ("cpu,timm", "i", [["install", "torch", "torchvision", "--index-url", "i"], ["install", f"{ROOT}[cpu,timm]"]]),
    ],
)
def test_what_is_installed_follows_the_extras(tmp_path: Path, extras: str, index: str, expected: Any) -> None:
    action = runner(tmp_path, {"run": 0}, recipe="recipe.yaml", extras=extras, torch_index=index)
    assert action.act() == 0
    assert [words[2:] for words in action.commands if words[:2] == ["-m", "pip"]] == expected


def test_inputs_are_arguments_whatever_they_hold(tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    hostile = "$(touch hacked) `touch hacked` ; touch hacked #\"'"
    settings = f"seed=1\n\n  plan.budget.parameters=0.3  \nmodel.path={hostile}\n"
    action = runner(
        tmp_path,
        {"run": 0, "compare": 0},
        recipe=hostile,
        out=f"runs/{hostile}",
        settings=settings,
        resume="true",
        compare_with=hostile,
        compare_gates="size=5\nlatency_p50=10",
        working_directory="a folder",
    )
    assert action.act() == 0
    run, compare = (words for words in action.commands if "compressor" in words)
    start = ["-P", "-m", "compressor"]
    overrides = ["--set=seed=1", "--set=plan.budget.parameters=0.3", f"--set=model.path={hostile}"]
    assert run == [*start, "run", f"--out=runs/{hostile}", *overrides, "--resume", "--", hostile]
    report = str(tmp_path / "a folder" / "runs" / hostile / "report.json")
    assert compare == [*start, "compare", "--gate=size=5", "--gate=latency_p50=10", "--", hostile, report]
    assert not list(tmp_path.rglob("hacked"))


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ({"run": 0, "compare": 0}, 0),
        ({"run": 0, "compare": 1}, 1),
        ({"run": 1, "compare": 0}, 1),
        ({"run": 1, "compare": 2}, 1),
        ({"run": 0, "compare": 2}, 2),
        ({"run": 5, "compare": 0}, 5),
    ],
)
def test_it_ends_with_the_runs_exit_code_or_else_the_comparisons(
    tmp_path: Path, codes: dict[str, int], code: int
) -> None:
    action = runner(tmp_path, codes, recipe="r", compare_with="last.json", artifact="proof")
    assert action.act() == code
    told = action.told()
    assert told["exit-code"] == str(code)
    reported = codes["run"] < 2
    assert any("compare" in words for words in action.commands) == reported
    folder = tmp_path / "runs" / "ci"
    assert told["report"] == (str(folder / "report.json") if reported else "")
    assert (told["verdict"], told["advice"]) == (("pass", "Deploy it.") if reported else ("", ""))
    kept = action.used.get("actions/upload-artifact@v6", {"name": "", "path": ""})  # else it were an earlier run's
    files = [f"{folder}/report.*", f"{folder}/junit.xml"]
    assert (kept["name"], kept["path"].split()) == (("proof", files) if reported else ("", []))


@pytest.mark.slow
def test_its_steps_resume_a_run_and_compare_it_with_the_last_release(
    tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, made = tiny_run
    shutil.copytree(made, tmp_path / "runs" / "ci")
    action = runner(tmp_path, recipe=str(recipe), resume="true", compare_with=str(made / "report.json"))
    assert action.act() == 0
    report = json.loads((tmp_path / "runs" / "ci" / "report.json").read_text())
    told = action.told()
    assert told["report"] == str(tmp_path / "runs" / "ci" / "report.json")
    assert (told["verdict"], told["advice"], told["exit-code"]) == ("pass", report["advice"], "0")
    headings = [line for line in (tmp_path / "summary.md").read_text().splitlines() if line.startswith("## ")]
    assert headings == ["## Pass: all 2 gates hold", "## No worse than before: all 2 judged quantities hold"]
