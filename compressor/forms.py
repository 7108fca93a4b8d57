"""How a weight matrix (m, n) meets its input: a linear layer takes rows as they come, a convolution its patches.

A convolution without groups is a linear map of patches: its weight (out, in, *kernel) is the matrix (out, in *
prod(kernel)). Two factors of that matrix are a convolution of the same kernel to r channels and a convolution of size
one after it (Zhang et al., arXiv 1505.06798), so a form has two kinds of maps: `apply` from the input, `mix` after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from compressor.transposed import as_linear, is_transposed

Dense = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")  # as a convolution says it
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS: tuple[type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONVOLVE: tuple[Callable[..., Tensor], ...] = (functional.conv1d, functional.conv2d, functional.conv3d)


@dataclass(frozen=True)
class Rows:
    """Linear layers: x (..., n) -> y (..., m)."""

    axis: ClassVar[int] = -1  # of the features

    def apply(self, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., n) -> (..., r) by a matrix (r, n)."""
        return functional.linear(x, matrix, bias)

    def mix(self, z: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., r) -> (..., m) by a matrix (m, r)."""
        return functional.linear(z, matrix, bias)

    def shift(self, y: Tensor, bias: Tensor) -> Tensor:
        """y (..., m) + bias (m,)."""
        return y + bias

    def inputs(self, x: Tensor) -> Tensor:
        """The rows that the matrix is applied to, (..., n)."""
        return x

    def outputs(self, y: Tensor) -> Tensor:
        """The rows that it gives, (..., m)."""
        return y

    def attributes(self, in_features: int, out_features: int) -> dict[str, Any]:
        """What models read of an nn.Linear beside its weight and its features."""
        return {}

    def layer(self, in_features: int, out_features: int, *, bias: bool) -> Dense:
        """An empty layer that applies a matrix (out_features, in_features)."""
        return nn.Linear(in_features, out_features, bias=bias)

    def mixer(self, in_features: int, out_features: int, *, bias: bool) -> Dense:
        """An empty layer that mixes by a matrix (out_features, in_features)."""
        return nn.Linear(in_features, out_features, bias=bias)


@dataclass(frozen=True)
class Patches:
    """Convolutions over d axes: x (B, C, *S) -> y (B, m, *S'), n = C * prod(kernel) numbers in a patch."""

    kernel: tuple[int, ...]  # (d,), as the others
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]

    @property
    def axis(self) -> int:
        """Of the channels."""
        return -1 - len(self.kernel)

    def apply(self, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, C, *S) -> (B, r, *S') by a matrix (r, n)."""
        kernels = matrix.reshape(len(matrix), -1, *self.kernel)  # (r, C, *kernel)
        return self._convolve(x, kernels, bias, self.stride, self.padding, self.dilation)

    def mix(self, z: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
        """(B, r, *S') -> (B, m, *S') by a matrix (m, r)."""
        return self._convolve(z, matrix.reshape(*matrix.shape, *self._ones), bias)

    def shift(self, y: Tensor, bias: Tensor) -> Tensor:
        """y (B, m, *S') + bias (m,)."""
        return y + bias.view(-1, *self._ones)

    def inputs(self, x: Tensor) -> Tensor:
        """The patch behind every output, (B, *S', n)."""
        x = functional.pad(x, self._borders())
        channels = x.dim() + self.axis
        for axis, (size, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(channels + 1 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        return x.movedim(channels, self.axis).flatten(self.axis)  # (B, C, *S', *kernel) -> (B, *S', n)

    def outputs(self, y: Tensor) -> Tensor:
        """The channels of every output, (B, *S', m)."""
        return y.movedim(self.axis, -1)

    def attributes(self, in_features: int, out_features: int) -> dict[str, Any]:
        """What models read of a convolution beside that: its stride to pad by, for example."""
        values = (in_features // prod(self.kernel), out_features, self.kernel, self.stride, self.padding, self.dilation)
        return dict(zip(GEOMETRY, values, strict=True))

    def layer(self, in_features: int, out_features: int, *, bias: bool) -> Dense:
        """An empty convolution that applies a matrix (out_features, in_features)."""
        channels = in_features // prod(self.kernel)
        options: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return self._kind(channels, out_features, self.kernel, bias=bias, **options)

    def mixer(self, in_features: int, out_features: int, *, bias: bool) -> Dense:
        """An empty convolution of size one."""
        ones: Any = self._ones
        return self._kind(in_features, out_features, ones, bias=bias)

    @property
    def pads(self) -> tuple[int, ...]:
        """Zeros before every axis, then after every axis."""
        borders = self._borders()
        return (*reversed(borders[::2]), *reversed(borders[1::2]))

    @property
    def _ones(self) -> tuple[int, ...]:
        return (1,) * len(self.kernel)

    @property
    def _kind(self) -> Any:
        return LAYERS[len(self.kernel) - 1]

    @property
    def _convolve(self) -> Callable[..., Tensor]:
        return CONVOLVE[len(self.kernel) - 1]

    def _borders(self) -> list[int]:
        """Zeros before and after, the last axis first, as `functional.pad` takes them."""
        if isinstance(self.padding, str):
            spans = zip(self.kernel, self.dilation, strict=True)
            sums = [dilation * (size - 1) if self.padding == "same" else 0 for size, dilation in spans]
        else:
            sums = [2 * size for size in self.padding]
        return [part for total in reversed(sums) for part in (total // 2, total - total // 2)]


Form = Rows | Patches
ROWS = Rows()


def form_of(layer: nn.Module) -> Form:
    """The form of a linear layer (Conv1D too, which is one) or of a convolution."""
    if isinstance(layer, LAYERS):
        return Patches(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return ROWS


def is_convolution(module: nn.Module) -> bool:
    """Whether it is a convolution of torch's, one that can be compressed or not."""
    return isinstance(module, LAYERS + TRANSPOSED)


def objection(module: nn.Module) -> str:
    """Why a convolution is not one matrix applied to zero-padded patches; empty where it is, and for other layers."""
    whole: Any = module
    if not is_convolution(module):
        return ""
    if isinstance(module, TRANSPOSED):
        return "a transposed convolution, whose outputs overlap"
    if whole.groups > 1:
        return f"a convolution in {whole.groups} groups, which is no single matrix"
    if whole.padding_mode != "zeros":
        return f"a convolution that pads by '{whole.padding_mode}'; only zeros are padded in factors"
    kind = LAYERS[len(whole.kernel_size) - 1]
    if type(whole).forward is not kind.forward or type(whole)._conv_forward is not kind._conv_forward:
        return f"{type(module).__name__} is a convolution with a forward of its own, which factors would replace"
    return ""


def is_dense(module: nn.Module) -> bool:
    """Whether a layer is one weight matrix and a form."""
    if is_convolution(module):
        return not objection(module)
    return isinstance(module, nn.Linear) or is_transposed(module)


def as_dense(module: nn.Module) -> Dense | None:
    """A linear layer or convolution as it is, a Conv1D as an nn.Linear (a copy), None for what has no matrix."""
    if isinstance(module, LAYERS):
        return None if objection(module) else module
    return as_linear(module)


def matrix(layer: Dense) -> Tensor:
    """The weight as (m, n)."""
    return layer.weight.flatten(1)
