"""Models that the user's own code makes: what it may return, what is refused, and the whole line on two of them."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import datasets
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast, ViTImageProcessorPil
from typer.testing import CliRunner

import compressor
from compressor import exporting, feasible, pipeline, recipe, registry, storage
from compressor.cli import app
from compressor.distillation import distillation_loss
from compressor.errors import ArtifactError, InputError, ModelError, RecipeError
from compressor.factory import RECORD, Factory
from compressor.files import file_digest
from compressor.layers import FactorizedLinear
from compressor.line import Line
from compressor.models import require_learnable
from compressor.plain import answering_
from compressor.recipe import Distillation
from compressor.run_folder import Run
from compressor.storage import weights_digest
from exporters.onnx import OnnxExporter

TEXTS, IMAGES = registry.task("text-classification"), registry.task("image-classification")
WORDS = ["<pad>", "<unk>", "</s>", *(f"w{number}" for number in range(60))]

TAGGER = """
from pathlib import Path

import torch
from torch import nn

from {name}_parts import Block


class Tagger(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.words = nn.Embedding(64, 32)
        self.blocks = nn.ModuleList(Block(32) for _ in range(2))
        self.head = nn.Linear(32, classes)

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids)  # (B, T, 32)
        for block in self.blocks:
            x = block(x)
        mask = attention_mask[..., None].to(x.dtype)
        return self.head((x * mask).sum(1) / mask.sum(1))


def build(labels=("no", "yes")):
    return Tagger(len(labels))
"""
PARTS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))
"""
MIXER = """
from types import SimpleNamespace

import torch
from torch import nn


class Mix(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.up, self.down = nn.Linear(16, 16), nn.Linear(24, 48), nn.Linear(48, 24)

    def forward(self, x):
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.down(torch.relu(self.up(x)))


class Mixer(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.blocks = nn.ModuleList(Mix() for _ in range(2))
        self.head = nn.Linear(24, classes)

    def forward(self, pixel_values, labels=None, output_hidden_states=False):
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)  # (B, 16, 24)
        states = [x]
        for block in self.blocks:
            x = block(x)
            states.append(x)
        logits = self.head(x.mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        return SimpleNamespace(logits=logits, loss=loss, hidden_states=states if output_hidden_states else None)


def build(labels):
    return Mixer(len(labels))
"""
SPEAKER = """
from torch import nn


class Speaker(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(64, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)) for _ in range(2))
        self.say = nn.Linear(16, 64, bias=False)
        self.say.weight = self.words.weight

    def forward(self, input_ids):
        x = self.words(input_ids)
        for block in self.blocks:
            x = x + block(x)
        return (self.say(x),)


def build():
    return Speaker()
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


# ---- what the line gets of a module ----


class Own(nn.Module):
    """A classifier of (B, 4) whose forward is given by each test."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.calculate = forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.calculate(self.head(x))


BATCH = {"x": torch.arange(8.0).reshape(2, 4) / 8, "labels": torch.tensor([2, 0])}


class Answer(NamedTuple):
    """An output that is an object and a tuple, which does not start with the logits."""

    extra: int
    logits: torch.Tensor


@pytest.mark.parametrize(
    "forward", [lambda logits: logits, lambda logits: (logits, "more"), lambda logits: Answer(1, logits)]
)
def test_logits_come_as_a_tensor_first_of_a_tuple_or_by_name(forward: Callable[..., Any]) -> None:
    module = answering_(Own(forward), TEXTS)
    output = module(**BATCH)
    expected = module.head(BATCH["x"])
    assert torch.equal(output.logits, expected)
    picked = expected.log_softmax(-1)[[0, 1], [2, 0]]
    torch.testing.assert_close(output.loss, -picked.mean())
    assert "loss" not in module(x=BATCH["x"])
    assert list(module.state_dict()) == ["head.weight", "head.bias"]
    assert type(module) is Own


def test_a_loss_of_a_module_that_sees_no_labels_is_not_that_of_the_task() -> None:
    module = answering_(Own(lambda logits: SimpleNamespace(logits=logits, loss=torch.tensor(0.001))), TEXTS)
    picked = module.head(BATCH["x"]).log_softmax(-1)[[0, 1], [2, 0]]
    torch.testing.assert_close(module(**BATCH).loss, -picked.mean())


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ({"logits": 1}, "dict where logits"),
        ((), "tuple where"),
        (torch.zeros(3), r"a tensor \(3,\)"),
    ],
)
def test_what_holds_no_logits_is_named(returned: Any, words: str) -> None:
    module = answering_(Own(lambda logits: returned), TEXTS)
    with pytest.raises(ModelError, match=rf"The forward of Own returned .*{words}"):
        require_learnable(module, BATCH)


def test_only_inputs_that_the_forward_names_are_given() -> None:
    class Narrow(Own):
        def forward(self, x: torch.Tensor) -> Any:
            return self.head(x)

    class Wide(Own):
        def forward(self, **inputs: Any) -> Any:
            assert sorted(inputs) == ["attention_mask", "x"]
            return self.head(inputs["x"])

    batch = BATCH | {"attention_mask": torch.ones(2, 4)}
    for kind in (Narrow, Wide):
        assert answering_(kind(lambda _: None), TEXTS)(**batch).loss.ndim == 0


def test_a_copy_computes_with_its_own_weights() -> None:
    module = answering_(Own(lambda logits: logits), TEXTS)
    other = copy.deepcopy(module)
    nn.init.zeros_(other.head.weight)
    assert not torch.equal(other(**BATCH).logits, module(**BATCH).logits)


def test_one_module_is_not_given_twice() -> None:
    module = Own(lambda logits: logits)
    factory = Factory.given(lambda: module)
    factory.build(TEXTS, ["a"])
    with pytest.raises(ModelError, match=r"This Own is in use already.*every call must build a new one"):
        factory.build(TEXTS, ["a"])


def test_a_scripted_module_is_refused() -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ModelError, match=r"is scripted or compiled, so its layers cannot be replaced"):
        answering_(scripted, TEXTS)


def test_a_transformers_model_keeps_its_outputs(tiny_bert: Callable[[], Any], token_batches: Any) -> None:
    model, (batch, *_) = tiny_bert(), token_batches()
    expected = model(**batch, output_hidden_states=True)
    answering_(model, TEXTS)
    found = model(**batch, output_hidden_states=True)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.hidden_states[-1], expected.hidden_states[-1])
    assert isinstance(model, BertForSequenceClassification)
    unlabeled = {name: value for name, value in batch.items() if name != "labels"}
    assert "attentions" in model(**unlabeled, output_attentions=True)


def test_hidden_states_are_taught_where_the_module_gives_them(tmp_path: Path) -> None:
    code = written(tmp_path, "mixer_of_states", MIXER)
    student, teacher = (Factory("mixer_of_states:build", code).build(IMAGES, ["a", "b"]) for _ in range(2))
    batch = {"pixel_values": torch.randn(4, 3, 32, 32), "labels": torch.tensor([0, 1, 0, 1])}
    lesson = {"predictions": 0.5, "temperature": 1.0}
    with_states, _ = distillation_loss(student, teacher, batch, Distillation(hidden=1.0, **lesson))
    without, _ = distillation_loss(student, teacher, batch, Distillation(hidden=0.0, **lesson))
    assert with_states > without


# ---- importing ----


def written(folder: Path, name: str, body: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body)
    return str(folder)


def test_a_module_of_a_package_is_found_and_the_path_left_as_it_was(tmp_path: Path) -> None:
    written(tmp_path, "own_package.parts", "WIDTH = 3\n")
    code = written(
        tmp_path,
        "own_package.models",
        "from torch import nn\nfrom .parts import WIDTH\ndef make(names): return nn.Linear(WIDTH, len(names))\n",
    )
    before = list(sys.path)
    module = Factory("own_package.models:make", code).build(TEXTS, ["a", "b"])
    assert (module.in_features, module.out_features) == (3, 2)
    assert sys.path == before
    assert not module.training


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (None, r"The factory broken:build is not there: no module broken in /.* or where Python looks"),
        (
            "import no_such_thing\n",
            r"broken \(/.*broken\.py\) cannot be imported: ModuleNotFoundError: No module named",
        ),
        ("def build(:\n", r"cannot be imported: SyntaxError: "),
        ("1 / 0\n", r"cannot be imported: ZeroDivisionError: division by zero\."),
        ("other = 1\n", r"broken:build: build is not there in /.*broken\.py"),
        ("build = 1\n", r"broken:build: build is no function in /"),
        ("def build(labels): return labels\n", r"broken:build returned list; a factory returns a torch\.nn\.Module"),
        ("def build(labels): raise KeyError('weights')\n", r"broken:build raised KeyError: 'weights'\.$"),
        (
            "import torch\ndef build():\n    layer = torch.nn.Linear(2, 2)\n    layer.weight.data[0] = float('nan')\n"
            "    return layer\n",
            r"What broken:build returned has NaN or infinite values in 1 weights \(weight\)\.",
        ),
        (
            "import torch\ndef build(): return torch.nn.Linear(2, 2, device='meta')\n",
            r"What broken:build returned has no values yet for 2 weights \(weight, bias\)\.",
        ),
        (
            "import torch\ndef build(): return torch.nn.LazyLinear(2)\n",
            r"What broken:build returned has no values yet for 2 weights",
        ),
    ],
)
def test_code_that_makes_no_model_is_one_sentence(tmp_path: Path, body: str | None, words: str) -> None:
    if body is not None:
        written(tmp_path, "broken", body)
    with pytest.raises(ModelError, match=words):
        Factory("broken:build", str(tmp_path)).build(TEXTS, ["a", "b"])


def test_a_factory_that_cannot_do_without_labels_is_told_so(tmp_path: Path) -> None:
    code = written(tmp_path, "mixer_without_labels", MIXER)
    with pytest.raises(ModelError, match=r"TypeError: .* called with None for labels: a default lets it do without"):
        Factory("mixer_without_labels:build", code).build(IMAGES, None)


def test_a_module_of_the_same_name_that_is_loaded_already_is_not_taken(tmp_path: Path) -> None:
    body = "from torch import nn\ndef build(): return nn.Linear(2, 2)\n"
    Factory("twice_there:build", written(tmp_path / "one", "twice_there", body)).build(TEXTS, None)
    other = written(tmp_path / "two", "twice_there", body)
    with pytest.raises(
        ModelError, match=r"means .*two/twice_there\.py, but a module twice_there is loaded already, from"
    ):
        Factory("twice_there:build", other).build(TEXTS, None)


def test_only_labels_or_the_one_needed_parameter_are_given() -> None:
    got: list[Any] = []

    def widths(width: int = 4) -> nn.Module:
        got.append(width)
        return nn.Linear(2, 2)

    def keyword(*, labels: list[str]) -> nn.Module:
        got.append(labels)
        return nn.Linear(2, 2)

    def needed(classes: list[str], width: int = 4) -> nn.Module:
        got.append((classes, width))
        return nn.Linear(2, 2)

    for function in (widths, keyword, needed):
        Factory.given(function).build(TEXTS, ("a", "b"))
    assert got == [4, ["a", "b"], (["a", "b"], 4)]


def test_weights_of_other_widths_become_float32() -> None:
    module = Factory.given(lambda: nn.Linear(2, 2).half()).build(TEXTS, None)
    assert module.weight.dtype == torch.float32


def test_complex_buffers_keep_both_their_parts() -> None:
    def turning() -> nn.Module:
        module = nn.Linear(2, 2).half()
        module.register_buffer("turns", torch.polar(torch.ones(3), torch.arange(3.0)))
        module.register_buffer("places", torch.arange(3))
        return module

    module = Factory.given(turning).build(TEXTS, None)
    assert torch.equal(module.turns, torch.polar(torch.ones(3), torch.arange(3.0)))
    assert (module.weight.dtype, module.places.dtype) == (torch.float32, torch.int64)


def test_a_head_of_another_size_is_told_before_any_training() -> None:
    own = answering_(Own(lambda logits: torch.cat([logits, logits], 1)), TEXTS)
    with pytest.raises(ModelError, match=r"Own gives 6 logits, but the training data has 3 labels: a factory"):
        require_learnable(own, BATCH, ["a", "b", "c"])


def test_a_module_that_fails_is_no_fault_of_ours() -> None:
    module = answering_(Own(lambda logits: logits.no_such_thing), TEXTS)
    with pytest.raises(ModelError, match=r"Own cannot be trained on x \(2, 4\).*no attribute 'no_such_thing'"):
        require_learnable(module, BATCH)


# ---- recipes ----

RECIPE = """\
model: {path: "own.models:build", processor: tok}
data: {train: {path: rows, split: train}, evaluation: {path: rows, split: test}}
"""


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., recipe.Recipe]:
    """A recipe with its folders beside it, read."""
    for name in ("here", "beside/tok", "beside/rows", "beside/src"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")

    def read(text: str, *settings: str) -> recipe.Recipe:
        path = tmp_path / "beside" / "recipe.yaml"
        path.write_text(text)
        return recipe.read(path, settings)

    return read


def test_a_recipe_names_code_and_the_folder_that_it_lies_in(
    beside: Callable[..., recipe.Recipe], tmp_path: Path
) -> None:
    model = beside(RECIPE).model
    assert (model.path, model.processor) == ("own.models:build", str(tmp_path / "beside" / "tok"))
    assert Factory.of(model) == Factory("own.models:build", str(tmp_path / "beside"))
    assert beside(RECIPE, "model.code=src").model.code == str(tmp_path / "beside" / "src")
    assert "own" not in sys.modules  # nothing is run to read a recipe


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (["model.processor=null"], "model.processor: is missing: own.models:build makes the model alone"),
        (["model.revision=main"], "model.revision: is one of a hub id, but own.models:build is code"),
        (["model.code=nowhere"], "nowhere' is no folder."),
        (
            ["model.path=owner/name", "model.code=src"],
            "model.code: is where the code of a factory lies, but owner/name",
        ),
        (
            ["baseline.path=own.models:build"],
            "baseline.path: 'own.models:build' names code, which only model.path may do",
        ),
    ],
)
def test_what_a_factory_cannot_stand_beside(
    beside: Callable[..., recipe.Recipe], settings: list[str], fault: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        beside(RECIPE, *settings)
    assert fault in str(caught.value)


# ---- the whole line ----


def tokenizer(folder: Path) -> None:
    told = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    told.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=told, **special).save_pretrained(folder)


def rows_of_text(folder: Path) -> None:
    """Words from one third of the vocabulary for each of three labels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 24)):
        numbers = [20 * (n % 3) + rng.integers(0, 20, 4 + n % 5) for n in range(count)]
        texts = [" ".join(f"w{number}" for number in some) for some in numbers]
        rows = {"text": texts, "label": ["abc"[n % 3] for n in range(count)]}
        datasets.Dataset.from_dict(rows).to_parquet(str(folder / f"{split}.parquet"))


def rows_of_images(folder: Path) -> None:
    """Dark, light and mixed noise."""
    rng = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    bounds = ((0, 90), (160, 256), (0, 256))
    for split, count in (("train", 48), ("test", 24)):
        noise = [rng.integers(*bounds[n % 3], (32, 32, 3), dtype=np.uint8) for n in range(count)]
        rows = {"image": [Image.fromarray(one) for one in noise], "label": ["dlm"[n % 3] for n in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))


def task_folder(folder: Path, body: str, model: dict[str, Any], **sections: Any) -> Path:
    """A recipe, the code of its model and its data, in one folder."""
    folder.mkdir(parents=True)
    name = model["path"].partition(":")[0]
    written(folder, name, body.replace("{name}", name))
    written(folder, f"{name}_parts", PARTS)
    if model.get("task") == "image-classification":
        rows_of_images(folder)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "processor")
    else:
        rows_of_text(folder)
        tokenizer(folder / "processor")
    settings = {
        "model": {"processor": "processor", "max_length": 16} | model,
        "data": {
            "train": {"path": "train.parquet"},
            "evaluation": {"path": "test.parquet"},
            "holdout": 0.25,
            "calibration": {"samples": 24},
        },
        "method": {"name": "jactus", "updates": 2},
        "plan": {"multiple_of": 1, "budget": {"parameters": 0.5}},
        "adapt": {"epochs": 2},
        "baseline": {"epochs": 6, "learning_rate": 1e-2},
        "validate": {"runs": 10, "sequence_length": 8, "threads": 1, "repeats": 1},
    } | sections
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over a module of one's own that reads texts; the recipe lies beside it."""
    folder = tmp_path_factory.mktemp("own") / "task"
    path = task_folder(folder, TAGGER, {"path": "own_tagger:build"})
    report = pipeline.run(path, folder.parent / "run")
    assert {row.name for row in report.exports} == {"onnx-fp32"}
    return folder.parent / "run"


@pytest.fixture
def known(run: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The factory's name, found in the current folder."""
    monkeypatch.chdir(run.parent / "task")
    return "own_tagger:build"


TARGETS = [f"blocks.{block}.{layer}" for block in range(2) for layer in ("up", "down")]


def test_names_in_plans_layers_and_weights_are_those_of_the_module(run: Path, known: str) -> None:
    assert [layer["name"] for layer in json.loads((run / "plan.json").read_text())["layers"]] == TARGETS
    assert {row["name"] for row in json.loads((run / "layers.json").read_text())} == {*TARGETS, "head"}
    dense = {"words.weight", "head.weight", "head.bias"}
    dense |= {f"{name}.{key}" for name in TARGETS for key in ("weight", "bias")}
    assert set(load_file(run / "baseline" / "model.safetensors")) == dense
    assert set(load_file(run / "model.safetensors")) & dense >= {"words.weight", "head.weight", "head.bias"}


def test_the_manifest_names_the_factory_its_source_and_its_weights(run: Path, known: str) -> None:
    manifest = json.loads((run / "artifact.json").read_text())
    assert manifest["factory"] == {
        "factory": known,
        "class": "Tagger",
        "source": "own_tagger.py",
        "digest": file_digest(run.parent / "task" / "own_tagger.py"),
        "labels": ["a", "b", "c"],
    }
    torch.manual_seed(0)
    assert manifest["base_digest"] == weights_digest(Factory.given(known).build(TEXTS, ["a", "b", "c"]))
    context = json.loads((run / "report.json").read_text())["context"]["model"]
    assert (context["path"], context["class"]) == (known, "Tagger")
    compressor.verify(run)


def test_the_folded_module_is_loaded_and_its_graph_computes_the_same(run: Path, known: str) -> None:
    model = compressor.load(run, factory=known)
    ranks = {layer["name"]: layer["rank"] for layer in json.loads((run / "plan.json").read_text())["layers"]}
    assert any(ranks.values())
    for name, rank in ranks.items():
        assert isinstance(model.get_submodule(name), FactorizedLinear if rank else nn.Linear)
    ids = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        expected = model(**inputs).logits
    graph = OnnxExporter().load(run / "exports" / "onnx-fp32")
    found = graph({name: tensor.numpy() for name, tensor in inputs.items()})["logits"]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    baseline = compressor.load(run / "baseline", task="text-classification", factory=sys.modules["own_tagger"].build)
    assert type(baseline.blocks[0].up) is nn.Linear


def test_training_taught_the_module_its_task(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["exports"][0]["findings"]["accuracy"]["candidate"] >= 0.8  # one in three by chance
    assert report["exports"][0]["findings"]["parity"]["candidate"] == 1.0


def test_a_run_that_was_cut_off_ends_with_the_same_bytes(run: Path, tmp_path: Path) -> None:
    read = recipe.read(run.parent / "task" / "recipe.yaml")
    line = Line(read, Run(tmp_path / "cut", recipe.dump(read)))
    line.probe()
    line.baseline()
    del line
    pipeline.compress(read, tmp_path / "cut", resume=True)
    for name in ("model.safetensors", "plan.json", "history.json", "baseline/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (run / name).read_bytes(), name


def test_a_run_does_not_go_on_with_code_that_was_changed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent, tmp_path / "copy")
    folder = tmp_path / "copy" / "task"
    state = json.loads((tmp_path / "copy" / "run" / "run.json").read_text())
    text = json.dumps(state).replace(str(run.parent / "task"), str(folder))
    (tmp_path / "copy" / "run" / "run.json").write_text(text)
    (folder / "own_tagger.py").write_text("raise SystemExit('was run')\n")
    with pytest.raises(
        ArtifactError, match=r"own_tagger\.py is not the own_tagger\.py that .*run/baseline was made with"
    ):
        pipeline.compress(folder / "recipe.yaml", tmp_path / "copy" / "run", resume=True)


def test_an_artifacts_code_is_only_run_where_it_is_named(run: Path, known: str, tmp_path: Path) -> None:
    words = r"was made by the factory own_tagger:build, and loading it runs that code.*--factory own_tagger:build"
    with pytest.raises(ArtifactError, match=words):
        compressor.load(run)
    with pytest.raises(ArtifactError, match=words):
        compressor.validate(run)
    with pytest.raises(ArtifactError, match=words):
        compressor.export(run, precision="int8")
    with pytest.raises(ArtifactError, match=r"was made by the factory own_tagger:build, not by own_other:build"):
        compressor.load(run, factory="own_other:build")
    with pytest.raises(ModelError, match=r"'own_tagger' names no factory"):
        compressor.load(run, factory="own_tagger")


def test_code_that_an_artifact_brings_along_is_not_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run / "baseline", tmp_path / "got")
    for body, words in (("open('was_run', 'w')\n", "runs that code"), ("open('was_run', 'w') \n", "digest differs")):
        written(tmp_path, "brought_along", body)
        record = {"factory": "brought_along:build", "source": "brought_along.py", "digest": "0" * 64, "labels": None}
        (tmp_path / "got" / RECORD).write_text(json.dumps(record))
        given = None if words == "runs that code" else "brought_along:build"
        with pytest.raises(ArtifactError, match=words):
            storage.load(tmp_path / "got", "text-classification", factory=given)
    assert "brought_along" not in sys.modules
    assert not (tmp_path / "was_run").exists()


def test_a_checkpoint_has_no_factory(tiny_bert: Callable[[], Any], tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path / "bert")
    with pytest.raises(ArtifactError, match=r"was made of a checkpoint, not by the factory own:build: leave that out"):
        storage.load(tmp_path / "bert", "text-classification", factory="own:build")


def test_the_command_line_runs_named_code(run: Path, known: str) -> None:
    refused = CliRunner().invoke(app, ["validate", str(run)])
    assert refused.exit_code == 2
    assert "--factory own_tagger:build" in refused.stderr
    shown = CliRunner().invoke(app, ["inspect", known, "--json"])
    assert shown.exit_code == 0, shown.stderr
    assert [row["name"] for row in json.loads(shown.stdout)["layers"] if row["target"]] == TARGETS


def test_a_single_export_of_an_unfolded_run_folds_through_the_factory(run: Path, known: str, tmp_path: Path) -> None:
    out = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(out / "exports")
    (out / "artifact.json").unlink()
    state = json.loads((out / "run.json").read_text())
    for name in state["stages"].pop("fold")["files"]:
        (out / name).unlink()
    (out / "run.json").write_text(json.dumps(state))
    with pytest.raises(ArtifactError, match="runs that code"):
        compressor.export(out)
    assert exporting._folded(out, Factory.given(known)).path == out
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_baseline_trained_elsewhere_is_taken_by_its_weights(run: Path, known: str, tmp_path: Path) -> None:
    settings = [f"baseline.path={run / 'baseline'}", "adapt.epochs=1"]
    read = recipe.read(run.parent / "task" / "recipe.yaml", settings)
    line = Line(read, Run(tmp_path / "out", recipe.dump(read)))
    line.probe()
    line.baseline()
    ours, theirs = (load_file(folder / "baseline" / "model.safetensors") for folder in (tmp_path / "out", run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    record = json.loads((run / "baseline" / RECORD).read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / RECORD).write_text(json.dumps(record | {"labels": ["c", "b", "a"]}))
    save_file(theirs, tmp_path / "other" / "model.safetensors")
    with pytest.raises(ModelError, match=r"has the labels c, b, a, but the training data a, b, c"):
        line.sources.models.given(str(tmp_path / "other"), ["a", "b", "c"])


def test_a_module_that_reads_images_goes_down_the_whole_line(tmp_path: Path) -> None:
    path = task_folder(tmp_path / "task", MIXER, {"path": "own_mixer:build", "task": "image-classification"})
    report = pipeline.run(path, tmp_path / "run")
    findings = {found.quantity: found for found in report.exports[0].findings}
    assert findings["accuracy"].candidate >= 0.8
    assert findings["parity"].candidate == 1.0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert {layer["name"] for layer in plan["layers"]} == {
        f"blocks.{block}.{layer}" for block in range(2) for layer in ("tokens", "up", "down")
    }
    assert sum(layer["parameters"] for layer in plan["layers"]) <= 0.5 * 2 * (16 * 16 + 2 * 24 * 48)


def test_a_language_model_with_tied_words_is_trained_folded_and_loaded(tmp_path: Path) -> None:
    path = task_folder(
        tmp_path / "task",
        SPEAKER,
        {"path": "own_speaker:build", "task": "text-generation", "max_length": 8, "targets": ["blocks.*"]},
        adapt={"epochs": 1},
        baseline={"epochs": 2, "learning_rate": 1e-2},
    )
    pipeline.compress(path, tmp_path / "run")
    stored = load_file(tmp_path / "run" / "model.safetensors")
    assert ("words.weight" in stored) != ("say.weight" in stored)
    model = compressor.load(tmp_path / "run", factory=sys.modules["own_speaker"].build)
    assert model.say.weight is model.words.weight
    history = json.loads((tmp_path / "run" / "baseline" / "history.json").read_text())
    losses = [row["eval_loss"] for row in history if "eval_loss" in row]
    assert losses[-1] < losses[0]


FEW = TAGGER.replace("self.blocks =", "self.places = nn.Embedding(12, 32)\n        self.blocks =").replace(
    "x = self.words(input_ids)", "x = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]"
)


@pytest.mark.parametrize("length", [12, 13])
def test_a_length_that_a_module_does_not_take_is_told_before_any_work(tmp_path: Path, length: int) -> None:
    measured = {"runs": 10, "sequence_length": length, "threads": 1, "repeats": 1}
    path = task_folder(tmp_path / "task", FEW, {"path": "few_places:build", "max_length": 12}, validate=measured)
    asked = recipe.read(path)
    line = Line(asked, Run(tmp_path / "run", recipe.dump(asked)))
    if length == 12:
        feasible.require(line.sources, line.sources.dense())
        return
    with pytest.raises(
        InputError, match=r"validate\.sequence_length is 13, and what few_places:build made fails there"
    ):
        feasible.require(line.sources, line.sources.dense())


def test_a_factory_that_can_do_without_labels_keeps_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_defaults.py").write_text(
        "from torch import nn\n\ndef build(labels=('no', 'yes')):\n    return nn.Linear(4, len(labels))\n\n"
        "def bare(labels):\n    return nn.Linear(4, len(labels))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert Factory.given("own_defaults:build").build(TEXTS, None).out_features == 2
    assert Factory.given("own_defaults:build").build(TEXTS, ["a", "b", "c"]).out_features == 3
    with pytest.raises(ModelError, match="called with None for labels: a default lets it do without them"):
        Factory.given("own_defaults:bare").build(TEXTS, None)
