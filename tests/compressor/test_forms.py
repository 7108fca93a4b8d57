"""A convolution is its matrix on unfolded patches, whatever its stride, padding and dilation; what is none is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from compressor.forms import as_dense, form_of, is_dense, matrix, objection

LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 7), (2, 6, 5)),
    "1x1": (lambda: nn.Conv2d(5, 7, 1), (2, 5, 3, 4)),
    "patch": (lambda: nn.Conv2d(3, 8, 4, stride=4), (2, 3, 13, 8)),  # a row of pixels is left over
    "3x3": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), (2, 4, 7, 6)),
    "uneven": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), bias=False), (2, 4, 7, 6)),
    "same": (lambda: nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2)), (2, 4, 7, 6)),
    "valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 7, 6)),
    "1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2), (2, 4, 9)),
    "3d": (lambda: nn.Conv3d(3, 5, (2, 3, 2), stride=2, padding=(0, 1, 0)), (2, 3, 4, 5, 6)),
}
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
every_layer = pytest.mark.parametrize("kind", LAYERS)


def built(kind: str) -> tuple[Any, Tensor]:
    """A layer and an input for it."""
    build, shape = LAYERS[kind]
    return build(), torch.randn(shape)


@every_layer
def test_the_rows_of_an_input_times_the_matrix_are_the_outputs(kind: str) -> None:
    layer, x = built(kind)
    form = form_of(layer)
    expected = form.inputs(x) @ matrix(layer).mT + (0 if layer.bias is None else layer.bias)
    torch.testing.assert_close(form.outputs(layer(x)), expected, rtol=1e-4, atol=1e-5)


@every_layer
def test_a_form_applies_a_matrix_and_a_bias_as_the_layer_does(kind: str) -> None:
    layer, x = built(kind)
    torch.testing.assert_close(form_of(layer).apply(x, matrix(layer), layer.bias), layer(x))
    torch.testing.assert_close(form_of(layer).apply(x[0], matrix(layer), layer.bias), layer(x[0]))


@pytest.mark.parametrize("kind", ["1x1", "patch", "3x3", "uneven"])
def test_patches_are_those_of_unfold(kind: str) -> None:
    layer, x = built(kind)
    columns = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # (B, n, L)
    assert torch.equal(form_of(layer).inputs(x).flatten(1, 2), columns.mT)
    assert torch.equal(form_of(layer).inputs(x[0]).flatten(0, 1), columns[0].mT)


@every_layer
def test_what_a_form_makes_applies_and_mixes_matrices(kind: str) -> None:
    layer, x = built(kind)
    form, (out_features, in_features) = form_of(layer), matrix(layer).shape
    first: Any = form.layer(in_features, out_features, bias=True)
    second: Any = form.mixer(out_features, 3, bias=True)
    assert type(first) is type(second) is type(layer)
    y = first(x)
    torch.testing.assert_close(form.apply(x, matrix(first), first.bias), y)
    torch.testing.assert_close(form.mix(y, matrix(second), second.bias), second(y))
    torch.testing.assert_close(form.shift(form.mix(y, matrix(second)), second.bias), second(y))


@every_layer
def test_a_convolution_is_its_own_dense_layer(kind: str) -> None:
    layer, _ = built(kind)
    assert is_dense(layer)
    assert as_dense(layer) is layer


def test_a_transposed_linear_layer_becomes_a_linear_one() -> None:
    layer, x = Conv1D(7, 5), torch.randn(2, 5)
    found = as_dense(layer)
    assert isinstance(found, nn.Linear)
    torch.testing.assert_close(found(x), layer(x))
    assert form_of(layer) == form_of(found)


class Standardized(nn.Conv2d):
    """As BiT's and NFNet's: the weight is changed on its way."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), "a convolution in 4 groups, which is no single matrix"),
        (nn.Conv1d(4, 6, 3, groups=2), "a convolution in 2 groups"),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), "a transposed convolution"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "pads by 'reflect'; only zeros"),
        (Standardized(4, 4, 3), "Standardized is a convolution with a forward of its own"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_convolution_that_is_no_matrix_of_zero_padded_patches_says_why(layer: nn.Module, reason: str) -> None:
    assert reason in objection(layer)
    assert not is_dense(layer)
    assert as_dense(layer) is None


def test_other_layers_are_neither_dense_nor_objected_to() -> None:
    assert not is_dense(nn.Embedding(4, 4))
    assert as_dense(nn.Embedding(4, 4)) is None
    assert objection(nn.Linear(4, 4)) == ""
