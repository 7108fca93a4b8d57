"""Sums of products are what one product of all rows would be, and symmetric to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.recording import STRIP, accumulate, mirrored


@pytest.mark.parametrize("size", [1, STRIP - 1, STRIP, STRIP + 1, 2 * STRIP + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strips_of_the_upper_triangle_add_up_to_the_whole_moment(size: int, dtype: torch.dtype) -> None:
    sums: dict[str, Tensor] = {}
    batches = [torch.randn(rows, size).to(dtype) for rows in (5, 1, 9)]
    for batch in batches:
        accumulate(sums, "layer", batch)
    found, rows = mirrored(sums["layer"]), torch.cat(batches).double().numpy()
    assert found.dtype == torch.float32
    assert torch.equal(found, found.mT)
    np.testing.assert_allclose(found, rows.T @ rows, atol=1e-4)


def test_of_a_large_moment_little_more_than_half_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[int] = []
    plain = Tensor.addmm_

    def counting(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
        products.append(left.shape[0] * right.shape[1])
        return plain(total, left, right)

    monkeypatch.setattr(Tensor, "addmm_", counting)
    accumulate({}, "layer", torch.randn(2, 8 * STRIP))
    assert sum(products) == pytest.approx((8 * STRIP) ** 2 * 36 / 64)
