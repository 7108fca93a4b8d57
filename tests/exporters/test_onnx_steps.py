"""The steps of blocks and channels: what a cut loses against all cuts, and that a quantizer finds the same steps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from exporters.onnx import steps as onnx_steps
from exporters.onnx.steps import Blocks, Channels, Grid

BLOCK = 32


def loss(found: np.ndarray, block: np.ndarray, energy: np.ndarray) -> float:
    return float((((found - block) ** 2) * energy).sum())


def min_max(block: np.ndarray, low: float, high: float, steps: int) -> np.ndarray:
    """One block on equal steps from low to high, written out."""
    scale = (high - low) / steps or 1.0
    zero = round(-low / scale)
    return np.array([(min(max(round(w / scale) + zero, 0), steps) - zero) * scale for w in block.tolist()])


def on_grid(weights: np.ndarray, grid: Grid) -> np.ndarray:
    """Weights (w, n), each on its step."""
    return np.stack([grid.rounded(row, number) for number, row in enumerate(weights)])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_cut_loses_what_the_best_of_all_cuts_loses(bits: int) -> None:
    rng, steps = np.random.default_rng(bits), 2**bits - 1
    matrix = rng.standard_t(3, (6, BLOCK)).astype(np.float32)  # with numbers far outside of the others
    matrix[5] = np.abs(matrix[5])  # zero is the low end
    energy = rng.gamma(0.5, size=BLOCK)
    lows, highs = onnx_steps.ends(matrix, energy, bits)
    for row, bottom, top in zip(matrix, lows, highs, strict=True):
        low, high = min(row.min(), 0.0), max(row.max(), 0.0)
        losses = [
            loss(min_max(row, a * low, b * high, steps), row, energy)
            for a, b in itertools.product(onnx_steps.KEPT, repeat=2)
        ]
        taken = loss(min_max(row, float(bottom), float(top), steps), row, energy)
        assert taken == pytest.approx(min(losses), rel=1e-3)
        assert taken <= losses[0] * 1.001  # the whole range comes first


@pytest.mark.parametrize("sign", [None, 1, -1])
def test_the_range_of_a_rounded_block_is_the_grid_again(sign: int | None) -> None:
    weights = np.random.default_rng(1).standard_t(3, (BLOCK, 50)).astype(np.float32)
    weights = weights if sign is None else sign * np.abs(weights)
    grid = Blocks(BLOCK, 4).of(weights, np.ones(BLOCK))
    moved = on_grid(weights * 0.2, grid)  # what makes up for others need not reach the ends
    again = np.stack([min_max(row, min(row.min(), 0), max(row.max(), 0), 15) for row in moved.T.astype(np.float64)]).T
    np.testing.assert_allclose(moved, again, rtol=1e-5, atol=1e-6)
    assert (np.abs(moved).max(0) > 0).all()


@pytest.mark.parametrize("most", [64, 127])
def test_the_largest_weight_of_a_rounded_channel_is_the_end_of_the_grid_again(most: int) -> None:
    weights = np.random.default_rng(2).normal(size=(80, 30)).astype(np.float32)
    weights[:, 7] = 0
    grid = Channels(most).of(weights, np.ones(80))
    moved = on_grid(weights * 0.9, grid)
    scale = np.abs(moved).max(0) / most
    np.testing.assert_allclose(scale[np.arange(30) != 7], np.delete(np.abs(weights).max(0), 7) / most, rtol=1e-6)
    steps = moved / np.where(scale == 0, 1, scale)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert not moved[:, 7].any()


def test_blocks_of_zeros_stay() -> None:
    grid = Blocks(BLOCK, 4).of(np.zeros((BLOCK, 3), np.float32), np.ones(BLOCK))
    assert not on_grid(np.zeros((BLOCK, 3), np.float32), grid).any()
