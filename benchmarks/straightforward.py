"""Whitened truncation written out plainly, as SVD-LLM's public script does it: what `decomposition.py` times against.

Every linear layer by itself: its own sum of X^T X (and of G^T G, where the metric has two sides), a Cholesky factor in
float64, its inverse, and for each budget the full SVD of the scaled weight in float32. Damped as ours is, so that both
solve the same problem; gradients flow to the layers' outputs alone, as no weight is differentiated by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressor.calibration import Batch, Loss, Terms

RIDGE = 0.01


@dataclass
class Layer:
    """The moments of one layer while they are summed, and their Cholesky factors L, A = L L^T."""

    rows: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)  # by side: "input" (n, n), "output" (m, m)
    factors: dict[str, Tensor] = field(default_factory=dict)

    def add(self, side: str, rows: Tensor) -> None:
        """Rows (N, d)."""
        product = rows.mT @ rows
        if side in self.sums:
            product += self.sums[side]
        self.sums[side] = product


def calibrate(
    model: Any, batches: Iterable[Batch], names: Iterable[str], loss: Loss, terms: Terms, *, gradients: bool
) -> dict[str, Layer]:
    """The moments of every named layer, summed in float32."""
    found, mask = {name: Layer() for name in names}, list[Tensor | None]([None])
    hooks = []
    for name, layer in found.items():
        module = model.get_submodule(name)
        hooks.append(module.register_forward_hook(partial(_see_input, layer, mask)))
        if gradients:
            hooks.append(module.register_full_backward_hook(partial(_see_gradient, layer, mask)))
    model.eval().requires_grad_(False)
    hooks.append(model.get_input_embeddings().register_forward_hook(_require_gradient))
    with torch.set_grad_enabled(gradients):
        for batch in batches:
            mask[0] = batch.get("attention_mask")
            value = loss(model, batch)
            if gradients:
                (value * int(terms(batch).sum())).backward()
    for hook in hooks:
        hook.remove()
    return found


def _see_input(layer: Layer, mask: list[Tensor | None], _module: nn.Module, inputs: Any, _output: Any) -> None:
    rows = _rows(inputs[0].detach(), mask[0])
    layer.rows += len(rows)
    layer.add("input", rows)


def _see_gradient(layer: Layer, mask: list[Tensor | None], _module: nn.Module, _inputs: Any, outputs: Any) -> None:
    layer.add("output", _rows(outputs[0], mask[0]))


def _require_gradient(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
    if torch.is_grad_enabled():
        output.requires_grad_(True)


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None and x.shape[:2] == mask.shape:
        return x[mask.bool()]
    return x.reshape(-1, x.shape[-1])


def profile(layers: Mapping[str, Layer]) -> None:
    """Cholesky factors of the damped moments, in float64."""
    for layer in layers.values():
        for side, total in layer.sums.items():
            moment = (total / layer.rows).double()
            damping = RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
            layer.factors[side] = torch.linalg.cholesky(moment + damping)


@torch.no_grad()
def truncate_(model: nn.Module, layers: Mapping[str, Layer], ranks: Mapping[str, int]) -> nn.Module:
    """Replace every named layer by two of its rank: svd(L_A^T W L_B), scaled back by the inverses."""
    for name, rank in ranks.items():
        dense, factors = model.get_submodule(name), layers[name].factors
        scaled = dense.weight
        if "output" in factors:
            scaled = factors["output"].mT.float() @ scaled
        scaled = scaled @ factors["input"].float()
        u, s, vt = torch.linalg.svd(scaled, full_matrices=False)
        root = s[:rank].sqrt()
        up, down = u[:, :rank] * root, root[:, None] * vt[:rank]
        if "output" in factors:
            up = torch.linalg.inv(factors["output"].mT).float() @ up
        down = down @ torch.linalg.inv(factors["input"]).float()
        _put(model, name, _pair(dense, up, down))
    return model


def _pair(dense: Any, up: Tensor, down: Tensor) -> nn.Module:
    pair = nn.Sequential(
        nn.Linear(down.shape[1], len(down), bias=False), nn.Linear(len(down), len(up), bias=dense.bias is not None)
    )
    pair[0].weight, pair[1].weight = nn.Parameter(down), nn.Parameter(up)
    if dense.bias is not None:
        pair[1].bias = dense.bias
    return pair


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
