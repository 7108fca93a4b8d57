"""Cores and the layers they become: what is trained, what stays, and that folding changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor import linalg
from compressor.cores import FreeCore, OrthogonalCore
from compressor.layers import LAYOUTS, CoreLinear, FactorizedLinear, PivotedLinear
from compressor.metrics import SpectralMetric

SHAPES = [(9, 6, 3), (6, 9, 3), (8, 8, 1), (10, 7, 6)]  # m, n, r


def trained_layer(m: int, n: int, rank: int, *, updates: int = 0, bias: bool = True) -> CoreLinear:
    """A layer whose trained parts are anywhere but where they start."""
    left = torch.linalg.qr(torch.randn(m, rank)).Q
    right = torch.linalg.qr(torch.randn(n, rank)).Q.mT
    core = FreeCore(torch.diag(torch.rand(rank) + 0.5), free=rank)
    layer = CoreLinear(left, core, right, torch.randn(m) if bias else None, updates)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def folded(layer: CoreLinear, layout: str) -> FactorizedLinear | PivotedLinear:
    empty = LAYOUTS[layout](layer.in_features, layer.rank, layer.out_features, bias=layer.bias is not None)
    return empty.fill_(*layer.factors(), layer.bias)


def dense_weight(layer: CoreLinear) -> np.ndarray:
    """left' @ core @ right' in float64, by NumPy."""
    parts = {name: tensor.detach().double().numpy() for name, tensor in layer.state_dict().items()}
    left, right = parts["left"], parts["right"]
    if layer.updates:
        left = left + parts["left_a"] @ parts["left_b"]
        right = right + parts["right_a"] @ parts["right_b"]
    return left @ layer.core().detach().double().numpy() @ right


def weights(module: nn.Module) -> Iterator[Tensor]:
    return (parameter for name, parameter in module.named_parameters() if "bias" not in name)


# ---- cores ----


@pytest.mark.parametrize(("free", "trained"), [(5, 25), (2, 4), (0, 0)])
def test_a_free_core_starts_at_its_initial_values_and_trains_its_leading_block(free: int, trained: int) -> None:
    initial = torch.randn(5, 5)
    core = FreeCore(initial, free)
    assert torch.equal(core(), initial)
    assert sum(parameter.numel() for parameter in core.parameters()) == trained


def test_the_frozen_part_of_a_core_does_not_move() -> None:
    initial = torch.randn(5, 5)
    core = FreeCore(initial, free=2)
    optimizer = torch.optim.AdamW(core.parameters(), lr=0.1, weight_decay=0.5)
    core().square().sum().backward()
    optimizer.step()
    moved = core().detach() != initial
    assert moved[:2, :2].all()
    assert moved.sum() == 4


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_an_orthogonal_core_trains_half_a_square_and_two_vectors(rank: int) -> None:
    def count(*, strict: bool) -> int:
        return sum(p.numel() for p in OrthogonalCore(torch.eye(rank), strict=strict).parameters())

    assert count(strict=True) == rank * (rank - 1) // 2
    assert count(strict=False) == rank * (rank - 1) // 2 + 2 * rank


@pytest.mark.parametrize("strict", [True, False])
def test_an_orthogonal_core_starts_at_its_initial_values(strict: bool) -> None:
    initial = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    assert torch.equal(OrthogonalCore(initial, strict=strict)(), initial)


def turned(*, strict: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight (8, 7), its rest beyond rank 4, and the rank-4 part after training, float64."""
    weight = torch.randn(8, 7, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    core = OrthogonalCore(torch.diag(s[:4]), strict=strict).double()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(torch.randn_like(parameter))
    adapted = u[:, :4] @ core().detach() @ vt[:4]
    rest = u[:, 4:] @ torch.diag(s[4:]) @ vt[4:]
    return weight.numpy(), rest.numpy(), adapted.numpy()


def test_a_strict_rotation_keeps_lengths_and_angles_of_the_rows() -> None:
    """Theorem 4.1 of PSOFT, whose neurons are columns; here they are rows. It holds with the rest and without it."""
    weight, rest, adapted = turned(strict=True)
    principal = weight - rest
    assert np.abs(adapted - principal).max() > 0.1
    np.testing.assert_allclose(adapted @ adapted.T, principal @ principal.T, atol=1e-5)
    np.testing.assert_allclose((adapted + rest) @ (adapted + rest).T, weight @ weight.T, atol=1e-5)
    assert np.abs(adapted.T @ adapted - principal.T @ principal).max() > 0.1  # inputs are turned


def test_scaling_vectors_give_up_the_angles_of_the_rows() -> None:
    weight, rest, adapted = turned(strict=False)
    principal = weight - rest
    assert np.abs(adapted @ adapted.T - principal @ principal.T).max() > 0.1


def test_alpha_scales_the_input_side_and_beta_the_output_side() -> None:
    core = OrthogonalCore(torch.diag(torch.tensor([3.0, 2.0])), strict=False)
    with torch.no_grad():
        core.skew.fill_(0.4)
        core.get_parameter("alpha").copy_(torch.tensor([5.0, 7.0]))
        core.get_parameter("beta").copy_(torch.tensor([11.0, 13.0]))
    q = np.array([[0, -0.4], [0.4, 0]])
    rotation = (np.eye(2) - q) @ np.linalg.inv(np.eye(2) + q)
    expected = np.diag([3.0, 2.0]) @ np.diag([11.0, 13.0]) @ rotation @ np.diag([5.0, 7.0])
    np.testing.assert_allclose(core().detach(), expected, rtol=1e-5)


# ---- the trained layer ----


@pytest.mark.parametrize("updates", [0, 2])
@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
def test_a_core_layer_computes_the_product_of_its_parts(m: int, n: int, rank: int, updates: int) -> None:
    layer, x = trained_layer(m, n, rank, updates=updates), torch.randn(2, 5, n)
    expected = x.double().numpy() @ dense_weight(layer).T + layer.get_parameter("bias").detach().double().numpy()
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-4, atol=1e-4)


def test_untrained_updates_change_nothing() -> None:
    left, right, core = torch.randn(6, 3), torch.randn(3, 5), FreeCore(torch.eye(3), free=3)
    x = torch.randn(4, 5)
    plain, updated = CoreLinear(left, core, right, None), CoreLinear(left, core, right, None, updates=2)
    assert torch.equal(plain(x), updated(x))


def test_bases_and_bias_are_not_trained() -> None:
    layer = CoreLinear(torch.randn(6, 3), FreeCore(torch.eye(3), free=3), torch.randn(3, 5), torch.zeros(6))
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["core.block"]


# ---- folding ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("updates", [0, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
def test_folding_keeps_the_function(m: int, n: int, rank: int, bias: bool, updates: int, layout: str) -> None:
    layer, x = trained_layer(m, n, rank, updates=updates, bias=bias), torch.randn(2, 5, n)
    torch.testing.assert_close(folded(layer, layout)(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("m", "n", "rank"), SHAPES)
def test_the_pivoted_layout_stores_the_square_of_the_rank_fewer_weights(m: int, n: int, rank: int) -> None:
    layer = trained_layer(m, n, rank)
    assert sum(p.numel() for p in weights(folded(layer, "two-factor"))) == rank * (m + n)
    assert sum(p.numel() for p in weights(folded(layer, "pivoted"))) == rank * (m + n) - rank * rank


def test_the_folded_pair_is_plain_linear_layers_of_equal_singular_values() -> None:
    pair = folded(trained_layer(9, 6, 4, updates=2), "two-factor")
    assert [type(module) for module in pair.children()] == [nn.Linear, nn.Linear]
    down, up = (np.linalg.svd(weight.detach().numpy())[1] for weight in weights(pair))
    np.testing.assert_allclose(down, up, rtol=1e-5)


def test_a_pivoted_layer_computes_its_kept_rows_unmixed() -> None:
    layer, x = trained_layer(9, 6, 3, bias=False), torch.randn(4, 6)
    pivoted = PivotedLinear(6, 3, 9, bias=False).fill_(*layer.factors(), None)
    rows = dense_weight(layer)
    assert {int(np.abs(rows - row).sum(1).argmin()) for row in pivoted.kept.weight.detach().numpy()} == set(
        pivoted.order.argsort()[:3].tolist()
    )
    np.testing.assert_allclose(pivoted(x).detach(), x.numpy() @ rows.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folded_layer_comes_back_from_its_state(layout: str) -> None:
    layer, x = folded(trained_layer(9, 6, 3), layout), torch.randn(4, 6)
    empty = LAYOUTS[layout](6, 3, 9, bias=True)
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty(x), layer(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("m", "n"), [(9, 6), (20, 12), (64, 48)])
def test_full_rank_reproduces_the_dense_layer(m: int, n: int, layout: str) -> None:
    dense, x = nn.Linear(n, m), torch.randn(7, n)
    left, s, right = linalg.whitened_svd(dense.weight.detach(), SpectralMetric.plain(m), SpectralMetric.plain(n))
    layer = CoreLinear(left, FreeCore(torch.diag(s), free=n), right, dense.bias)
    torch.testing.assert_close(layer(x), dense(x))
    torch.testing.assert_close(folded(layer, layout)(x), dense(x), rtol=1e-4, atol=1e-5)


def test_a_weight_of_lower_rank_than_its_factors_folds_without_loss() -> None:
    left = torch.linalg.qr(torch.randn(8, 4)).Q
    right = torch.linalg.qr(torch.randn(6, 4)).Q.mT
    layer = CoreLinear(left, FreeCore(torch.diag(torch.tensor([2.0, 1.0, 0.0, 0.0])), free=4), right, None)
    x = torch.randn(5, 6)
    for layout in LAYOUTS:
        torch.testing.assert_close(folded(layer, layout)(x), layer(x), rtol=1e-4, atol=1e-6)
