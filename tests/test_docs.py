"""README and docs/ hold what is there: links, commands, names, fields, and the code they show."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from pydantic import TypeAdapter

import compressor
from compressor import errors, planning, recipe, registry
from compressor.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = ROOT / "README.md"
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """What is typed after a program's name in console blocks, YAML steps and inline code."""
    text = page.read_text(encoding="utf-8")
    typed = [
        line
        for body in blocks(page, "console") + blocks(page, "yaml") + blocks(page, "sh")
        for line in body.splitlines()
    ]
    for line in [*typed, *re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))]:
        for found in re.findall(rf"(?:^|\s|&& ){re.escape(program)} (\S[^|>]*)", line):
            yield shlex.split(found, comments=True)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if not link.startswith(("https://", "http://")):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_pages_have_links_and_commands_that_are_looked_at() -> None:
    texts = [BLOCK.sub("", page.read_text(encoding="utf-8")) for page in PAGES]
    assert sum(len(LINK.findall(text)) for text in texts) > 100
    assert sum(len(list(commands(page, "python -m compressor"))) for page in PAGES) > 50
    assert sum(len(list(commands(page, "make"))) for page in PAGES) > 5


@every_page
def test_every_command_and_option_exists(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    common = {name for parameter in group.params for name in parameter.opts} | {"--help"}
    for words in commands(page, "python -m compressor"):
        verb = words[0]
        if verb.isupper() or verb in common:
            continue
        assert verb in group.commands, words
        known = {name for parameter in group.commands[verb].params for name in parameter.opts}
        assert {word for word in words if re.match(r"--?[a-z]", word)} <= known | common, words


@every_page
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(page, "make"):
        assert {word for word in words if "=" not in word} <= targets, words


@every_page
def test_python_code_compiles_and_uses_public_names_only(page: Path) -> None:
    for body in blocks(page, "python"):
        compile(body, page.name, "exec")
        if "import compressor" in body:
            used = set(re.findall(r"\b(?:cz|compressor)\.(\w+)\(", body)) | set(re.findall(r"\bcz\.(\w+)", body))
            assert used <= set(compressor.__all__)


@every_page
def test_no_line_is_longer_than_a_screen(page: Path) -> None:
    prose = [line for line in page.read_text(encoding="utf-8").splitlines() if not line.startswith(("|", "!["))]
    assert [line for line in prose if len(line) > 140] == []


def test_the_readmes_recipe_is_one(tmp_path: Path) -> None:
    (tmp_path / "path/to/model").mkdir(parents=True)
    (tmp_path / "data/mine").mkdir(parents=True)
    (tmp_path / "recipe.yaml").write_text(next(body for body in blocks(README, "yaml") if "model:" in body))
    found = recipe.read(tmp_path / "recipe.yaml")
    assert [export.name for export in found.exports] == ["onnx-fp32", "onnx-int8"]
    assert set(found.gates) == {"accuracy", "size", "latency_p50"}


def test_the_exit_codes_are_those_of_the_errors() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RankfoldError)
    ]
    codes = {0} | {kind.exit_code for kind in kinds}
    for page in (README, ROOT / "docs" / "cli.md", ROOT / "docs" / "ci.md"):
        assert set(map(int, re.findall(r"^\| (\d) \|", page.read_text(encoding="utf-8"), re.MULTILINE))) == codes


def test_every_method_reading_strategy_and_layout_is_documented() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    readings = TypeAdapter(registry.load("methods", "jactus")).json_schema()["properties"]["reading"]["enum"]
    fields = recipe.PlanSection.model_fields
    words = [*readings, *get_args(fields["strategy"].annotation), *get_args(fields["layout"].annotation)]
    assert len(words) == 10
    assert [word for word in words if f"`{word}`" not in text] == []
    table = README.read_text(encoding="utf-8")
    assert [name for name in registry.names("methods") if f"| `{name}`" not in table] == []


def test_every_method_setting_in_the_docs_is_accepted() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    settings = re.findall(r"`(\{name: [^}]+\})`", text)
    assert len(settings) == 5
    for setting in settings:
        assert TypeAdapter(recipe.Method).validate_python(yaml.safe_load(setting))


def test_every_documented_file_is_one_that_the_code_writes() -> None:
    table = (ROOT / "docs" / "artifact.md").read_text(encoding="utf-8").partition("## Load it")[0]
    names = set(re.findall(r"`([\w.]+\.(?:json|safetensors|html|md|xml))`", table)) - {"report.md"}
    places = [*ROOT.glob("compressor/*.py"), *ROOT.glob("exporters/*.py"), *ROOT.glob("validators/*.py")]
    source = "\n".join(place.read_text(encoding="utf-8") for place in places)
    assert len(names) >= 12
    assert [name for name in names - {"config.json"} if f'"{name}"' not in source] == []


def test_every_promised_name_stands_on_its_page_with_its_signature() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    written = re.findall(r"^\| `(\w+)(\(.*?\))?` \|", text, re.MULTILINE)
    assert sorted(name for name, _ in written) == compressor.__all__
    for name, signature in written:
        promised, scope = getattr(compressor, name), dict[str, Any]()
        assert bool(signature) == isinstance(promised, types.FunctionType), name
        if signature:
            exec(f"def {name}{signature}: ...", scope)
            said = inspect.signature(scope[name]).parameters.values()
            real = inspect.signature(promised).parameters.values()
            assert [(one.name, one.kind) for one in said] == [(one.name, one.kind) for one in real], name
            defaults = [... if callable(one.default) and one.default is not one.empty else one.default for one in real]
            assert [one.default for one in said] == defaults, name


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_training_in_the_docs_trains_and_folds(tmp_path: Path) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    page = ROOT / "docs" / "api.md"
    scope: dict[str, Any] = {"folder": tmp_path / "checkpoints"}
    exec(compile(blocks(page, "python")[1], page.name, "exec"), scope)
    assert [row["epoch"] for row in scope["history"] if "eval_accuracy" in row] == [0, 1, 2]
    assert not (tmp_path / "checkpoints").exists()
    assert scope["plan"].parameters <= 0.5 * scope["plan"].dense_parameters
    layers = [one for one in scope["model"].bert.encoder.modules() if not list(one.children())]
    assert {type(one) for one in layers if hasattr(one, "in_features")} == {nn.Linear}


@pytest.mark.slow
def test_the_line_of_the_docs_runs(
    tiny_task: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    page, scope = ROOT / "docs" / "api.md", dict[str, Any]()
    exec(compile(blocks(page, "python")[0], page.name, "exec"), scope)
    assert scope["report"].verdict == json.loads((tmp_path / "runs/half/report.json").read_text())["verdict"]
    assert scope["artifact"].plan.budget == 0.6
    promised = re.findall(r"^\| `report\.(\w+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(promised) == 5
    assert all(hasattr(scope["report"], name) for name in promised)


def test_the_layer_of_a_plan_in_the_docs_is_one() -> None:
    (body,) = blocks(ROOT / "docs" / "artifact.md", "json")
    layer = planning.PlanLayer(**json.loads(body))
    assert layer.rank is not None
    assert layer.parameters == layer.rank * (layer.out_features + layer.in_features)
    assert layer.break_even == 192  # 384 / 2, the share at which two factors cost as much as a square weight


def test_the_index_names_every_page_and_every_recipe() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    there = [f"({page.name})" for page in (ROOT / "docs").glob("*.md") if page.name != "index.md"]
    there += [f"(../recipes/{path.name})" for path in (ROOT / "recipes").glob("*.yaml")]
    assert [name for name in there if name not in text] == []


def test_the_readmes_line_runs_on_a_module_of_ones_own() -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
            self.head = nn.Linear(32, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = torch.tanh(block(x))
            return self.head(x)

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch["x"]), batch["labels"])

    def train(model: nn.Module) -> None:
        trained.extend(name for name, parameter in model.named_parameters() if parameter.requires_grad)

    trained: list[str] = []
    model = Model()
    batches = [{"x": torch.randn(16, 32), "labels": torch.randint(0, 3, (16,))} for _ in range(4)]
    body = next(body for body in blocks(README, "python") if "factorize_" in body)
    exec(compile(body, "README", "exec"), {"model": model, "batches": batches, "loss": loss, "train": train})
    assert {name for name in trained if name.startswith("head")} == {"head.weight", "head.bias"}
    assert [name for name in trained if name.startswith("blocks") and name.endswith((".weight", ".bias"))] == []
    assert any(".core." in name for name in trained)
    targets = sum(
        tensor.numel() for name, tensor in model.state_dict().items() if "blocks" in name and "weight" in name
    )
    assert targets <= 0.5 * 2 * 32 * 32
    assert all(type(module) is nn.Linear for module in model.modules() if not list(module.children()))


def test_the_pipelines_of_the_docs_are_yaml_and_hand_the_action_what_it_takes() -> None:
    github, gitlab = map(yaml.safe_load, blocks(ROOT / "docs" / "ci.md", "yaml"))
    steps = github["jobs"]["model"]["steps"]
    (used,) = [step for step in steps if step.get("uses") == "./rankfold"]
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    assert set(used["with"]) <= set(action["inputs"])
    assert [step["run"] for step in steps if "${{" in step.get("run", "")] == []
    told = re.findall(r"steps\.rankfold\.outputs\.([\w-]+)", json.dumps(steps))
    assert told
    assert set(told) <= set(action["outputs"])
    assert gitlab["model"]["artifacts"]["reports"]["junit"].endswith("/junit.xml")


@pytest.mark.slow
def test_the_pipeline_of_the_docs_runs_in_a_shell(
    tiny_task: Callable[[Path], Path], tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    tiny_task(tmp_path)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "releases").mkdir()
    last = tmp_path / "releases" / "report.json"
    shutil.copy(tiny_run[1] / "report.json", last)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"VERSION": "1.1", "PATH": path, "PYTHONPATH": str(ROOT)}
    pipeline, decision = (
        subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        for script in blocks(ROOT / "docs" / "ci.md", "sh")
    )
    assert pipeline.returncode == 0, pipeline.stderr
    assert "## No worse than before: all 2 judged quantities hold" in (tmp_path / "comparison.md").read_text()
    assert last.read_bytes() == (tmp_path / "runs" / "1.1" / "report.json").read_bytes()
    compared = json.loads((tmp_path / "comparison.json").read_text())
    latency = compared["exports"][0]["changes"]["latency_p50"]
    assert latency["limit"] == pytest.approx(1.3 * latency["before"])  # the report is compared with itself
    worse = latency["verdict"] != "pass"
    assert (decision.returncode, decision.stdout) == (0, "worse than the last release\n" if worse else "release it\n")


def test_the_method_in_the_docs_keeps_its_own_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "add-a-method.md"
    code, check = blocks(page, "python")
    module = types.ModuleType("espace_of_the_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, page.name, "exec"), module.__dict__)
    exec(compile(check, page.name, "exec"), module.__dict__)
    method = module.__dict__["Espace"]()
    assert method.updates == 0
    assert len(method.core(module.__dict__["found"].truncate(3))()) == 3


def test_the_module_in_the_docs_is_compressed_kept_and_exported(tmp_path: Path) -> None:
    import numpy as np
    import torch
    from torch import nn

    torch.manual_seed(0)
    page = ROOT / "docs" / "plain-modules.md"
    scope: dict[str, Any] = {"folder": tmp_path}
    for body in blocks(page, "python")[:4]:
        exec(compile(body, page.name, "exec"), scope)
    model, again, batch = scope["model"], scope["again"], scope["batches"][0]
    assert scope["plan"].ranks.keys() == {"first", "second"}
    assert sum(p.numel() for p in model.first.parameters()) < 40 * 64
    assert type(model.third) is nn.Linear
    with torch.no_grad():
        expected = model(batch["x"])[0]
        torch.testing.assert_close(again(batch["x"])[0], expected, rtol=0, atol=0)
    found = scope["runner"]({"x": batch["x"].numpy()})["logits"]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_denoiser_in_the_docs_is_compressed_and_exported(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="needs diffusers: pip install diffusers")
    import torch

    torch.manual_seed(0)
    page = ROOT / "docs" / "plain-modules.md"
    scope: dict[str, Any] = {"folder": tmp_path}
    for body in blocks(page, "python")[4:6]:
        exec(compile(body, page.name, "exec"), scope)
    plan = scope["plan"]
    assert len(plan.ranks) >= 20
    assert plan.parameters <= 0.5 * plan.dense_parameters
    assert (tmp_path / "denoiser" / "model.onnx").is_file()


def test_the_code_in_a_recipe_of_the_docs_is_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import numpy as np
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    page = ROOT / "docs" / "plain-modules.md"
    (code,) = [body for body in blocks(page, "python") if "def build(" in body]
    (tmp_path / "answers.py").write_text(code)
    (tmp_path / "recipe.yaml").write_text(blocks(page, "yaml")[0])
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", *"abcdef"])}
    told = Tokenizer(WordLevel(words, unk_token="<unk>"))
    told.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=told, **special).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "rows").mkdir()
    for split, seed in (("train", 0), ("test", 1)):
        texts = [" ".join(row) for row in np.random.default_rng(seed).choice(list("abcdef"), (12, 5))]
        table = {"text": texts, "label": ["yes" if "a" in text else "no" for text in texts]}
        datasets.Dataset.from_dict(table).to_parquet(str(tmp_path / "rows" / f"{split}.parquet"))
    settings = ["data.holdout=0", "baseline.epochs=1", "adapt.epochs=1", "data.calibration.samples=8"]
    artifact = compressor.compress(recipe.read(tmp_path / "recipe.yaml", settings), tmp_path / "run")
    assert artifact.plan.parameters <= 0.5 * artifact.plan.dense_parameters == 0.5 * 4 * 64 * 256
    monkeypatch.chdir(tmp_path)
    assert type(compressor.load(tmp_path / "run", factory="answers:build")).__name__ == "Classifier"
    monkeypatch.delitem(sys.modules, "answers")
