"""The steps that a quantizer rounds weights to, as it finds them in the weights: those of blocks, those of channels.

The steps of a block reach from its least to its greatest number. Where both ends are cut off, few numbers lose more and
all others lose less; the ends are chosen by what is lost of a product whose inputs are not correlated, the sum over the
weights of E[x_k^2] (W_k - Q(W_k))^2.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol

import numpy as np

KEPT = np.linspace(1, 0.55, 6)  # of an end of the range; both ends are cut apart from each other


@dataclass(frozen=True)
class Grid:
    """What n rows of weights are rounded to: whole multiples of a scale, between two of them.

    A quantizer takes the scale from the outermost weights, so that one of each row has to lie on either end.

    Attributes:
        scale: of each row, (n,).
        least: the first step of each row, (n,).
        most: the last step of each row, (n,).
        bottom: the number of the weight that stays on the first step, (n,); -1: none has to.
        top: the number of the weight that stays on the last step, (n,); -1: none has to.
    """

    scale: np.ndarray
    least: np.ndarray
    most: np.ndarray
    bottom: np.ndarray
    top: np.ndarray

    def rounded(self, weights: np.ndarray, number: int) -> np.ndarray:
        """The weights (n,) of this number in their rows on the nearest step."""
        steps = np.clip(np.rint(weights / self.scale), self.least, self.most)
        steps = np.where(self.bottom == number, self.least, steps)
        found: np.ndarray = np.where(self.top == number, self.most, steps) * self.scale
        return found


class Steps(Protocol):
    """What a quantizer takes for a scale."""

    @property
    def width(self) -> int | None:
        """Weights of a row that share a scale; None: all."""
        ...

    def of(self, weights: np.ndarray, energy: np.ndarray) -> Grid:
        """The grid of weights (w, n), n rows that lie turned, by E[x^2] (w,) but for a factor."""
        ...


@dataclass(frozen=True)
class Blocks:
    """Equal steps from a block's least to its greatest weight, of which one is zero, both ends cut to lose least."""

    width: int
    bits: int

    def of(self, weights: np.ndarray, energy: np.ndarray) -> Grid:
        """The grid of one block (w, n) of each row."""
        low, high = ends(weights.T, energy, self.bits)  # (n,) each
        scale, zero = grid(low, high, self.bits)
        bottom = np.where(low < 0, weights.argmin(0), -1)
        top = np.where(high > 0, weights.argmax(0), -1)
        return Grid(scale, -zero, 2**self.bits - 1 - zero, bottom, top)


@dataclass(frozen=True)
class Channels:
    """Equal steps to both sides of zero, as many as the row's largest weight takes."""

    most: int
    width: None = None

    def of(self, weights: np.ndarray, energy: np.ndarray) -> Grid:
        """The grid of whole rows, (w, n)."""
        largest = np.abs(weights).argmax(0)  # (n,)
        end = np.take_along_axis(weights, largest[None], 0)[0]  # (n,)
        scale = np.where(end == 0, 1, np.abs(end) / self.most)
        most = np.full(scale.shape, self.most)
        return Grid(scale, -most, most, np.where(end < 0, largest, -1), np.where(end > 0, largest, -1))


def ends(weights: np.ndarray, energy: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The range (n,) of blocks (n, w) that loses least by the energies (w,), between whose ends zero lies."""
    whole = weights.min(-1, initial=0), weights.max(-1, initial=0)  # (n,) each
    least, (low, high) = np.full(len(weights), np.inf, np.float32), whole
    for shares in itertools.product(KEPT, KEPT):
        bottom, top = (np.float32(share) * end for share, end in zip(shares, whole, strict=True))
        error = (nearest(weights, bottom, top, bits) - weights) ** 2 @ energy  # (n,)
        better = error < least
        least, low, high = (np.where(better, *pair) for pair in ((error, least), (bottom, low), (top, high)))
    return low, high


def nearest(weights: np.ndarray, low: np.ndarray, high: np.ndarray, bits: int) -> np.ndarray:
    """Blocks (n, w) on the equal steps between low and high (n,), of which one is zero."""
    scales, zeros = (one[..., None] for one in grid(low, high, bits))
    found: np.ndarray = (np.clip(np.rint(weights / scales) + zeros, 0, 2**bits - 1) - zeros) * scales
    return found


def grid(low: np.ndarray, high: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points of equal steps between low and high, of which one is zero."""
    scales = ((high - low) / (2**bits - 1)).astype(np.float32)
    scales[scales == 0] = 1
    return scales, np.rint(-low / scales)
