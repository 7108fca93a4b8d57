"""Loading safely, and finding targets and heads without naming an architecture."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaModel,
    MPNetConfig,
    RobertaConfig,
    ViTConfig,
)

from compressor import heads
from compressor.errors import ModelError
from compressor.models import describe, load_dense, quiet_libraries
from compressor.targets import dense_layer, find_targets, head_parameters, replace_module
from compressor.tasks.text_classification import TextClassification
from compressor.tasks.text_generation import TextGeneration

TASK = TextClassification()
SMALL = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "num_labels": 3}
BLOCKS = {"num_hidden_layers": 3, "intermediate_size": 24, "max_position_embeddings": 16}
CONFIGS = [
    BertConfig(**SMALL, **BLOCKS),
    RobertaConfig(**SMALL, **BLOCKS),
    MPNetConfig(**SMALL, **BLOCKS),
    DistilBertConfig(vocab_size=40, dim=16, n_layers=3, n_heads=2, hidden_dim=24, num_labels=3),
]
architectures = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


@pytest.fixture
def checkpoint(minilm: str, tmp_path: Path) -> Path:
    """A copy of the real checkpoint, to be damaged."""
    return Path(shutil.copytree(minilm, tmp_path / "minilm"))


@pytest.fixture
def saved_bert(tiny_bert: Callable[[], Any], tmp_path: Path) -> Path:
    """The small random checkpoint as a folder."""
    tiny_bert().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def names(model: nn.Module, *arguments: Any) -> list[str]:
    return [target.name for target in find_targets(model, *arguments)]


# ---- targets ----


@architectures
def test_the_targets_of_an_encoder_are_the_linear_layers_of_its_blocks(config: Any) -> None:
    model = AutoModelForSequenceClassification.from_config(config)
    found = find_targets(model)
    assert len(found) == 3 * 6
    assert {(t.out_features, t.in_features) for t in found} == {(16, 16), (24, 16), (16, 24)}
    for target in found:
        assert tuple(dense_layer(model, target.name).weight.shape) == (target.out_features, target.in_features)
    outside = [name for name in names(model, ["*"]) if name not in names(model)]
    assert set(head_parameters(model)) == {f"{name}.{key}" for name in outside for key in ("weight", "bias")}
    assert all(key in head_parameters(model) for key in _scores(model))


def _scores(model: nn.Module) -> list[str]:
    """Names of the parameters with one row per label."""
    return [name for name, p in model.named_parameters() if len(p) == 3 and p.shape in ((3,), (3, 16))]


def test_the_targets_of_the_real_encoder_are_its_36_linear_layers(minilm: str) -> None:
    model = load_dense(minilm, TASK, ["no", "yes"])
    found = find_targets(model)
    assert len(found) == 36
    assert sum(target.parameters for target in found) == 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert {t.break_even for t in found} == {192, 308}  # mn / (m + n), rounded up
    assert [target.name for target in found] == [row.name for row in describe(minilm, TASK) if row.target]
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert len(head_parameters(model)) == 4


def test_a_layer_with_tied_weights_is_neither_target_nor_head() -> None:
    model = BertForMaskedLM(BertConfig(**SMALL, **BLOCKS))
    assert "cls.predictions.decoder" not in names(model, ["*"])
    assert head_parameters(model) == {}  # what leads to the words is pretrained as well


def test_what_is_in_the_way_of_one_name_of_a_layer_is_in_the_way_of_all() -> None:
    class Decoding(nn.Module):
        """Reads the weight of a layer that another module calls."""

        def __init__(self, lin: nn.Linear) -> None:
            super().__init__()
            self.lin = lin

        def forward(self, x: Tensor) -> Tensor:
            """(..., 6) -> (..., 8)."""
            return x @ self.lin.weight

    model = nn.Module()
    model.enc = nn.ModuleList([nn.Linear(8, 6), nn.Linear(8, 6)])
    model.dec = nn.ModuleList([nn.Identity(), Decoding(model.enc[0])])
    assert names(model) == ["enc.1"]


def test_layers_in_a_repeated_block_that_share_a_weight_are_left_out() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)])
    model.blocks[2].weight = model.blocks[0].weight
    assert names(model) == ["blocks.1"]


def test_globs_choose_and_exclude_targets() -> None:
    model = AutoModelForSequenceClassification.from_config(CONFIGS[0])
    assert len(names(model, ["*.attention.*"])) == 3 * 4
    assert names(model, ["*.0.attention.self.*"], ["*.key"]) == [
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.0.attention.self.value",
    ]
    assert len(names(model, "auto", ["*.layer.2.*"])) == 2 * 6


def test_a_head_is_a_target_where_it_is_named() -> None:
    assert names(AutoModelForSequenceClassification.from_config(CONFIGS[0]), ["classifier"]) == ["classifier"]


@pytest.mark.parametrize("where", ["targets", "exclude"])
def test_a_glob_that_matches_nothing_gets_the_nearest_name(where: str) -> None:
    model = AutoModelForSequenceClassification.from_config(CONFIGS[0])
    with pytest.raises(ModelError, match=r"'clasifier' matches no linear layer.*Did you mean 'classifier'\?"):
        find_targets(model, **{where: ["clasifier"]})


def test_a_model_without_repeated_blocks_says_how_to_name_targets() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(ModelError, match=r"Sequential has no targets: none of its 2 linear layers.*model\.targets"):
        find_targets(model)
    assert names(model, ["0"]) == ["0"]


def test_excluding_everything_leaves_no_targets() -> None:
    with pytest.raises(ModelError, match="no targets"):
        find_targets(AutoModelForSequenceClassification.from_config(CONFIGS[0]), exclude=["*"])


def test_only_a_linear_layer_can_be_asked_for_by_name() -> None:
    model = AutoModelForSequenceClassification.from_config(CONFIGS[0])
    for name in ("bert.embeddings", "bert.nowhere"):
        with pytest.raises(ModelError, match=f"'{name}' is no linear layer or plain convolution of BertForSeq"):
            dense_layer(model, name)


def test_a_module_is_replaced_by_name_at_any_depth() -> None:
    model = AutoModelForSequenceClassification.from_config(CONFIGS[0])
    for name in ("classifier", "bert.encoder.layer.1.output.dense"):
        replace_module(model, name, nn.Identity())
        assert isinstance(model.get_submodule(name), nn.Identity)


# ---- loading ----


def test_the_real_weights_are_loaded_in_float32_as_they_are(minilm: str) -> None:
    model = load_dense(minilm, TASK, ["a", "b", "c"])
    stored = load_file(Path(minilm) / "model.safetensors")
    name = "encoder.layer.3.intermediate.dense.weight"
    assert torch.equal(model.get_parameter(f"bert.{name}"), stored[name].float())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.num_labels == 3


def test_the_tokenizer_belongs_to_the_checkpoint(minilm: str) -> None:
    tokenizer = TASK.processor(minilm)
    assert tokenizer.decode(tokenizer("low rank")["input_ids"]) == "[CLS] low rank [SEP]"


def test_a_pickled_checkpoint_is_refused_before_it_is_read(saved_bert: Path) -> None:
    (saved_bert / "model.safetensors").unlink()
    (saved_bert / "pytorch_model.bin").write_bytes(b"never to be unpickled")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle that can run code.*save_pretrained"):
        load_dense(str(saved_bert), TASK)


def test_a_pickle_beside_safetensors_is_not_in_the_way(saved_bert: Path) -> None:
    (saved_bert / "pytorch_model.bin").write_bytes(b"never to be unpickled")
    assert load_dense(str(saved_bert), TASK).config.hidden_size == 32


@pytest.mark.parametrize("kept", [0, 5, 2_000, -100])
def test_a_truncated_checkpoint_says_so(checkpoint: Path, kept: int) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"minilm is truncated or damaged .*Fetch it again") as caught:
        load_dense(str(checkpoint), TASK)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_named(saved_bert: Path) -> None:
    tensors = load_file(saved_bert / "model.safetensors")
    name = "bert.encoder.layer.1.output.dense.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, saved_bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"1 weights of .* hold NaN or infinite values \({name}\)"):
        load_dense(str(saved_bert), TASK)


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded as a model"):
        load_dense(str(tmp_path), TASK)
    with pytest.raises(ModelError, match="cannot be loaded as a model"):
        describe(str(tmp_path), TASK)
    with pytest.raises(ModelError, match="No tokenizer can be read from"):
        TASK.processor(str(tmp_path))


def test_a_model_that_is_nowhere_is_refused_without_a_network() -> None:
    with pytest.raises(ModelError, match="nobody/nothing cannot be loaded as a model: "):
        load_dense("nobody/nothing", TASK)


def test_a_checkpoint_with_code_of_its_own_needs_consent(saved_bert: Path) -> None:
    config = json.loads((saved_bert / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "homemade.Config"}}
    (saved_bert / "config.json").write_text(json.dumps(config))
    (saved_bert / "homemade.py").write_text("raise SystemExit('code of the checkpoint was run')\n")
    with pytest.raises(ModelError, match=r"needs code that the checkpoint ships.*model\.trust_remote_code: true"):
        load_dense(str(saved_bert), TASK)


def test_a_config_alone_tells_the_targets(saved_bert: Path) -> None:
    (saved_bert / "model.safetensors").unlink()
    assert sum(row.target for row in describe(str(saved_bert), TASK)) == 2 * 6
    assert sum(row.target for row in describe(str(saved_bert), TASK, ["*.query"])) == 2
    assert sum(row.target for row in describe(str(saved_bert), TASK, ["*.query"], ["*.1.*"])) == 1


# ---- heads ----


def test_a_head_for_another_number_of_labels_is_made_anew(saved_bert: Path) -> None:
    model = load_dense(str(saved_bert), TASK, ["a", "b", "c", "d", "e"])  # saved with 3
    assert model.classifier.weight.shape == (5, 32)
    stored = load_file(saved_bert / "model.safetensors")
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier.")}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in kept.items())
    same = load_dense(str(saved_bert), TASK, ["a", "b", "c"])
    assert torch.equal(same.classifier.weight, stored["classifier.weight"])


def named_head(folder: Path, *names: str) -> Tensor:
    """Name the classes of a saved head; its weight."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    return load_file(folder / "model.safetensors")["classifier.weight"]


def test_the_rows_of_a_named_head_go_to_the_labels_that_they_are_of(
    saved_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = named_head(saved_bert, "world", "sports", "business")
    model = load_dense(str(saved_bert), TASK, ["business", "sports", "world"])
    assert torch.equal(model.classifier.weight, rows[[2, 1, 0]])
    assert torch.equal(model.classifier.bias, load_file(saved_bert / "model.safetensors")["classifier.bias"][[2, 1, 0]])
    assert model.config.id2label == {0: "business", 1: "sports", 2: "world"}
    assert torch.equal(load_dense(str(saved_bert), TASK, ["world", "sports", "business"]).classifier.weight, rows)


def test_names_of_classes_are_compared_as_they_stand_first() -> None:
    names = ["LABEL_1", "LABEL_0", "other"]
    assert heads.order_of(names, sorted(names)) == [1, 0, 2]
    assert heads.order_of(["LABEL_0", "LABEL_1"], ["0", "1"]) == [0, 1]
    assert heads.order_of(["LABEL_0", "LABEL_1"], ["0", "LABEL_1"]) is None


def test_a_head_of_other_names_is_taken_as_it_is_and_told(saved_bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = named_head(saved_bert, "world", "sports", "tech")
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compressor.progress.note", lambda text, **_: told.append(text))
        model = load_dense(str(saved_bert), TASK, ["business", "sports", "world"])
    assert torch.equal(model.classifier.weight, rows)
    said = "has a head for world, sports, tech; its rows are taken for business, sports, world in this order."
    assert told == [f"{saved_bert} {said}"]


def test_other_weights_of_another_shape_are_named(saved_bert: Path) -> None:
    tensors = load_file(saved_bert / "model.safetensors")
    tensors["bert.encoder.layer.0.output.dense.bias"] = torch.zeros(7)
    save_file(tensors, saved_bert / "model.safetensors", metadata={"format": "pt"})
    words = r"do not have the shapes that its config says: bert\.encoder\.layer\.0\.output\.dense\.bias \(7,\)\."
    with pytest.raises(ModelError, match=words):
        load_dense(str(saved_bert), TASK, ["a", "b", "c"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "0.auto_model."])
def test_weights_under_foreign_names_are_refused_not_replaced_by_random_ones(saved_bert: Path, prefix: str) -> None:
    weights = load_file(saved_bert / "model.safetensors")
    renamed = {prefix + name: tensor for name, tensor in weights.items()}
    save_file(renamed, saved_bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"lacks \d+ weights of Bert.*called {re.escape(prefix)}bert"):
        load_dense(str(saved_bert), TASK, ["a", "b", "c"])


def test_a_file_with_fewer_blocks_than_its_config_is_refused(saved_bert: Path) -> None:
    config = json.loads((saved_bert / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (saved_bert / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lacks 16 weights of BertForSequenceClassification"):
        load_dense(str(saved_bert), TASK, ["a", "b", "c"])


def test_a_language_model_without_its_own_head_is_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    LlamaModel(LlamaConfig(**sizes, **heads, tie_word_embeddings=False)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks 1 weights of LlamaForCausalLM, such as lm_head\.weight"):
        load_dense(str(tmp_path), TextGeneration())


def test_a_decoder_without_a_padding_token_reads_where_a_text_ends(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, eos_token_id=7)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    model = load_dense(str(tmp_path), TASK, ["a", "b", "c"]).eval()
    assert model.config.pad_token_id == 7
    texts = torch.tensor([[3, 4, 5, 7], [3, 4, 7, 7]])
    with torch.no_grad():
        alone = model(input_ids=texts[1:, :3], attention_mask=torch.ones(1, 3)).logits
        found = model(input_ids=texts, attention_mask=(texts != 7).long()).logits
    torch.testing.assert_close(found[1], alone[0])


def test_a_model_of_another_task_is_told_so(tmp_path: Path) -> None:
    ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is a model of another task \(its architecture is vit\): name it by model"):
        describe(str(tmp_path), TASK)
