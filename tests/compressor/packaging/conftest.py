"""Small run folders with real exports of random weights, sealed and reported as the line leaves them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BitImageProcessorPil,
    LlamaConfig,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from compressor import registry
from compressor.artifact import files_of, seal
from compressor.files import file_digest
from compressor.packaging.assemble import package
from compressor.recipe import Recipe, dump
from exporters.onnx import OnnxExporter
from validators.base import Finding
from validators.export_report import ExportReport
from validators.report import Report

WORDS = ["[CLS]", "[SEP]", "[UNK]", "[PAD]", "one", "two", "three", "four", "red", "blue", "Question", ":", "Answer"]
LABELS = ["calm", "glad", "sad|<b>odd</b>"]
README = "---\nlicense: apache-2.0\n---\n# A base\n"
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def words(kind: str) -> Any:
    """A tokenizer of whole words; texts stand between [CLS] and [SEP], or begin with [CLS] as a language model's do."""
    told = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    told.pre_tokenizer = Whitespace()
    single, pair = (
        ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1") if kind == "bert" else ("[CLS] $A", "[CLS] $A $B:1")
    )
    told.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=told, unk_token="[UNK]", pad_token="[PAD]", bos_token="[CLS]", eos_token="[SEP]"
    )


def bert() -> tuple[Any, Any]:
    config = BertConfig(**SMALL, vocab_size=len(WORDS), max_position_embeddings=16, num_labels=3, initializer_range=0.4)
    return BertForSequenceClassification(config), words("bert")


def llama() -> tuple[Any, Any]:
    config = LlamaConfig(
        **SMALL,
        vocab_size=len(WORDS),
        max_position_embeddings=32,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=3,
    )
    return AutoModelForCausalLM.from_config(config), words("llama")


def vit() -> tuple[Any, Any]:
    config = ViTConfig(**SMALL, image_size=16, patch_size=8, num_labels=3, initializer_range=0.4)
    processor = BitImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})
    return ViTForImageClassification(config), processor


BUILT: dict[str, Callable[[], tuple[Any, Any]]] = {
    "text-classification": bert,
    "image-classification": vit,
    "text-generation": llama,
    "multiple-choice": llama,
}


def findings(failed: bool) -> tuple[Finding, ...]:
    accuracy = Finding(
        "accuracy",
        "",
        "higher",
        0.95,
        0.94,
        interval=(0.93, 0.95),
        confidence=0.95,
        limit=0.99 if failed else 0.9,
        verdict="fail" if failed else "pass",
    )
    return (accuracy, Finding("size", "MB", "lower", 10.0, 5.0))


def report(folder: Path, failed: tuple[str, ...] = ()) -> Report:
    """What validation would leave: one report per export, and the digests of what was measured."""
    exports = [
        ExportReport(path.name, "onnx", path.name.partition("-")[2], "candidate", findings(path.name in failed))
        for path in sorted((folder / "exports").iterdir())
    ]
    dense = ExportReport("dense-onnx-int8", "onnx", "int8", "reference", findings(failed=False))
    context = {
        "model": {"class": "TinyModel"},
        "machine": {"cpu": "A small one", "threads": 1},
        "versions": {"onnxruntime": "1.99.0", "numpy": "2.0.0", "tokenizers": "0.99.0"},
        "data": {"evaluation": {"rows": 40}},
        "files": {name: file_digest(folder / name) for name in files_of(folder) if name.startswith("exports/")},
    }
    return Report((*exports, dense), context)


def build(task: str, folder: Path, model: Any, processor: Any, precisions: tuple[str, ...] = ("fp32",)) -> Path:
    """A run folder of a task, with a base checkpoint beside it that states its license."""
    base = folder / "tiny-base"
    base.mkdir(parents=True)
    (base / "README.md").write_text(README)
    (base / "LICENSE").write_text("The license of the base.\n")
    run = folder / "run"
    (run / "exports").mkdir(parents=True)
    for precision in precisions:
        target = run / "exports" / f"onnx-{precision}"
        exporter = OnnxExporter(precision=precision)  # type: ignore[arg-type]
        exporter.export(model.eval(), registry.task(task).example(processor), target)
        processor.save_pretrained(target)
    finish(run, task, base)
    return run


def finish(run: Path, task: str, base: Path) -> None:
    """Manifest and report over the exports that are there."""
    source = {"path": str(base.parent / "data" / "colors")}
    recipe = Recipe.model_validate(
        {"model": {"path": str(base), "task": task, "max_length": 12}, "data": {"train": source, "evaluation": source}}
    )
    split = {"path": source["path"], "rows": 40, "digest": "ab" * 32}
    facts = {
        "recipe": dump(recipe),
        "task": task,
        "labels": LABELS if "classification" in task else None,
        "data": {"train": split, "evaluation": split | {"digest": "cd" * 32}},
        "trust_remote_code": False,
        "base_digest": "ef" * 32,
        "parameters": {"model": 2000, "model_deployed": 1200, "targets": 1000, "targets_deployed": 200},
    }
    seal(run, facts)
    report(run).save(run)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """task -> its run folder, made once and not to be touched."""
    done: dict[str, Path] = {}

    def make(task: str) -> Path:
        if task == "multiple-choice":  # the same model as another's
            other = make("text-generation").parent
            done[task] = Path(shutil.copytree(other, tmp_path_factory.mktemp(task), dirs_exist_ok=True)) / "run"
            finish(done[task], task, done[task].parent / "tiny-base")
        elif task not in done:
            torch.manual_seed(0)
            precisions = ("fp32", "int8") if task == "text-classification" else ("fp32",)
            done[task] = build(task, tmp_path_factory.mktemp(task), *BUILT[task](), precisions)
        return done[task]

    return make


@pytest.fixture(scope="session")
def packaged(made: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """task -> its package, made once and not to be touched."""
    done: dict[str, Path] = {}

    def make(task: str) -> Path:
        if task not in done:
            done[task] = tmp_path_factory.mktemp("packages") / f"{task}.tar.gz"
            package(made(task), done[task], export="onnx-fp32")
        return done[task]

    return make


@pytest.fixture
def run(made: Callable[[str], Path], tmp_path: Path) -> Path:
    """A run of a text classifier in fp32 and int8, to be spoiled."""
    return Path(shutil.copytree(made("text-classification"), tmp_path / "copy"))


@pytest.fixture
def archive(packaged: Callable[[str], Path], tmp_path: Path) -> Path:
    """A package of a text classifier, to be spoiled."""
    return Path(shutil.copy(packaged("text-classification"), tmp_path / "half.tar.gz"))


@pytest.fixture
def reported() -> Callable[..., Report]:
    """A run folder and the names of the exports that fail -> a report of what lies there now."""
    return report


@pytest.fixture
def built() -> Callable[..., Path]:
    """A task, a new folder, a model and its processor -> a run folder."""
    return build
