"""What a checkpoint's config says of itself and the task does not: padding, its loss, its head, what it lacks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    ConvBertConfig,
    ConvBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from compressor import feasible, pipeline, progress, recipe, registry
from compressor.errors import InputError, ModelError
from compressor.line import Line
from compressor.models import load_dense
from compressor.planning import Plan
from compressor.run_folder import Run
from compressor.targets import head_parameters
from compressor.tasks.text import load_tokenizer

TASK = registry.task("text-classification")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50}


@pytest.fixture
def task(tiny_task: Callable[[Path], Path], tmp_path: Path) -> Path:
    """The recipe of a small task; its checkpoint lies beside it."""
    (tmp_path / "task").mkdir()
    return tiny_task(tmp_path / "task")


def line_of(path: Path, *settings: str) -> Line:
    asked = recipe.read(path, settings)
    return Line(asked, Run(path.parent / "run", recipe.dump(asked)))


def set_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


# ---- padding ----


@pytest.mark.parametrize("ends", [2, [2, 3]])
def test_a_decoder_finds_the_end_of_a_text_by_what_its_tokenizer_pads_with(task: Path, ends: Any) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL, bos_token_id=1, eos_token_id=ends)).save_pretrained(task.parent / "model")
    line = line_of(task)
    model = line.sources.dense().eval()
    assert model.config.pad_token_id == line.sources.processor.pad_token_id == 0
    short, long = (line.sources.processor(text)["input_ids"] for text in ("word1 word4", "word2 word5 word7 word8"))
    padded = line.sources.processor.pad({"input_ids": [short, long]}, return_tensors="pt")
    with torch.no_grad():
        alone, beside = model(torch.tensor([short])).logits[0], model(**padded).logits[0]
    torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-5)


def test_a_baseline_trained_elsewhere_pads_as_the_tokenizer_does(task: Path) -> None:
    set_config(task.parent / "model", pad_token_id=None, problem_type="regression", num_labels=3)
    labels = ["label0", "label1", "label2"]
    set_config(
        task.parent / "model", id2label=dict(enumerate(labels)), label2id={name: n for n, name in enumerate(labels)}
    )
    line = line_of(task)
    config = line.sources.models.given(str(task.parent / "model"), labels).config
    assert config.pad_token_id == 0
    assert config.problem_type == "single_label_classification"


def test_the_padding_that_a_config_names_stays_since_positions_may_be_counted_by_it(task: Path) -> None:
    config = RobertaConfig(**SMALL, max_position_embeddings=20, pad_token_id=1)
    torch.manual_seed(0)
    RobertaForSequenceClassification(config).eval().save_pretrained(task.parent / "model")
    line, ids = line_of(task), torch.tensor([[5, 6, 7, 8]])
    model, other = line.sources.dense().eval(), RobertaModel.from_pretrained(task.parent / "model").eval()
    assert line.sources.processor.pad_token_id == 0
    with torch.no_grad():
        torch.testing.assert_close(model.roberta(ids).last_hidden_state, other(ids).last_hidden_state)


def uneven(task: Path, classifier: Any, **special: str) -> Path:
    """The task with texts of several lengths, another model, and a tokenizer that has these special tokens."""
    for split, first in (("train", 0), ("test", 60)):
        rows = [
            {"text": " ".join(f"word{n * k % 39}" for k in range(1, 3 + n % 4)), "label": f"label{n % 3}"}
            for n in range(first, first + 60)
        ]
        (task.parent / "data" / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(task.parent / "model")
    tokenizer.pad_token = None
    tokenizer.add_special_tokens({key: token for key, token in special.items() if key.endswith("_token")})
    classifier.eval().save_pretrained(task.parent / "model")
    tokenizer.save_pretrained(task.parent / "model")
    settings = task.parent / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | special))
    return task


def llama(**values: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**{**SMALL, "initializer_range": 0.2, "num_labels": 3, **values}))


def test_a_tokenizer_without_padding_pads_as_the_config_beside_it_says(task: Path) -> None:
    line = line_of(uneven(task, llama(pad_token_id=0), eos_token="word0"))
    model = line.sources.dense().eval()
    feasible.require(line.sources, model)
    short, long = (line.sources.processor(text)["input_ids"] for text in ("word1 word4", "word2 word5 word7 word8"))
    padded = line.sources.processor.pad({"input_ids": [short, long]}, return_tensors="pt")
    with torch.no_grad():
        alone, beside = model(torch.tensor([short])).logits[0], model(**padded).logits[0]
    assert line.sources.processor.pad_token_id == model.config.pad_token_id == 0
    torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "special", "said"),
    [
        ("llama", {"pad_token": "word5"}, "pads with token 7 on the right, the model's config has pad_token_id 0"),
        ("gpt2", {"pad_token": "[PAD]", "padding_side": "left"}, "pads with token 0 on the left, the model's config"),
        ("llama", {"pad_token": "<pad>"}, r"has 43 tokens and the model 42: .* of token 42 \(which pads\)"),
    ],
)
def test_padding_that_the_model_reads_otherwise_is_told_before_any_work(
    task: Path, kind: str, special: dict[str, str], said: str
) -> None:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "pad_token_id": 0, "initializer_range": 0.2}
    torch.manual_seed(0)
    gpt2 = GPT2ForSequenceClassification(GPT2Config(vocab_size=50, num_labels=3, **sizes))
    model = gpt2 if kind == "gpt2" else llama(pad_token_id=0, vocab_size=42)
    line = line_of(uneven(task, model, **special))
    with pytest.raises(ModelError, match=said):
        feasible.require(line.sources, line.sources.dense())


def test_a_model_that_always_reads_its_padding_is_told_of_and_taken(
    task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    config = ConvBertConfig(**SMALL, embedding_size=32, num_labels=3, pad_token_id=0, initializer_range=0.2)
    line = line_of(uneven(task, ConvBertForSequenceClassification(config), pad_token="[PAD]"))
    progress.set_level("normal")
    try:
        feasible.require(line.sources, line.sources.dense())
    finally:
        progress.set_level("off")
    assert "ConvBertForSequenceClassification gives a text other logits beside a longer one" in capsys.readouterr().err


# ---- the baseline ----


@pytest.mark.parametrize(("blocks", "fits"), [(2, True), (3, False)])
def test_a_baseline_of_another_architecture_is_told_before_any_work(
    task: Path, tiny_bert: Callable[..., Any], blocks: int, fits: bool
) -> None:
    config = tiny_bert().config
    config.num_hidden_layers, config.vocab_size = blocks, 60
    BertForSequenceClassification(config).save_pretrained(task.parent / "other")
    line = line_of(task, f"baseline.path={task.parent / 'other'}")
    if fits:
        feasible.require(line.sources, line.sources.dense())
        return
    said = r"other is of another architecture than model\.path.*: 6 layers .* bert\.encoder\.layer\.2\.\S+ \(32 x"
    with pytest.raises(ModelError, match=said):
        feasible.require(line.sources, line.sources.dense())


# ---- the loss and the head ----


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_the_loss_is_that_of_the_task_whatever_the_checkpoint_was_for(task: Path, kind: str) -> None:
    set_config(task.parent / "model", problem_type=kind)
    model = line_of(task).sources.dense()
    ids, labels = torch.randint(1, 40, (5, 6)), torch.tensor([0, 1, 2, 1, 0])
    output = model(input_ids=ids, labels=labels)
    assert output.loss.item() == pytest.approx(torch.nn.functional.cross_entropy(output.logits, labels).item())


def test_what_stands_before_the_blocks_is_no_head() -> None:
    electra = ElectraForSequenceClassification(ElectraConfig(**SMALL, embedding_size=16))
    albert = AlbertForSequenceClassification(AlbertConfig(**SMALL, embedding_size=16))
    for model, heads in (
        (electra, {"classifier.dense", "classifier.out_proj"}),
        (albert, {"albert.pooler", "classifier"}),
    ):
        assert {name.rpartition(".")[0] for name in head_parameters(model)} == heads


def test_a_language_model_has_no_head() -> None:
    config = OPTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, vocab_size=50)
    config.word_embed_proj_dim = 16
    assert head_parameters(OPTForCausalLM(config)) == {}


# ---- what is not there ----


def test_embeddings_that_are_not_there_are_named(task: Path) -> None:
    folder = task.parent / "model"
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "word_embeddings" in name)
    weights["bert.embeddings.words"] = weights.pop(name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of Bert.*word_embeddings.*called bert\.embeddings\.words"):
        load_dense(str(folder), TASK, ["a", "b", "c"])


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the folder holds none of its files\. Is it a checkpoint\?"):
        load_tokenizer(str(tmp_path))


def test_a_mistyped_model_is_told_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "minilm-l6").mkdir()
    monkeypatch.setenv("RANKFOLD_MODELS", str(tmp_path))
    for load in (load_tokenizer, lambda path: load_dense(path, TASK)):
        with pytest.raises(ModelError, match=r"minilm-l7 is no folder beside .* hub id\. Did you mean 'minilm-l6'\?"):
            load("minilm-l7")


# ---- a plan in a file, a core that is not trained ----


def test_a_plan_of_another_layout_is_refused_before_any_work(task: Path, tmp_path: Path) -> None:
    chosen = pipeline.plan(recipe.read(task, ["plan.layout=pivoted"]), tmp_path / "first")
    assert chosen.layout == "pivoted"
    replayed = [f"plan.path={tmp_path / 'first' / 'plan.json'}"]
    with pytest.raises(
        InputError, match=r"layout pivoted, but plan\.layout is two-factor, .* set plan\.layout: pivoted"
    ):
        pipeline.plan(recipe.read(task, replayed), tmp_path / "second")
    assert not (tmp_path / "second" / "baseline").exists()
    again = pipeline.plan(recipe.read(task, [*replayed, "plan.layout=pivoted"]), tmp_path / "third")
    assert again.ranks == replace(chosen, predicted=None).ranks
    assert isinstance(again, Plan)


def test_a_plan_that_lacks_a_target_is_refused_before_any_work(task: Path, tmp_path: Path) -> None:
    chosen = pipeline.plan(recipe.read(task), tmp_path / "first")
    (first, *others) = chosen.layers
    replace(chosen, layers=tuple(others)).save(tmp_path / "less.json")
    with pytest.raises(InputError, match=rf"has no row for {first.name}, which are targets: give them one"):
        pipeline.plan(recipe.read(task, [f"plan.path={tmp_path / 'less.json'}"]), tmp_path / "second")
    assert not (tmp_path / "second" / "baseline").exists()


def test_an_untrained_core_of_a_language_model_is_folded_as_it_is(task: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL, eos_token_id=2)).save_pretrained(task.parent / "model")
    for split, count in (("train", 400), ("test", 80)):
        (task.parent / f"{split}.txt").write_text(" ".join(f"word{n % 13}" for n in range(count)))
    text = task.read_text().replace("{path: data, split: train}", "{path: train.txt}")
    text = text.replace("{path: data, split: test}", "{path: test.txt}").replace(
        "model: {", "model: {task: text-generation, "
    )
    head, _, _ = text.partition("gates:")
    task.write_text(head)
    untrained = ["method.name=spectral", "method.metric=input", "method.train=none", "export=[]"]
    artifact = pipeline.compress(recipe.read(task, untrained), tmp_path / "run")
    assert json.loads((artifact.path / "history.json").read_text()) == []
    assert (artifact.path / "model.safetensors").is_file()
    assert AutoTokenizer.from_pretrained(artifact.path).pad_token_id == 0
