"""Convolutions that are named: measured on their patches, trained, folded to two convolutions, exported."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from compressor import linalg
from compressor.calibration import Statistics, calibrate
from compressor.cores import FreeCore
from compressor.errors import ModelError
from compressor.factorize import factorize_, fold_, plan, restructure_
from compressor.forms import form_of, matrix
from compressor.layers import LAYOUTS, CoreLinear, FactorizedLinear, KeptLinear, PivotedLinear
from compressor.methods.base import Moment
from compressor.methods.jactus import Jactus
from compressor.methods.spectral import Spectral
from compressor.metrics import SpectralMetric
from compressor.planning import Plan
from compressor.targets import consider, find_targets

Batch = dict[str, Tensor]
BOTH = frozenset(Moment)
NAMED = ["stem", "blocks.*.[13]", "last"]
FULL = ["stem", "blocks.0.1", "blocks.0.3", "blocks.1.1", "blocks.1.3", "last"]
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def block() -> nn.Sequential:
    """Depthwise, then two convolutions of size one with an activation that overwrites its input."""
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 1), nn.ReLU(inplace=True), nn.Conv2d(16, 8, 1)
    )


class ConvNet(nn.Module):
    """Patches, blocks of convolutions of size one, a strided 3x3 convolution and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.blocks = nn.ModuleList([block(), block()])
        self.last = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 8, 8) -> logits (B, 3)."""
        h = self.stem(x)
        for one in self.blocks:
            h = h + one(h)
        return self.head(self.last(h).relu().flatten(2).mean(2))


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch["x"]), batch["labels"])


@pytest.fixture
def batches() -> list[Batch]:
    return [{"x": torch.randn(size, 3, 8, 8), "labels": torch.randint(0, 3, (size,))} for size in (5, 3)]


@pytest.fixture
def moments(batches: list[Batch]) -> Callable[[nn.Module], Statistics]:
    return lambda model: calibrate(model, batches, BOTH, targets=NAMED, loss=loss)


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def reasons(model: nn.Module, *arguments: Any) -> dict[str, str]:
    return {row.name: row.reason for row in consider(model, *arguments)}


# ---- which are taken ----


def test_convolutions_are_neither_taken_nor_listed_unless_they_are_named() -> None:
    model = ConvNet()
    assert list(reasons(model)) == ["head"]
    with pytest.raises(ModelError, match=r"none of its 1 linear layers.*; 8 convolutions have to be named\. Name them"):
        find_targets(model)


def test_named_convolutions_are_targets_of_the_shape_of_their_matrix() -> None:
    found = {t.name: (t.out_features, t.in_features) for t in find_targets(ConvNet(), NAMED)}
    assert list(found) == FULL
    assert found["stem"] == (8, 3 * 2 * 2)
    assert found["blocks.0.1"] == (16, 8)
    assert found["last"] == (12, 8 * 3 * 3)


def test_only_convolutions_that_a_glob_names_are_listed() -> None:
    assert reasons(ConvNet(), ["blocks.1.*"]) == {
        "blocks.1.0": "a convolution in 8 groups, which is no single matrix",
        "blocks.1.1": "named by 'blocks.1.*'",
        "blocks.1.3": "named by 'blocks.1.*'",
        "head": "not named by the targets",
    }
    assert reasons(ConvNet(), NAMED, ["last"])["last"] == "excluded by 'last'"


def test_a_convolution_that_is_named_in_full_and_cannot_be_compressed_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"cannot be compressed; take them out:\n  blocks\.0\.0: .* 8 groups"):
        find_targets(ConvNet(), ["stem", "blocks.0.0"])
    with pytest.raises(ModelError, match="none of its 1 linear layers and 2 named convolutions can be compressed"):
        find_targets(ConvNet(), ["blocks.*.0"])


def test_a_mistyped_convolution_is_answered_with_a_near_name() -> None:
    with pytest.raises(ModelError, match=r"'stam' matches no linear layer or convolution.*Did you mean 'stem'\?"):
        find_targets(ConvNet(), ["stam"])


# ---- what they are measured on ----


def squares(rows: list[Tensor]) -> Tensor:
    """z z^T of rows (N, d), float64."""
    z = torch.cat(rows).detach().double()
    return torch.stack([torch.outer(row, row) for row in z])


def by_hand(model: ConvNet, batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Both moments of every named convolution, an example at a time, by torch's unfold and without in-place steps."""
    inputs: dict[str, list[Tensor]] = {name: [] for name in FULL}
    gradients: dict[str, list[Tensor]] = {name: [] for name in FULL}
    for batch in batches:
        for x, label in zip(batch["x"], batch["labels"], strict=True):
            seen, made = {"stem": x[None]}, {}
            h = made["stem"] = model.stem(x[None])
            for number in range(2):
                one: Any = model.blocks[number]
                first, second_ = f"blocks.{number}.1", f"blocks.{number}.3"
                seen[first] = one[0](h)
                made[first] = one[1](seen[first])
                seen[second_] = functional.relu(made[first])
                made[second_] = one[3](seen[second_])
                h = h + made[second_]
            seen["last"], made["last"] = h, model.last(h)
            out = model.head(made["last"].relu().flatten(2).mean(2))
            found = torch.autograd.grad(functional.cross_entropy(out, label[None]), [made[name] for name in FULL])
            for name, gradient in zip(FULL, found, strict=True):
                layer: Any = model.get_submodule(name)
                columns = functional.unfold(seen[name], layer.kernel_size, 1, layer.padding, layer.stride)
                inputs[name].append(columns[0].mT)
                gradients[name].append(gradient[0].flatten(1).mT)
    terms = sum(len(batch["labels"]) for batch in batches)
    return (
        {name: squares(rows).mean(0) for name, rows in inputs.items()},
        {name: squares(rows).sum(0) / terms for name, rows in gradients.items()},
    )


def test_moments_are_those_of_unfolded_patches_and_of_single_gradients(
    batches: list[Batch], moments: Callable[[nn.Module], Statistics]
) -> None:
    model = ConvNet()
    found, (inputs, gradients) = moments(model), by_hand(model, batches)
    for name in FULL:
        one = found[name]
        assert one.input is not None
        assert one.gradient is not None
        torch.testing.assert_close(one.input.matrix.double(), inputs[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.gradient.matrix.double(), gradients[name], rtol=1e-4, atol=1e-9)


def test_a_frozen_model_has_the_same_moments(moments: Callable[[nn.Module], Statistics]) -> None:
    model = ConvNet()
    free, frozen = moments(model), moments(model.requires_grad_(False))
    for name in FULL:
        one, other = free[name].gradient, frozen[name].gradient
        assert one is not None
        assert other is not None
        assert torch.equal(one.matrix, other.matrix)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def mean_square(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return model(batch["x"]).square().mean()


class Branches(nn.Module):
    """Three convolutions of one input, two of them of one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) + self.b(x) + self.c(x)).relu()


def test_convolutions_share_an_input_only_where_they_see_the_same_patches() -> None:
    found = calibrate(Branches(), [{"x": torch.randn(2, 4, 5, 5)}], [Moment.INPUT], targets=["*"], loss=mean_square)
    assert found["a"].input is found["b"].input
    assert found["c"].input is not None
    assert found["c"].input.matrix.shape == (36, 36)


class Tokens(nn.Module):
    """Size-one convolutions over the tokens of a text, as some encoders write their linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.mT).mT  # (B, T, 4) -> (B, 4, T) and back


def test_padding_is_dropped_where_a_convolution_runs_over_tokens() -> None:
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 1, 1]])

    batch = {"x": x, "attention_mask": mask}
    found = calibrate(Tokens(), [batch], [Moment.INPUT], targets=["mix"], loss=mean_square)["mix"].input
    assert found is not None
    torch.testing.assert_close(found.matrix.double(), squares([x[mask.bool()]]).mean(0), rtol=1e-4, atol=1e-6)


# ---- the layers ----


GEOMETRIES: list[tuple[Callable[[], Any], tuple[int, ...]]] = [
    (lambda: nn.Conv2d(9, 7, 1), (2, 9, 3, 4)),
    (lambda: nn.Conv2d(3, 8, 4, stride=4), (2, 3, 13, 8)),
    (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2)), (2, 4, 7, 6)),
    (lambda: nn.Conv2d(4, 6, 3, padding="same", bias=False), (2, 4, 5, 6)),
    (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    (lambda: nn.Conv3d(3, 5, 2, stride=2), (2, 3, 4, 4, 6)),
]
geometries = pytest.mark.parametrize(("build", "shape"), GEOMETRIES)


def trained(dense: Any, rank: int, updates: int) -> CoreLinear:
    """A convolution's core layer at a rank, moved from where it starts."""
    weight = matrix(dense).detach()
    left, s, right = linalg.whitened_svd(weight, *map(SpectralMetric.plain, weight.shape))
    core = FreeCore(torch.diag(s[:rank]), rank)
    layer = CoreLinear(left[:, :rank], core, right[:rank], dense.bias, updates, form_of(dense))
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * (name != "bias"))
    return layer


@pytest.mark.parametrize("updates", [0, 2])
@geometries
def test_a_core_layer_and_what_it_folds_to_are_the_convolution_by_their_product(
    build: Callable[[], Any], shape: tuple[int, ...], updates: int
) -> None:
    dense, x = build(), torch.randn(shape)
    layer = trained(dense, 3, updates)
    down, up = layer.factors()
    expected = copy.deepcopy(dense)
    with torch.no_grad():
        expected.weight.copy_((up @ down).reshape(expected.weight.shape))
    assert np.linalg.matrix_rank((up @ down).numpy(), tol=1e-9) == 3
    torch.testing.assert_close(layer(x), expected(x), rtol=1e-4, atol=1e-5)
    for layout in LAYOUTS:
        folded = layer.folded(layout)
        torch.testing.assert_close(folded(x), expected(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(folded(x[0]), expected(x[0]), rtol=1e-4, atol=1e-5)


@geometries
def test_full_rank_reproduces_the_convolution(build: Callable[[], Any], shape: tuple[int, ...]) -> None:
    dense, x = build(), torch.randn(shape)
    weight = matrix(dense).detach()
    left, s, right = linalg.whitened_svd(weight, *map(SpectralMetric.plain, weight.shape))
    layer = CoreLinear(left, FreeCore(torch.diag(s), len(s)), right, dense.bias, form=form_of(dense))
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-4, atol=1e-5)


@geometries
def test_a_kept_convolution_takes_its_thin_update_and_folds_to_a_plain_one(
    build: Callable[[], Any], shape: tuple[int, ...]
) -> None:
    dense, x = build(), torch.randn(shape)
    layer = KeptLinear(dense, updates=2)
    torch.testing.assert_close(layer(x), dense(x))
    nn.init.normal_(layer.a)
    folded: Any = layer.folded("two-factor")
    assert type(folded) is type(dense)
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-4, atol=1e-5)
    change = matrix(folded) - matrix(dense)
    torch.testing.assert_close(change, layer.a @ layer.b, rtol=1e-4, atol=1e-6)
    assert change.abs().max() > 0.01


def test_two_factors_are_plain_convolutions_and_the_second_has_size_one() -> None:
    pair = trained(nn.Conv2d(4, 6, 3, 2, 1), 3, 0).folded("two-factor")
    assert isinstance(pair, FactorizedLinear)
    assert [type(module) for module in pair.children()] == [nn.Conv2d, nn.Conv2d]
    assert {name: tuple(tensor.shape) for name, tensor in pair.state_dict().items()} == {
        "down.weight": (3, 4, 3, 3),
        "up.weight": (6, 3, 1, 1),
        "up.bias": (6,),
    }
    assert pair.down.extra_repr() == "4, 3, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False"


# ---- the line ----


def compressed(
    model: nn.Module, found: Statistics, layout: Any = "two-factor", updates: int = 2
) -> tuple[nn.Module, Plan]:
    """The model with the layers of a plan, their cores moved by one step, and the plan."""
    method = Jactus(updates=updates)
    chosen = plan(model, method, found, keep=0.6, multiple_of=1, layout=layout)
    kept = replace(chosen.layers[0], rank=None)
    chosen = replace(chosen, layers=(kept, *chosen.layers[1:]))
    factorize_(model, method, found, chosen)
    return model, chosen


@layouts
def test_a_trained_model_folds_exactly_and_comes_back_from_its_plan(
    batches: list[Batch], moments: Callable[[nn.Module], Statistics], layout: Any, tmp_path: Path
) -> None:
    original = ConvNet()
    model, chosen = compressed(copy.deepcopy(original), moments(original), layout)
    assert isinstance(model.get_submodule("stem"), KeptLinear)
    assert isinstance(model.get_submodule("last"), CoreLinear)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        loss(model, batches[0]).backward()
        optimizer.step()
    before = logits(model, batches[0]["x"])
    assert (before - logits(original, batches[0]["x"])).abs().max() > 1e-3
    fold_(model, layout)
    torch.testing.assert_close(logits(model, batches[0]["x"]), before, rtol=1e-4, atol=1e-5)
    kinds = {"two-factor": FactorizedLinear, "pivoted": PivotedLinear}
    assert {type(model.get_submodule(name)) for name in chosen.ranks} == {kinds[layout]}
    assert type(model.get_submodule("stem")) is nn.Conv2d
    stored = sum(model.get_submodule(name).state_dict()[key].numel() for name, key in weights(model, chosen))
    assert stored == sum(layer.parameters for layer in chosen.layers if layer.rank)

    chosen.save(tmp_path / "plan.json")
    again = restructure_(ConvNet(), Plan.load(tmp_path / "plan.json"))
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again, batches[0]["x"]), logits(model, batches[0]["x"]))


def weights(model: nn.Module, chosen: Plan) -> list[tuple[str, str]]:
    return [
        (name, key) for name in chosen.ranks for key in model.get_submodule(name).state_dict() if key.endswith("weight")
    ]


def test_a_folded_convolution_is_one_row_and_no_target(
    batches: list[Batch], moments: Callable[[nn.Module], Statistics]
) -> None:
    model = ConvNet()
    fold_(compressed(model, moments(model))[0])
    assert reasons(model, ["*"])["last"] == "factorized already"
    assert not any(name.startswith("last.") for name in reasons(model, ["*"]))


def test_a_plan_for_a_grouped_convolution_is_refused() -> None:
    chosen = plan(ConvNet(), Spectral(), {}, keep=0.6, multiple_of=1, targets=["last"])
    moved = replace(chosen, layers=(replace(chosen.layers[0], name="blocks.0.0"),))
    with pytest.raises(ModelError, match=r"'blocks\.0\.0' is \(12, 72\) in the plan, no linear layer"):
        factorize_(ConvNet(), Spectral(), {}, moved)


# ---- models that ask for the type of their patch convolution ----


SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3}
PATCHES: dict[str, Any] = {"image_size": 16, "patch_size": 4}


def vit() -> Any:
    return ViTForImageClassification(ViTConfig(**SIZES, **PATCHES, intermediate_size=32))  # asks three levels above


def dinov2() -> Any:
    return Dinov2ForImageClassification(Dinov2Config(**SIZES, **PATCHES, mlp_ratio=2))  # asks right above


def swin() -> Any:
    heads = {"depths": [1], "num_heads": [2], "window_size": 2, "embed_dim": 16, "num_labels": 3}
    return SwinForImageClassification(SwinConfig(**heads, **PATCHES))


@layouts
@pytest.mark.parametrize("build", [vit, dinov2, swin])
def test_the_patches_of_image_models_are_compressed_where_they_are_named(build: Callable[[], Any], layout: Any) -> None:
    model = build().eval()
    batch = {"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.tensor([0, 2])}
    (target,) = find_targets(model, ["*.projection"])
    assert (target.out_features, target.in_features) == (16, 3 * 4 * 4)
    method = Jactus(updates=1)
    found = calibrate(model, [batch], method.needs(), targets=["*.projection"])
    factorize_(model, method, found, plan(model, method, found, keep=0.8, multiple_of=1, layout=layout))
    model(**batch).loss.backward()
    (core,) = (module for module in model.modules() if isinstance(module, FreeCore))
    assert core.get_parameter("block").grad is not None
    before = logits(model, batch["pixel_values"]).logits  # type: ignore[attr-defined]
    fold_(model, layout)
    after = logits(model, batch["pixel_values"]).logits  # type: ignore[attr-defined]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


# ---- export ----


def test_the_convolutions_in_the_docs_are_compressed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "plain-modules.md").read_text(encoding="utf-8")
    (code,) = [
        body for body in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL) if "Conv2d(" in body
    ]
    scope: dict[str, Any] = {}
    exec(compile(code, "plain-modules.md", "exec"), scope)
    assert scope["plan"].ranks
    assert scope["plan"].parameters <= 0.5 * (64 * 48 + 128 * 64 + 64 * 128 * 9)


def test_a_compressed_vit_with_its_patches_is_exported_with_the_same_logits(tmp_path: Path) -> None:
    from exporters.onnx import OnnxExporter

    model, method = vit().eval(), Spectral()
    names = ["*.projection", "*.layer*.*"]
    chosen = plan(model, method, {}, keep=0.8, multiple_of=1, targets=names)
    assert {name.endswith("projection") for name in chosen.ranks} == {True, False}
    fold_(factorize_(model, method, {}, chosen))
    example = {"pixel_values": torch.randn(3, 3, 16, 16)}
    OnnxExporter().export(model, example, tmp_path / "vit")
    found = OnnxExporter().load(tmp_path / "vit")({"pixel_values": example["pixel_values"].numpy()})["logits"]
    np.testing.assert_allclose(found, logits(model, example["pixel_values"]).logits, atol=1e-5)  # type: ignore[attr-defined]


@layouts
def test_a_compressed_convnet_is_exported_with_the_same_logits_and_runs_in_int8(layout: Any, tmp_path: Path) -> None:
    from exporters.onnx import OnnxExporter

    model, method = ConvNet().eval(), Spectral()
    chosen = plan(model, method, {}, keep=0.6, multiple_of=1, targets=NAMED, layout=layout)
    fold_(factorize_(model, method, {}, chosen), layout)
    example = {"x": torch.randn(3, 3, 8, 8)}
    OnnxExporter().export(model, example, tmp_path / "onnx-fp32")
    made = OnnxExporter(precision="int8").export(model, example, tmp_path / "onnx-int8")
    assert made.facts["reused_fp32_graph"]
    expected = logits(model, example["x"])
    for folder, tolerance in (("onnx-fp32", 1e-5), ("onnx-int8", 0.05)):
        found = OnnxExporter().load(tmp_path / folder)({"x": example["x"].numpy()})["logits"]
        np.testing.assert_allclose(found, expected, atol=tolerance)
