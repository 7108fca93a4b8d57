"""What holds for every method, so that a new row is tested on arrival; and what CERSA keeps and trains."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from compressor import registry
from compressor.methods.base import Moment, Moments, Subspace
from compressor.methods.cersa import Cersa
from compressor.methods.jactus import Jactus
from compressor.methods.psoft import Psoft
from compressor.methods.spectral import Spectral
from compressor.metrics import SecondMoment

Build = Callable[..., Moments]


@dataclass(frozen=True)
class Case:
    """A method, and which metrics it approximates in."""

    method: Any
    output: bool = False
    input: bool = False

    def __str__(self) -> str:
        knobs = {key: value for key, value in vars(self.method).items() if value != getattr(type(self.method), key)}
        return ",".join([type(self.method).__name__, *(f"{key}={value}" for key, value in knobs.items())])


NORMS = {"plain": (False, False), "input": (False, True), "output": (True, False), "both": (True, True)}
CASES = [Case(Cersa(alpha=1.0)), Case(Psoft()), Case(Psoft(strict=True)), Case(Spectral(train="none"))]
CASES += [Case(Spectral(metric=norm), *NORMS[norm]) for norm in NORMS]  # type: ignore[arg-type]
CASES += [
    Case(Jactus(reading=reading, metric=norm, union=0.3), *NORMS[norm])  # type: ignore[arg-type]
    for reading in ("R1", "R2", "R3", "R4")
    for norm in NORMS
]
ALL = [Case(registry.load("methods", name)()) for name in sorted(registry.names("methods"))]

cases = pytest.mark.parametrize("case", CASES, ids=str)
everyone = pytest.mark.parametrize("case", [*ALL, *CASES], ids=str)
shapes = pytest.mark.parametrize(("m", "n"), [(10, 7), (7, 10)])


def weight_of(m: int, n: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(m, n)))


def product(subspace: Subspace) -> Tensor:
    return subspace.left @ subspace.core @ subspace.right


def damped(moment: SecondMoment, ridge: float = 0.01) -> np.ndarray:
    matrix = moment.matrix.numpy()
    return matrix + ridge * np.diag(matrix).mean() * np.eye(len(matrix))


def roots(case: Case, given: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Cholesky roots R^T R of the output and the input metric: not the roots that the code takes."""
    assert given.gradient is not None
    assert given.input is not None
    a, b = damped(given.gradient), damped(given.input)
    return (
        np.linalg.cholesky(a).T if case.output else np.eye(len(a)),
        np.linalg.cholesky(b).T if case.input else np.eye(len(b)),
    )


# ---- the contract ----


@everyone
@shapes
def test_a_subspace_has_falling_gains_that_do_not_exceed_the_total(moments: Build, case: Case, m: int, n: int) -> None:
    found = case.method.subspace(weight_of(m, n), moments(m, n), 5)
    k = len(found.gains)
    assert (found.left.shape, found.core.shape, found.right.shape) == ((m, k), (k, k), (k, n))
    assert 1 <= k <= 5
    assert (found.gains >= 0).all()
    assert (found.gains.diff() <= 1e-9 * found.total).all()
    assert found.gains.sum().item() <= found.total * (1 + 1e-9)


@pytest.mark.parametrize("method", [Spectral("both"), Jactus(), Jactus("R1"), Jactus(union=0.2)], ids=str)
@pytest.mark.parametrize("side", ["input", "gradient"])
def test_what_the_loss_does_not_depend_on_gains_nothing(moments: Build, method: Any, side: str) -> None:
    zero = SecondMoment(torch.zeros(9 if side == "gradient" else 7, 9 if side == "gradient" else 7))
    found = method.subspace(weight_of(9, 7), replace(moments(9, 7), **{side: zero}), 5)
    assert found.total == 0
    assert not found.gains.any()
    assert found.left.isfinite().all()


@pytest.mark.parametrize("method", [Spectral("output"), Spectral("input"), Jactus("R2", metric="output")], ids=str)
def test_gains_in_one_metric_do_not_hang_on_the_scale_of_inputs(moments: Build, method: Any) -> None:
    weight, given = weight_of(9, 7), moments(9, 7)
    assert given.input is not None
    scaled = replace(given, input=SecondMoment(100 * given.input.matrix))  # inputs times 10, the weight by 10: the same
    one, other = method.subspace(weight, given, 5), method.subspace(weight / 10, scaled, 5)
    torch.testing.assert_close(one.gains, other.gains)
    assert one.total == other.total == 1


@cases
def test_all_directions_reproduce_a_square_weight(moments: Build, case: Case) -> None:
    weight = weight_of(8, 8)
    found = case.method.subspace(weight, moments(8, 8), 8)
    torch.testing.assert_close(product(found), weight, rtol=0, atol=1e-9)
    assert found.gains.sum().item() == pytest.approx(found.total)


@shapes
@pytest.mark.parametrize("case", [case for case in CASES if not isinstance(case.method, Jactus)], ids=str)
def test_all_singular_directions_reproduce_any_weight(moments: Build, case: Case, m: int, n: int) -> None:
    weight = weight_of(m, n)  # a union of min(m, n) directions need not span the longer side
    torch.testing.assert_close(product(case.method.subspace(weight, moments(m, n), 7)), weight, rtol=0, atol=1e-9)


@cases
def test_every_prefix_is_the_best_core_between_its_bases(moments: Build, case: Case) -> None:
    weight, given = weight_of(9, 7), moments(9, 7)
    found = case.method.subspace(weight, given, 5)
    ra, rb = roots(case, given)
    target = (ra @ weight.numpy() @ rb.T).ravel()
    for rank in range(1, len(found.gains) + 1):
        left, right = found.left[:, :rank].numpy(), found.right[:rank].numpy()
        design = np.kron(ra @ left, rb @ right.T)  # (m n, r r)
        core = np.linalg.lstsq(design, target, rcond=None)[0].reshape(rank, rank)
        np.testing.assert_allclose(product(found.truncate(rank)), left @ core @ right, atol=1e-8)


@cases
def test_gains_never_understate_the_error_that_a_prefix_removes(moments: Build, case: Case) -> None:
    weight, given = weight_of(9, 7), moments(9, 7)
    found = case.method.subspace(weight, given, 5)
    ra, rb = roots(case, given)
    energy = np.sum((ra @ weight.numpy() @ rb.T) ** 2)
    spectral = not isinstance(case.method, Jactus)
    for rank in range(1, len(found.gains) + 1):
        error = np.sum((ra @ (weight - product(found.truncate(rank))).numpy() @ rb.T) ** 2) / energy
        left_over = 1 - found.gains[:rank].sum().item() / found.total
        assert left_over <= error + 1e-9
        if spectral:
            assert left_over == pytest.approx(error, abs=1e-9)


@everyone
def test_truncating_gives_orthonormal_bases_and_a_diagonal_core(moments: Build, case: Case) -> None:
    found = case.method.subspace(weight_of(9, 7), moments(9, 7), 5)
    rank = min(3, len(found.gains))
    short, identity = found.truncate(rank), torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(short.left.mT @ short.left, identity)
    torch.testing.assert_close(short.right @ short.right.mT, identity)
    assert torch.equal(short.core, short.core.diagonal().diag())
    expected = found.left[:, :rank] @ found.core[:rank, :rank] @ found.right[:rank]
    torch.testing.assert_close(product(short), expected)


@everyone
@pytest.mark.parametrize("rank", [1, 4])
def test_a_core_starts_at_the_truncated_core(moments: Build, case: Case, rank: int) -> None:
    short = case.method.subspace(weight_of(9, 7), moments(9, 7), 5).truncate(rank)
    torch.testing.assert_close(case.method.core(short)(), short.core)


@everyone
def test_a_method_asks_for_no_more_than_the_moments_it_uses(moments: Build, case: Case) -> None:
    given, needs = moments(9, 7), case.method.needs()
    only = Moments(given.input if Moment.INPUT in needs else None, given.gradient if Moment.GRADIENT in needs else None)
    found = [case.method.subspace(weight_of(9, 7), moment, 4) for moment in (given, only)]
    torch.testing.assert_close(product(found[0]), product(found[1]))


@everyone
def test_half_precision_weights_are_decomposed_in_double(moments: Build, case: Case) -> None:
    weight = weight_of(9, 7).bfloat16()
    found = case.method.subspace(weight, moments(9, 7), 5)
    exact = case.method.subspace(weight.double(), moments(9, 7), 5)
    torch.testing.assert_close(product(found), product(exact))


@everyone
def test_a_weight_of_lower_rank_needs_no_more_directions_than_its_rank(moments: Build, case: Case) -> None:
    weight = weight_of(9, 2) @ weight_of(2, 7, seed=1)
    found = case.method.subspace(weight, moments(9, 7), 6)
    assert product(found).isfinite().all()
    if not isinstance(case.method, Jactus):  # a union holds directions that the weight does not have
        assert found.gains[2:].sum().item() <= 1e-9 * found.total


@everyone
@pytest.mark.parametrize("nothing", ["weight", "gradient", "input"])
def test_zeros_give_finite_gains(moments: Build, case: Case, nothing: str) -> None:
    given, weight = moments(9, 7), weight_of(9, 7)
    if nothing == "weight":
        weight = torch.zeros_like(weight)
    elif nothing == "gradient":
        given = Moments(given.input, SecondMoment(torch.zeros(9, 9)))
    else:
        given = Moments(SecondMoment(torch.zeros(7, 7)), given.gradient)
    found = case.method.subspace(weight, given, 4)
    assert found.gains.isfinite().all()
    assert product(found.truncate(1)).isfinite().all()


@everyone
def test_a_method_is_frozen_and_knows_its_knobs(case: Case) -> None:
    with pytest.raises(FrozenInstanceError):
        case.method.updates = 3
    with pytest.raises(ValidationError, match="unexpected"):
        type(case.method)(unknown_knob=1)
    with pytest.raises(ValidationError, match="updates"):
        type(case.method)(updates=-1)


def test_importing_the_methods_does_not_import_torch() -> None:
    code = "\n".join(
        [
            "import sys",
            "from compressor import registry",
            "for name in registry.names('methods'): registry.load('methods', name)().needs()",
            "sys.exit('torch' in sys.modules)",
        ]
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@everyone
def test_a_weight_is_decomposed_where_it_lies(moments: Build, case: Case) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    given = moments(9, 7)
    assert given.input is not None
    assert given.gradient is not None
    there = Moments(SecondMoment(given.input.matrix.cuda()), SecondMoment(given.gradient.matrix.cuda()))
    found = case.method.subspace(weight_of(9, 7).cuda(), there, 5).truncate(1)
    expected = case.method.subspace(weight_of(9, 7), given, 5).truncate(1)
    torch.testing.assert_close(product(found).cpu(), product(expected))


# ---- CERSA ----


def singular(*values: float) -> Tensor:
    """A weight (6, 5) with these singular values."""
    u, _, vt = np.linalg.svd(np.random.default_rng(0).normal(size=(6, 5)), full_matrices=False)
    return torch.from_numpy((u[:, : len(values)] * values) @ vt[: len(values)])


@pytest.mark.parametrize(("alpha", "rank"), [(0.5, 1), (0.53, 1), (0.54, 2), (0.83, 2), (0.84, 3), (0.97, 4), (1.0, 4)])
def test_alpha_keeps_the_fewest_components_with_that_energy(alpha: float, rank: int) -> None:
    """Energies of 4, 3, 2, 1: 16, 25, 29, 30 thirtieths."""
    found = Cersa(alpha=alpha).subspace(singular(4, 3, 2, 1), Moments(), 4)
    assert len(found.gains) == rank
    np.testing.assert_allclose(found.gains, np.array([16, 9, 4, 1])[:rank] / 30)


def test_the_plan_may_ask_for_fewer_components_than_alpha() -> None:
    assert len(Cersa(alpha=1.0).subspace(singular(4, 3, 2, 1), Moments(), 2).gains) == 2


@pytest.mark.parametrize(("beta", "free"), [(0.5, 1), (0.54, 2), (0.83, 2), (0.84, 3), (1.0, 3)])
def test_beta_trains_the_fewest_components_with_that_share_of_the_energy(beta: float, free: int) -> None:
    """Of the layer, of which three components are kept: 16, 25, 29 thirtieths."""
    method = Cersa(alpha=0.9, beta=beta)
    core = method.core(method.subspace(singular(4, 3, 2, 1), Moments(), 4).truncate(3))
    assert [parameter.shape for parameter in core.parameters()] == [(free, free)]


# ---- what is trained ----


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        (Jactus(), 36),
        (Cersa(alpha=1.0), 36),
        (Spectral(), 36),
        (Spectral(train="none"), 0),
        (Psoft(), 6 * 5 // 2 + 2 * 6),
        (Psoft(strict=True), 6 * 5 // 2),
    ],
)
def test_a_core_trains_as_many_numbers_as_published(moments: Build, method: Any, trained: int) -> None:
    short = method.subspace(weight_of(9, 8), moments(9, 8), 7).truncate(6)
    assert sum(parameter.numel() for parameter in method.core(short).parameters()) == trained
