"""A checkpoint that ships its model's code: it runs where a recipe or a caller trusts it, and nowhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compressor.packaging.archive import unpack

CODE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MixerConfig(PretrainedConfig):
    model_type = "mixer"

    def __init__(self, vocab_size=42, hidden_size=32, num_hidden_layers=2, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        super().__init__(**kwargs)


class MixerForSequenceClassification(PreTrainedModel):
    config_class = MixerConfig

    def __init__(self, config):
        super().__init__(config)
        size = config.hidden_size
        self.words = nn.Embedding(config.vocab_size, size)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
            for _ in range(config.num_hidden_layers)
        )
        self.classifier = nn.Linear(size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.words(input_ids)
        for block in self.blocks:
            x = x + block(x)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        logits = self.classifier(mean)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
"""
TRUSTING = ("--set", "model.trust_remote_code=true")
LOAD = """
import sys
import compressor
model = compressor.load(sys.argv[1], trust_remote_code=len(sys.argv) > 2)
print(type(model).__name__, type(model.blocks[0][0]).__name__)
"""

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def recipe(tiny_task: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of seconds, over a checkpoint whose code lies beside its weights."""
    path = tiny_task(tmp_path_factory.mktemp("shipped"))
    model, generator = path.parent / "model", np.random.default_rng(0)
    shapes = {"words.weight": (42, 32), "classifier.weight": (3, 32), "classifier.bias": (3,)}
    for block in range(2):
        shapes |= {f"blocks.{block}.0.weight": (64, 32), f"blocks.{block}.0.bias": (64,)}
        shapes |= {f"blocks.{block}.2.weight": (32, 64), f"blocks.{block}.2.bias": (32,)}
    weights = {name: generator.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    (model / "modeling_mixer.py").write_text(CODE)
    names = {"AutoConfig": "MixerConfig", "AutoModelForSequenceClassification": "MixerForSequenceClassification"}
    places = {auto: f"modeling_mixer.{name}" for auto, name in names.items()}
    (model / "config.json").write_text(json.dumps({"model_type": "mixer", "auto_map": places, "num_labels": 3}))
    return path


@pytest.fixture(scope="module")
def command(recipe: Path) -> Command:
    """A process of its own, whose copies of the code lie in the test's folder, and that can be asked nothing."""
    environment = os.environ | {"HF_MODULES_CACHE": str(recipe.parent / "modules")}

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, *map(str, words)]
        return subprocess.run(
            line, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False
        )

    return run


@pytest.fixture(scope="module")
def trusted(recipe: Path, command: Command) -> Path:
    """A finished run whose recipe trusts the code."""
    out = recipe.parent / "run"
    done = command("-m", "compressor", "run", recipe, "--out", out, *TRUSTING, "--quiet")
    assert done.returncode == 0, done.stderr
    return out


def test_code_that_the_recipe_does_not_trust_is_refused_before_any_work(recipe: Path, command: Command) -> None:
    done = command("-m", "compressor", "run", recipe, "--out", recipe.parent / "refused")
    assert done.returncode == 2
    assert "needs code that the checkpoint ships" in done.stderr
    assert "run the custom code" not in done.stdout + done.stderr  # as transformers asks on a terminal


def test_a_trusted_model_goes_down_the_whole_line(trusted: Path) -> None:
    report = json.loads((trusted / "report.json").read_text())
    (export,) = report["exports"]
    assert export["findings"]["parity"]["candidate"] == 1.0
    assert report["context"]["model"]["class"] == "MixerForSequenceClassification"
    assert report["context"]["model"]["trust_remote_code"] is True
    assert json.loads((trusted / "artifact.json").read_text())["trust_remote_code"] is True
    assert (trusted / "modeling_mixer.py").read_text().strip() == CODE.strip()
    assert "blocks.0.0.up.weight" in load_file(trusted / "model.safetensors")


def test_an_artifact_runs_its_code_for_those_alone_who_say_so(trusted: Path, command: Command) -> None:
    refused = command("-c", LOAD, trusted)
    assert refused.returncode == 1
    assert "--trust-remote-code, in Python trust_remote_code=True" in refused.stderr
    loaded = command("-c", LOAD, trusted, "trusting")
    assert loaded.stdout.split() == ["MixerForSequenceClassification", "FactorizedLinear"], loaded.stderr


def test_another_export_asks_for_the_word_too(trusted: Path, command: Command) -> None:
    more = ("-m", "compressor", "export", trusted, "--precision", "int8")
    refused = command(*more)
    assert (refused.returncode, "--trust-remote-code" in refused.stderr) == (2, True)
    assert not (trusted / "exports" / "onnx-int8").exists()
    done = command(*more, "--trust-remote-code")
    assert done.returncode == 0, done.stderr
    assert command("-m", "compressor", "verify", trusted).returncode == 0


def test_a_package_needs_no_code(trusted: Path, command: Command, tmp_path: Path) -> None:
    done = command("-m", "compressor", "package", trusted, "--export", "onnx-fp32", "--out", tmp_path / "one.tar.gz")
    assert done.returncode == 0, done.stderr
    assert command("-m", "compressor", "verify", tmp_path / "one.tar.gz").returncode == 0
    folder = unpack(tmp_path / "one.tar.gz", tmp_path)
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.py")] == [
        "predict.py",
        "model/modeling_mixer.py",
    ]
    card = " ".join((folder / "README.md").read_text().split())
    assert (
        "(`trust_remote_code`); a copy of it lies in `model/` for other tools' loaders, and `predict.py` does" in card
    )


def test_layers_are_inspected_where_the_code_is_trusted(recipe: Path, command: Command) -> None:
    model = recipe.parent / "model"
    assert "needs code that the checkpoint ships" in command("-m", "compressor", "inspect", model).stderr
    shown = command("-m", "compressor", "inspect", model, "--trust-remote-code", "--json")
    targets = [row["name"] for row in json.loads(shown.stdout)["layers"] if row["target"]]
    assert targets == [f"blocks.{block}.{layer}" for block in range(2) for layer in (0, 2)]
