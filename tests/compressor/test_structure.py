"""How a model is put together: nothing is skipped without a reason, and what cannot be compressed says what to do."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTForImageClassification,
)

from compressor import progress
from compressor.calibration import calibrate
from compressor.errors import ModelError
from compressor.factorize import factorize_, fold_, plan, restructure_
from compressor.layers import LAYOUTS, FactorizedLinear
from compressor.methods.base import Moment
from compressor.methods.jactus import Jactus
from compressor.methods.spectral import Spectral
from compressor.models import describe, load_dense
from compressor.targets import consider, find_targets, globs_of
from compressor.tasks.text_classification import TextClassification
from compressor.tensors import load_tensors_, save_tensors, state_of

TASK = TextClassification()
Batch = dict[str, Tensor]


class Chain(nn.Module):
    """Blocks one after the other, then a head; `order` may name a block twice."""

    def __init__(self, *blocks: nn.Module, order: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(16, 3)
        self.order = order or tuple(range(len(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        for number in self.order:
            x = torch.tanh(self.blocks[number](x))
        return self.head(x)


def square() -> nn.Linear:
    return nn.Linear(16, 16)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["labels"])


@pytest.fixture
def batches() -> list[Batch]:
    return [{"x": torch.randn(24, 16), "labels": torch.randint(0, 3, (24,))} for _ in range(2)]


def reasons(model: nn.Module, *arguments: Any) -> dict[str, str]:
    return {row.name: row.reason for row in consider(model, *arguments)}


def targets(model: nn.Module, *arguments: Any) -> list[str]:
    return [row.name for row in consider(model, *arguments) if row.target]


def compress(model: nn.Module, batches: list[Batch], keep: float = 0.5) -> nn.Module:
    method = Jactus()
    moments = calibrate(model, batches, method.needs(), loss=loss)
    chosen = plan(model, method, moments, keep=keep, multiple_of=1)
    return fold_(factorize_(model, method, moments, chosen))


# ---- every layer has a row and a reason ----


def test_every_linear_layer_of_a_model_is_listed_with_a_reason(tiny_bert: Callable[[], Any]) -> None:
    model = tiny_bert()
    rows = consider(model)
    assert [row.name for row in rows] == [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert all(row.reason for row in rows)
    assert [row.name for row in rows if row.target] == [target.name for target in find_targets(model)]
    assert {row.reason for row in rows if row.target} == {"in a repeated block"}
    assert {row.name: row.reason for row in rows if not row.target} == {
        "bert.pooler.dense": "outside the repeated blocks",
        "classifier": "outside the repeated blocks",
    }
    assert {(row.out_features, row.in_features) for row in rows} == {(32, 32), (48, 32), (32, 48), (3, 32)}


def test_reasons_name_the_globs_that_chose_and_excluded() -> None:
    found = reasons(Chain(square(), square(), square()), ["blocks.*"], ["*.1"])
    assert found["blocks.0"] == "named by 'blocks.*'"
    assert found["blocks.1"] == "excluded by '*.1'"
    assert found["head"] == "not named by the targets"


@pytest.mark.parametrize("narrow", [nn.Linear(16, 1), nn.Linear(2, 2)])
def test_a_layer_without_a_cheaper_rank_is_too_narrow(narrow: nn.Linear) -> None:
    model = Chain(square(), narrow)
    assert reasons(model)["blocks.1"] == "too narrow for any rank to be cheaper"
    assert targets(model) == ["blocks.0"]


def test_a_tied_layer_names_what_it_is_tied_to_and_cannot_be_named_in_full() -> None:
    model = BertForMaskedLM(BertConfig(vocab_size=40, hidden_size=16, num_attention_heads=2, num_hidden_layers=2))
    name = "cls.predictions.decoder"
    assert reasons(model)[name] == "its weight is tied to bert.embeddings.word_embeddings"
    assert name not in targets(model, ["*"])
    with pytest.raises(ModelError, match=r"cannot be compressed; take them out:\n  cls\.pred.*tied to bert\.emb"):
        find_targets(model, [name])
    assert find_targets(model, ["*"], [name])


def test_the_error_for_no_targets_says_how_many_layers_had_which_reason() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 4), nn.Linear(4, 1))
    with pytest.raises(ModelError, match=r"none of its 3 .*; 3 too narrow for any rank to be cheaper\. Name them"):
        find_targets(model, ["*"])


# ---- targets that are named where there are no blocks ----


class Plain(nn.Module):
    """No repeated blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = square(), square(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def test_what_was_named_for_calibration_is_planned(batches: list[Batch]) -> None:
    model, method = Plain(), Jactus()
    moments = calibrate(model, batches, method.needs(), targets=["*st", "second"], loss=loss)
    assert list(moments) == ["first", "second"]
    assert [layer.name for layer in plan(model, method, moments, multiple_of=1).layers] == ["first", "second"]
    chosen = plan(model, method, moments, multiple_of=1, targets=["second"])
    assert [layer.name for layer in chosen.layers] == ["second"]
    assert [layer.name for layer in plan(model, Spectral(), {}, multiple_of=1, targets=["head"]).layers] == ["head"]
    with pytest.raises(ModelError, match="Plain has no targets"):
        plan(model, Spectral(), {})


@pytest.mark.parametrize("updates", [0, 2])
def test_a_named_target_that_stays_dense_is_frozen_and_only_other_layers_are_the_head(updates: int) -> None:
    model, method = Plain(), Spectral(updates=updates)
    chosen = plan(model, method, {}, keep=0.5, multiple_of=1, targets=["first", "second"])
    first, second = chosen.layers
    factorize_(model, method, {}, replace(chosen, layers=(replace(first, rank=None), second)))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if name.startswith("head")} == {"head.weight", "head.bias"}
    assert {name for name in trained if name.startswith("first")} == ({"first.a", "first.b"} if updates else set())


# ---- one layer in several places ----


def test_a_layer_under_two_names_is_compressed_once_and_stays_shared(batches: list[Batch], tmp_path: Path) -> None:
    one = square()
    model = Chain(one, square(), one)
    assert targets(model) == ["blocks.0", "blocks.1"]
    assert reasons(model)["blocks.2"] == "the same layer as blocks.0 and compressed with it"
    compress(model, batches)
    assert isinstance(model.blocks[0], FactorizedLinear)
    assert model.blocks[0] is model.blocks[2]
    save_tensors(state_of(model), tmp_path / "folded.safetensors")
    assert (
        sum(t.numel() for n, t in load_file(tmp_path / "folded.safetensors").items() if n.startswith("blocks.2")) == 0
    )


def test_a_shared_layer_is_restored_shared(batches: list[Batch], tmp_path: Path) -> None:
    def build() -> Chain:
        one = square()
        return Chain(one, square(), one)

    model, method = build(), Spectral()
    chosen = plan(model, method, {}, keep=0.5, multiple_of=1)
    fold_(factorize_(model, method, {}, chosen))
    save_tensors(state_of(model), tmp_path / "folded.safetensors")
    again = load_tensors_(restructure_(build(), chosen), tmp_path / "folded.safetensors")
    assert again.blocks[0] is again.blocks[2]
    assert torch.equal(again(batches[0]["x"]), model(batches[0]["x"]))


def test_a_glob_of_a_second_name_means_the_same_layer() -> None:
    one = square()
    model = Chain(one, square(), one)
    assert targets(model, ["blocks.2"]) == ["blocks.0"]
    assert [target.name for target in find_targets(model, ["blocks.2"])] == ["blocks.0"]
    assert targets(model, "auto", ["blocks.2"]) == ["blocks.1"]


def test_a_layer_used_twice_in_one_pass_is_measured_on_both_inputs(batches: list[Batch]) -> None:
    model = Chain(square(), square(), order=(0, 0, 1))
    found = calibrate(model, batches, [Moment.INPUT], loss=loss)["blocks.0"].input
    x = torch.cat([batch["x"] for batch in batches])
    seen = torch.cat([x, torch.tanh(model.blocks[0](x))]).double()
    assert found is not None
    torch.testing.assert_close(found.matrix.double(), seen.mT @ seen / len(seen), rtol=1e-4, atol=1e-5)
    before = model(batches[0]["x"])
    compress(model, batches, keep=0.99)
    assert (model(batches[0]["x"]) - before).abs().max() < before.abs().max()


def test_layers_never_reached_in_calibration_are_named_as_globs_to_exclude(batches: list[Batch]) -> None:
    model = Chain(nn.Sequential(square()), nn.Sequential(square()), nn.Sequential(square()), order=(0,))
    with pytest.raises(ModelError, match=r"2 targets were never reached.*model\.exclude: \['blocks\.1\.0', 'blocks\.2"):
        calibrate(model, batches, [Moment.INPUT], loss=loss)


def test_globs_widen_block_numbers_only_where_that_takes_no_other_layer_along() -> None:
    names = [f"layer.{number}.{kind}" for number in range(3) for kind in ("query", "gate")]
    assert globs_of([name for name in names if name.endswith("gate")], names) == ["layer.*.gate"]
    assert globs_of(["layer.1.gate"], names) == ["layer.1.gate"]


# ---- layers that are no plain weight ----


class Biased(nn.Linear):
    """A linear layer that does more."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


def test_a_linear_layer_with_a_forward_of_its_own_is_compressed_only_where_it_is_named() -> None:
    model = Chain(square(), Biased(16, 16))
    assert targets(model) == ["blocks.0"]
    assert "Biased has a forward of its own; name it if" in reasons(model)["blocks.1"]
    assert targets(model, ["blocks.*"]) == ["blocks.0", "blocks.1"]


def test_a_parametrized_weight_stays_as_it_is() -> None:
    model = Chain(square(), nn.utils.parametrizations.weight_norm(square()))
    assert reasons(model)["blocks.1"] == "its weight is computed by a parametrization; remove that first"
    assert targets(model) == ["blocks.0"]


def test_torch_encoder_layers_run_in_evaluation_after_they_were_compressed() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    x, padding = torch.randn(4, 5, 16), torch.arange(5) > torch.tensor([[2], [3], [4], [5]])

    def mean_square(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"]).square().mean()

    assert (
        reasons(encoder)["layers.0.self_attn.out_proj"] == "the forward of MultiheadAttention reads its weight directly"
    )
    assert targets(encoder) == [f"layers.{block}.linear{number}" for block in (0, 1) for number in (1, 2)]
    original = copy.deepcopy(encoder)
    moments = calibrate(encoder, [{"x": x}], Jactus().needs(), loss=mean_square)
    fold_(factorize_(encoder, Jactus(), moments, plan(encoder, Jactus(), moments, keep=0.9, multiple_of=1)))
    with torch.no_grad():
        dense, low = original.eval()(x), encoder.eval()(x)
        padded = encoder(x, src_key_padding_mask=padding)  # (4, 5, 16), row 3 without padding
    assert (low - dense).abs().max() < 0.5 * dense.abs().max()
    torch.testing.assert_close(padded[3], low[3])


def test_a_layer_whose_weight_its_parent_reads_stays_dense_and_the_model_runs() -> None:
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    model = T5EncoderModel(T5Config(**sizes)).eval()
    found = reasons(model)
    assert (
        found["encoder.block.0.layer.1.DenseReluDense.wo"] == "the forward of T5DenseActDense reads its weight directly"
    )
    assert len(targets(model)) == 2 * (4 + 1)
    chosen = plan(model, Spectral(), {}, keep=0.5, multiple_of=1)
    fold_(factorize_(model, Spectral(), {}, chosen))
    assert model(torch.tensor([[3, 4, 5]])).last_hidden_state.isfinite().all()


class Asking(nn.Module):
    """Asks its layer for type and device, as transformers' image models do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = square()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.to(self.inner.weight.dtype).to(self.inner.weight.device))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layer_that_is_asked_for_its_type_and_device_is_compressed_and_answers(
    batches: list[Batch], layout: Any
) -> None:
    model, method = Chain(Asking(), Asking()), Spectral(updates=1)
    assert targets(model) == ["blocks.0.inner", "blocks.1.inner"]
    chosen = plan(model, method, {}, keep=0.5, multiple_of=1, layout=layout)
    factorize_(model, method, {}, chosen)
    before = model(batches[0]["x"])
    fold_(model, layout)
    torch.testing.assert_close(model(batches[0]["x"]), before, rtol=1e-4, atol=1e-5)
    layer: Any = model.blocks[0].inner
    assert layer.weight.dtype == torch.float32
    assert layer.double().weight.dtype == torch.float64
    with pytest.raises(AttributeError):
        layer.weight.shape  # noqa: B018 (what it does not have as one tensor)


class Reaching(nn.Module):
    """Reads a weight two levels down."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = Asking()

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(x) + self.outer.inner.weight.sum()


def test_a_weight_that_is_read_from_further_above_stays_dense() -> None:
    model = Chain(Reaching(), square())
    assert reasons(model)["blocks.0.outer.inner"] == "the forward of Reaching reads its weight directly"
    assert targets(model) == ["blocks.1"]


class Padding(nn.Module):
    """Pads by what it reads of its layers, directly or in a function, as MobileNets do."""

    def __init__(self) -> None:
        super().__init__()
        self.direct, self.handed = nn.Conv1d(4, 6, 3), nn.Conv1d(6, 4, 3)
        self.first, self.second = square(), square()

    def forward(self, x: Tensor) -> Tensor:
        x = self.direct(nn.functional.pad(x, (self.direct.kernel_size[0] - 1, 0)))
        x = self.handed(padded(x, self.handed))
        x = self.first(x).reshape(-1, 4, self.first.out_features)
        return self.second(x) + self.second.bias if self.second is not None else x


def padded(x: Tensor, layer: nn.Conv1d) -> Tensor:
    return nn.functional.pad(x, (layer.kernel_size[0] - 1, 0))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_factors_answer_for_sizes_and_strides_and_what_they_lack_keeps_a_layer_dense(layout: Any) -> None:
    model, x = Padding(), torch.randn(2, 4, 16)
    assert reasons(model, ["*"]) == dict.fromkeys(["direct", "handed", "first"], "named by '*'") | {
        "second": "the forward of Padding reads its bias directly"
    }
    chosen = plan(model, Spectral(), {}, keep=0.5, multiple_of=1, targets=["*"], layout=layout)
    before = factorize_(model, Spectral(), {}, chosen)(x)
    torch.testing.assert_close(fold_(model, layout)(x), before, rtol=1e-4, atol=1e-5)


class Packed(nn.Module):
    """As GPTQ keeps a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.infeatures, self.outfeatures = 16, 8
        self.register_buffer("qweight", torch.zeros(2, 8, dtype=torch.int32))


class Eight(nn.Linear):
    """As bitsandbytes keeps one."""

    def __init__(self) -> None:
        super().__init__(16, 16)
        self.weight = nn.Parameter(self.weight.to(torch.int8), requires_grad=False)


class Lora(nn.Module):
    """As PEFT wraps a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.in_features, self.out_features = square(), 16, 16
        self.lora_A = nn.ModuleDict({"default": nn.Linear(16, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 16, bias=False)})


@pytest.mark.parametrize("layer", [Packed, Eight])
def test_quantized_layers_are_listed_and_the_model_is_refused(layer: type[nn.Module]) -> None:
    model = Chain(square(), layer())
    rows = {row.name: row for row in consider(model)}
    assert rows["blocks.1"].reason == f"quantized ({layer.__name__})"
    assert rows["blocks.1"].in_features == 16
    with pytest.raises(ModelError, match=r"1 layers \(blocks\.1\) of Chain are quantized.*dequantize\(\)"):
        find_targets(model)


def test_adapters_are_one_row_each_and_are_to_be_merged_first(batches: list[Batch]) -> None:
    model = Chain(square(), Lora())
    assert reasons(model) == {
        "blocks.0": "in a repeated block",
        "blocks.1": "carries an adapter (Lora)",
        "head": "outside the repeated blocks",
    }
    with pytest.raises(ModelError, match=r"1 layers \(blocks\.1\) of Chain carry an adapter: .*merge_and_unload\(\)"):
        calibrate(model, batches, [Moment.INPUT], loss=loss)


def test_factorized_layers_are_one_row_each(batches: list[Batch]) -> None:
    model = compress(Chain(square(), square()), batches)
    assert reasons(model)["blocks.0"] == "factorized already"
    assert len(consider(model)) == 3
    with pytest.raises(ModelError, match="2 factorized already"):
        find_targets(model)


torch_deprecates_itself = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")


@torch_deprecates_itself
@pytest.mark.parametrize(
    ("wrap", "advice"),
    [(nn.DataParallel, r"`model\.module`"), (torch.compile, r"`model\._orig_mod`")],
    ids=["DataParallel", "compile"],
)
def test_wrapped_models_are_refused_with_what_to_give_instead(
    wrap: Callable[[nn.Module], nn.Module], advice: str, batches: list[Batch]
) -> None:
    model = Chain(square(), square())
    chosen = plan(model, Spectral(), {}, keep=0.5, multiple_of=1)
    wrapped = wrap(model)
    for act in (
        lambda: find_targets(wrapped),
        lambda: calibrate(wrapped, batches, [Moment.INPUT], loss=loss),
        lambda: factorize_(wrapped, Spectral(), {}, chosen),
        lambda: fold_(wrapped),
    ):
        with pytest.raises(ModelError, match=advice):
            act()
    assert all(type(block) is nn.Linear for block in model.blocks)


@torch_deprecates_itself
def test_a_model_compiled_in_place_is_refused() -> None:
    model = Chain(square())
    model.compile()
    with pytest.raises(ModelError, match=r"before `\.compile\(\)`"):
        find_targets(model)


# ---- checkpoints ----


@pytest.fixture
def saved(tiny_bert: Callable[[], Any], tmp_path: Path) -> Path:
    tiny_bert().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def refusal(path: Path) -> str:
    """What both ways in say of a folder; they agree."""
    with pytest.raises(ModelError) as loaded:
        load_dense(str(path), TASK)
    with pytest.raises(ModelError) as described:
        describe(str(path), TASK)
    assert str(loaded.value) == str(described.value)
    return str(loaded.value)


def test_half_precision_is_read_in_float32_and_said_once(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(saved / "model.safetensors").items()}
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    progress.set_level("normal")
    try:
        models = [load_dense(str(saved), TASK) for _ in range(2)]
    finally:
        progress.set_level("off")
    said = capsys.readouterr().err
    assert said.count("is stored in bfloat16; it is read, trained and exported in float32") == 1
    name = "bert.encoder.layer.0.output.dense.weight"
    assert {parameter.dtype for parameter in models[1].parameters()} == {torch.float32}
    assert torch.equal(models[1].get_parameter(name), tensors[name].float())


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8"}, "fp8"),
    ],
)
def test_a_quantized_checkpoint_is_refused_before_its_library_is_needed(
    saved: Path, settings: dict[str, Any], kind: str
) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    assert f"is quantized ({kind}), and factors are made of full weights" in refusal(saved)


def test_an_artifact_is_refused_with_its_dense_model_and_its_baseline(saved: Path) -> None:
    (saved / "artifact.json").write_text(json.dumps({"recipe": {"model": {"path": "/models/dense"}}}))
    text = refusal(saved)
    assert "is compressed already" in text
    assert "/models/dense" in text
    assert f"{saved}/baseline" in text


def test_an_unfinished_run_and_an_export_are_no_models_but_their_file_names_may_be_anyones(saved: Path) -> None:
    (saved / "run.json").write_text(json.dumps({"recipe": {"model": {"path": "dense"}}}))
    assert load_dense(str(saved), TASK) is not None
    (saved / "model.safetensors").unlink()
    assert "unfinished run" in refusal(saved)
    (saved / "run.json").rename(saved / "export.json")
    assert "is an export" in refusal(saved)


def test_a_path_that_is_nowhere_is_said_to_be_missing() -> None:
    assert "/no/such/model does not exist" in refusal(Path("/no/such/model"))


def test_an_adapter_folder_is_to_be_merged_first(saved: Path, tmp_path: Path) -> None:
    for folder in (saved, tmp_path / "adapter"):
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
        text = refusal(folder)
        assert "holds an adapter, to be laid over owner/base" in text
        assert "merge_and_unload" in text
    shutil.rmtree(tmp_path / "adapter")


def test_experts_of_a_mixture_are_listed_with_the_reason_why_they_stay_dense() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = MixtralForCausalLM(MixtralConfig(num_hidden_layers=1, num_local_experts=3, vocab_size=32, **sizes))
    rows = {row.name: row for row in consider(model)}
    experts = [name for name, parameter in model.named_parameters() if parameter.ndim == 3]
    assert experts
    for name in experts:
        assert not rows[name].target
        assert rows[name].parameters == model.get_parameter(name).numel()
        assert rows[name].reason.startswith("3 matrices of ")
        assert "stay dense" in rows[name].reason
    assert rows["model.layers.0.self_attn.o_proj"].target


def test_tokens_and_positions_in_one_parameter_are_no_experts() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))
    assert any(parameter.ndim == 3 for parameter in model.parameters())
    assert not [row for row in consider(model) if "one parameter" in row.reason]
