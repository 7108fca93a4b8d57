"""`make interop`: a tool that says something else is found, and so is one that cannot be asked."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent / "interop"
OURS = {"logits": [[1.0, 3.0, 2.0], [-4.0, 0.5, 0.0]]}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of the script, which lie in no package."""
    found = {}
    for name in ("verdict", "environments", "exports", "run"):
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, found[name])
        spec.loader.exec_module(found[name])
    return found


@pytest.fixture
def verdict(loaded: dict[str, ModuleType]) -> ModuleType:
    return loaded["verdict"]


def said(*rows: list[float], **more: Any) -> dict[str, Any]:
    return {"logits": list(rows), "versions": {"tool": "1.2"}, **more}


def test_a_tool_that_says_the_same_passes(verdict: ModuleType) -> None:
    row = verdict.compare("tool", "onnx-fp32", OURS, said([1.001, 3.0, 2.0], [-4.0, 0.5, 0.0]))
    assert (row.ok, row.rows, row.agreement) == (True, 2, 1.0)
    assert row.difference == pytest.approx(0.001)
    assert verdict.exit_code([row]) == 0
    assert "| tool | onnx-fp32 | tool 1.2 | 2 | 1.0e-03 | 100.0% | same |" in verdict.table([row])


@pytest.mark.parametrize(
    ("export", "theirs", "fault"),
    [
        ("onnx-fp32", said([1.1, 3.0, 2.0], [-4.0, 0.5, 0.0]), "logits differ by 1.0e-01, over 4.0e-03"),
        ("onnx-fp32", said([1.0, 3.0, 2.0], [-4.0, 0.5, 0.501]), "only 50.0% of the predictions agree, under 100%"),
        ("onnx-int8", said([3.0, 1.0, 2.0], [-4.0, 0.5, 0.0]), "logits differ by 2.0e+00, over 4.0e-01; only 50.0% "),
        ("onnx-fp32", said([1.0, 3.0, math.nan], [-4.0, 0.5, 0.0]), "logits differ by inf"),
        ("onnx-fp32", said([1.0, 3.0, 2.0]), "the shape (1, 3), not (2, 3)"),
        ("onnx-fp32", said([1.0, 3.0], [-4.0, 0.5]), "the shape (2, 2), not (2, 3)"),
    ],
)
def test_a_disagreement_is_found_and_fails(verdict: ModuleType, export: str, theirs: Any, fault: str) -> None:
    row = verdict.compare("tool", export, OURS, theirs)
    assert fault in row.fault
    good = verdict.compare("tool", "onnx-fp32", OURS, OURS)
    assert verdict.exit_code([good, row]) == 1
    assert fault in verdict.table([good, row])


@pytest.mark.parametrize("tokens", [[[1, 2], [3, 5]], [[1, 2], [3]], None])
def test_another_continuation_is_found_though_the_logits_agree(verdict: ModuleType, tokens: Any) -> None:
    ours = OURS | {"tokens": [[1, 2], [3, 4]]}
    theirs = said(*OURS["logits"], **({} if tokens is None else {"tokens": tokens}))
    assert "of the predictions agree" in verdict.compare("tool", "onnx-fp32", ours, theirs).fault
    assert verdict.compare("tool", "onnx-fp32", ours, ours).ok


def test_nothing_asked_is_no_success(verdict: ModuleType) -> None:
    assert verdict.exit_code([]) == 1


def test_a_tool_that_cannot_be_had_is_named_with_what_to_install(
    loaded: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded["environments"].shutil, "which", lambda _: None)
    rows = loaded["run"]._rows("transformers.js", tmp_path, fresh=False)
    assert [row.export for row in rows] == ["onnx-fp32", "onnx-int8"]
    assert all("cannot be had: node is not installed: get Node.js 20" in row.fault for row in rows)
    assert loaded["verdict"].exit_code(rows) == 1


def test_an_environment_that_is_ready_is_not_made_again(
    loaded: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments, made = loaded["environments"], []
    monkeypatch.setattr(environments, "_pip", lambda environment, folder: made.append(folder))
    tool = environments.Environment((("numpy",),), "in_tool.py")
    for _ in range(2):
        environments.prepare(tool, tmp_path / "tool")
    environments.prepare(environments.Environment((("numpy>=2",),), "in_tool.py"), tmp_path / "tool")
    assert made == [tmp_path / "tool"] * 2  # once, and again when it wants something else


def test_a_program_that_fails_says_why(loaded: dict[str, ModuleType], tmp_path: Path) -> None:
    environments = loaded["environments"]
    tool = environments.Environment((), "no_such_program.py")
    assert "no_such_program.py" in environments.ask(tool, [sys.executable], tmp_path, [])


def test_every_tool_has_its_program(loaded: dict[str, ModuleType]) -> None:
    assert all((HERE / one.program).is_file() for one in loaded["environments"].ENVIRONMENTS.values())


def test_what_is_skipped_is_not_asked_and_leaves_nothing_to_pass(
    loaded: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loaded["exports"], "make", lambda _: None)
    skipped = [word for name in loaded["environments"].ENVIRONMENTS for word in ("--skip", name)]
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path), *skipped])
    assert loaded["run"].main() == 1
    assert "genai was skipped, as was asked." in capsys.readouterr().out
