"""JACTUS: joint adaptation and compression with a task-aware union of subspaces (arXiv 2605.02829)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from compressor.errors import InputError
from compressor.methods.base import MetricName, Moment, Moments, Subspace, method, metrics, scaled

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compressor.methods.spectral import Spectral
    from compressor.metrics import Metric, SecondMoment

Reading = Literal["R1", "R2", "R3", "R4"]
UNION: dict[Reading, float] = {"R1": 0.1, "R2": 0.1, "R3": 0.1, "R4": 0.0}


@method
class Jactus:
    """The weight's subspace in a metric, in the published readings united with gradient and input directions.

    The paper's full text is not public; its abstract fixes the parts, not how they are put together. `reading` says
    how: R1, R2, R3 are consistent with the abstract, R4 is ours and measures best.

    - R1: the union is the basis. Leading singular directions of W and leading eigenvectors of E[gg^T] (left) and
      E[xx^T] (right), in the proportion `union`; the core is the least-squares one, nothing is truncated again.
    - R2: the union of the same plain subspaces is larger than the rank, and W is approximated inside it in the metric.
    - R3: mixed Gram. Left: eigenvectors of (1 - union) W E[xx^T] W^T / tr + union E[gg^T] / tr; right likewise.
    - R4: as R1 with the weight's subspace taken in the metric (whitened on both sides). Without a union, which measures
      best, it is GFWSVD's subspace.
    """

    reading: Annotated[Reading, Field(description="how the union is formed and used")] = "R4"
    union: Annotated[
        float | None,
        Field(
            ge=0,
            lt=1,
            description="share of the directions given to the task's gradients and inputs; default: 0.1, in R4 none",
        ),
    ] = None
    metric: Annotated[MetricName, Field(description="which moments weigh the approximation error")] = "both"
    ridge: Annotated[float, Field(ge=0, description="damping, as a share of a moment's mean diagonal")] = 0.01
    updates: Annotated[
        int, Field(ge=0, description="rank of the thin trained updates of both bases; 0 as published")
    ] = 16
    axes: Annotated[
        Literal["weight", "moments"],
        Field(
            description="what the core is trained along: the weight's singular directions, or the principal axes of "
            "both moments"
        ),
    ] = "weight"

    def needs(self) -> frozenset[Moment]:
        """Both, which a union is made of, whatever the metric; without one those of the metric."""
        return self._whitened.needs() if self._alone else frozenset(Moment)

    def subspace(self, weight: Tensor, moments: Moments, limit: int) -> Subspace:
        """Bases of the reading, then the weighted least-squares core between them."""
        from compressor import linalg

        if self._alone:
            return replace(self._whitened.subspace(weight, moments, limit), turned=self._turned)
        _both(moments)
        output, input = metrics(weight, moments, self.metric, ridge=self.ridge)
        bases = {"R1": self._union, "R2": self._truncated, "R3": self._mixed, "R4": self._union}[self.reading]
        left_basis, right_basis = bases(weight.double(), moments, output, input, limit)
        count = min(left_basis.shape[1], right_basis.shape[1])
        left, core, right = linalg.project(weight, left_basis[:, :count], right_basis[:, :count], output, input)
        energy = linalg.energy(weight, output, input)
        loss_change = moments if self.metric == "both" else None
        gains, total = scaled(linalg.prefix_gains(core), energy, of=loss_change)
        return Subspace(left, core, right, gains, total, turned=self._turned)

    @property
    def _share(self) -> float:
        return self.union if self.union is not None else UNION[self.reading]

    @property
    def _alone(self) -> bool:
        """Whether the weight's whitened directions are the basis, without others beside them."""
        return self.reading == "R4" and not self._share

    @property
    def _whitened(self) -> Spectral:
        from compressor.methods.spectral import Spectral

        return Spectral(metric=self.metric, ridge=self.ridge)

    @property
    def _turned(self) -> bool:
        return self.axes == "moments"

    def core(self, subspace: Subspace) -> nn.Module:
        """A dense core, all of it trained."""
        from compressor.cores import FreeCore

        return FreeCore(subspace.core, free=len(subspace.core))

    def _union(
        self, weight: Tensor, moments: Moments, output: Metric, input: Metric, limit: int
    ) -> tuple[Tensor, Tensor]:
        """R1 and R4: interleaved so that every prefix has its share of task directions."""
        from compressor import linalg

        plain = metrics(weight, moments)
        chosen = plain if self.reading == "R1" else (output, input)
        left, _, right, _ = linalg.leading_svd(weight, *chosen, limit)
        gradient, inputs = _task_directions(moments, int(limit * self._share) + 1)
        return linalg.interleave(left, gradient, self._share), linalg.interleave(right.mT, inputs, self._share)

    def _truncated(
        self, weight: Tensor, moments: Moments, output: Metric, input: Metric, limit: int
    ) -> tuple[Tensor, Tensor]:
        """R2: the best rank-r approximations in the metric inside the union of k_w weight and k_t task directions."""
        import torch

        from compressor import linalg

        from_task = round(self._share * limit)
        u, _, vt = torch.linalg.svd(weight, full_matrices=False)
        gradient, inputs = _task_directions(moments, from_task)
        left_union = linalg.orthonormalize(torch.cat([u[:, : limit - from_task], gradient], dim=1))
        right_union = linalg.orthonormalize(torch.cat([vt.mT[:, : limit - from_task], inputs], dim=1))
        left, core, right = linalg.project(weight, left_union, right_union, output, input)
        p, _, qt = torch.linalg.svd(core, full_matrices=False)
        return left @ p, right.mT @ qt.mT

    def _mixed(
        self, weight: Tensor, moments: Moments, output: Metric, input: Metric, limit: int
    ) -> tuple[Tensor, Tensor]:
        """R3: eigenvectors of mixed Gram matrices."""
        from compressor.leading import exact
        from compressor.linalg import TINY

        gradient, inputs = (moment.matrix.double() for moment in _both(moments))

        def directions(gram: Tensor, moment: Tensor) -> Tensor:
            mixed = (1 - self._share) * gram / gram.trace().clamp_min(TINY)
            mixed = mixed + self._share * moment / moment.trace().clamp_min(TINY)
            return exact(mixed, limit)[1]

        return directions(weight @ inputs @ weight.mT, gradient), directions(weight.mT @ gradient @ weight, inputs)


def _both(moments: Moments) -> tuple[SecondMoment, SecondMoment]:
    if moments.gradient is None or moments.input is None:
        raise InputError(
            "JACTUS needs both moments of every target: calibrate with `method.needs()`, and give all statistics."
        )
    return moments.gradient, moments.input


def _task_directions(moments: Moments, count: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors of E[gg^T] (m, count) and of E[xx^T] (n, count)."""
    gradient, inputs = _both(moments)
    return gradient.top(count), inputs.top(count)
