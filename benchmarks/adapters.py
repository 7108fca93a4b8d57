"""Adapters of the `peft` library over the targets of a dense model: how each is laid, and what it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compressor import registry
from compressor.targets import find_targets, head_parameters

PACKAGES = {"peft": "pip install 'rankfold[bench]'"}


@dataclass(frozen=True)
class Adapter:
    """One kind: its config for a rank, and the numbers that it trains in a layer (m, n)."""

    config: Callable[[int], Any]
    numbers: Callable[[int, int, int], int]  # (m, n, rank)


def _lora(**options: Any) -> Callable[[int], Any]:
    """LoRA's config with alpha = 2 r."""

    def config(rank: int) -> Any:
        from peft import LoraConfig

        return LoraConfig(r=rank, lora_alpha=2 * rank, **options)

    return config


def _psoft(rank: int) -> Any:
    from peft import PsoftConfig

    return PsoftConfig(r=rank, psoft_alpha=rank)


ADAPTERS = {
    "lora": Adapter(_lora(), lambda m, n, r: r * (m + n)),  # arXiv 2106.09685
    "dora": Adapter(_lora(use_dora=True), lambda m, n, r: r * (m + n) + m),  # arXiv 2402.09353
    "pissa": Adapter(_lora(init_lora_weights="pissa"), lambda m, n, r: r * (m + n)),  # arXiv 2404.02948
    "psoft": Adapter(_psoft, lambda _m, _n, r: r * (r - 1) // 2 + 2 * r),  # arXiv 2505.11235
}


def matching_rank(model: Any, name: str, wanted: int) -> int:
    """The rank at which an adapter and the head train the number nearest to `wanted`.

    No rank is higher than the smallest side of a target, so that a rotation may stay below what is wanted.
    """
    targets = find_targets(model)
    head = sum(one.numel() for one in head_parameters(model).values())
    numbers = ADAPTERS[name].numbers

    def distance(rank: int) -> int:
        return abs(head + sum(numbers(one.out_features, one.in_features, rank) for one in targets) - wanted)

    return min(range(1, 1 + min(min(one.out_features, one.in_features) for one in targets)), key=distance)


def lay_(model: Any, name: str, rank: int) -> Callable[[], Any]:
    """Lay adapters over the targets in place; they and the head are trained. () merges them into the dense model.

    Raises:
        DependencyError: peft is not installed.
    """
    registry.require(PACKAGES)
    from peft import get_peft_model

    heads = list(head_parameters(model).values())
    config = ADAPTERS[name].config(rank)
    config.target_modules = {target.name for target in find_targets(model)}
    adapted = get_peft_model(model, config)
    for head in heads:
        head.requires_grad_(True)
    return lambda: adapted.merge_and_unload()
