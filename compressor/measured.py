"""Ranks by what was measured: layers timed on the runtime of the first export, and whole models of planned ranks.

`Line.plan` comes here where the strategy is `measured` or the budget is one of latency or memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compressor import data, factorize, progress, registry, timings
from compressor.allocation import Allocator, Price, Spectrum, break_even
from compressor.budgets import DenseCost, Fitting, Round
from compressor.errors import ModelError, some
from compressor.forms import Patches, as_dense, form_of
from compressor.machine import machine
from compressor.planning import Plan, plan_of
from compressor.recording import input_of
from compressor.running import settled
from compressor.structure import shape
from compressor.timings import Curve, Site
from exporters.base import Arrays, Session, write
from validators.end_to_end import EndToEnd

if TYPE_CHECKING:
    from compressor.line import Line

RECORD = "measured.json"
FP32_BYTES = 4


def choose(line: Line, spectra: Sequence[Spectrum], scratch: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan of a line's recipe, and what it was chosen by, for RECORD.

    Raises:
        BudgetError: the budget cannot be met.
        DependencyError, ExportError, ResourceError, RuntimeFailure: an export cannot be made or measured.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        return Measuring(line, Path(folder)).choose(spectra)


class Measuring:
    """Where the layers and models of one line are measured; exports lie in `folder`."""

    def __init__(self, line: Line, folder: Path) -> None:
        self.line, self.sources, self.folder, self.section = line, line.sources, folder, line.recipe.plan
        self.runtime, self.precision = line.recipe.exports[0].runtime, line.recipe.exports[0].precision

    def choose(self, spectra: Sequence[Spectrum]) -> tuple[Plan, dict[str, Any]]:
        """The plan and the record of what it was chosen by."""
        section, price, charge = self.section, None, None
        record: dict[str, Any] = {"runtime": self.runtime, "precision": self.precision, "cpu": machine()["cpu"]}
        if section.times_layers:
            table = self._table(spectra)
            record |= table.record
            price = table.price if section.strategy == "measured" else None
            charge = table.price if section.quantity == "latency" else None
        allocator = Allocator(spectra, section.strategy, section.multiple_of, section.layout, price, charge)
        if section.quantity == "parameters":
            return plan_of(allocator, section.share), record
        plan, dense, rounds = self._fit(allocator)
        record["dense"] = {"ratio": dense.ratio, "slope": dense.slope}
        record["rounds"] = [{"load": one.load, "ratio": one.ratio} for one in rounds]
        return plan, record

    # ---- layers ----

    def _table(self, spectra: Sequence[Spectrum]) -> Table:
        validation = self.sources.recipe.validation
        session = Session(validation.device, validation.threads)
        timer = registry.exporter(self.runtime, self.precision).timer(session)
        found = sites(self.sources.start(), [spectrum.name for spectrum in spectra], self.whole.inputs())
        distinct = dict.fromkeys(site for calls in found.values() for site in calls)
        ranks = {
            site: timings.ladder(break_even(site.out_features, site.in_features), self.section.multiple_of)
            for site in distinct
        }
        with progress.stage(f"Timing {len(distinct)} shapes of layers in {self.runtime} {self.precision}"):
            return Table(found, timings.curves(ranks, timer, machine()["cpu"]), timer.label)

    # ---- whole models ----

    def _fit(self, allocator: Allocator) -> tuple[Plan, DenseCost, tuple[Round, ...]]:
        quantity = self.section.quantity
        where = f"{self.runtime} {self.precision}"
        with progress.stage(f"Fitting the plan to {self.section.share:g} of the {quantity} in {where}"):
            dense = self._dense(allocator, quantity)
            fitting = Fitting(allocator, quantity, self.section.share, dense, where)
            plan, rounds = fitting.run(partial(self._ratio, quantity))
        return plan, dense, rounds

    def _dense(self, allocator: Allocator, quantity: str) -> DenseCost:
        """The dense model in the export's precision, and how its cost falls with what the targets are charged."""
        folder = self._export(self.sources.start, self.folder / "dense", self.precision)
        cost = self.whole.cost(quantity, folder)
        ratio = 1.0 if self.precision == "fp32" else cost.ratio
        if quantity == "latency":
            return DenseCost(ratio, allocator.dense / (1e3 * cost.dense))  # us of all targets, ms of the model
        share = self.whole.size(folder) / self.whole.size(self.whole.dense)
        return DenseCost(ratio, FP32_BYTES * share * allocator.dense / 2**20 / cost.dense)  # weights, MiB of the model

    def _ratio(self, quantity: str, plan: Plan) -> float:
        """What a plan's untrained model takes, as a share of dense fp32."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            export = self._export(partial(self._folded, plan), Path(folder), self.precision)
            return self.whole.cost(quantity, export).ratio

    def _folded(self, plan: Plan) -> nn.Module:
        return factorize.fold_(self.line.factorized(plan))

    @cached_property
    def whole(self) -> EndToEnd:
        """The measuring of whole exports; the dense model in fp32 is exported for it."""
        sources = self.sources
        batches = data.posed(sources.data.calibration, sources.task, sources.processor).then(data.arrays)
        dense = self._export(sources.start, self.folder / "dense", "fp32")
        return EndToEnd(self.runtime, sources.task, batches, sources.recipe.validation, dense)

    def _export(self, model: Callable[[], nn.Module], folder: Path, precision: str) -> Path:
        """An export of what `model` makes in a folder, left as it is where it is there already."""
        exporter, path = registry.exporter(self.runtime, precision), folder / f"{self.runtime}-{precision}"
        if path.exists():
            return path
        folder.mkdir(exist_ok=True)
        example = self.sources.example()
        write(exporter, model, example, path, self._samples)
        return path

    def _samples(self) -> Sequence[Arrays]:
        """Batches of the examples that the moments were gathered on."""
        return self.sources.sample().then(data.arrays)


class Table:
    """The curves of all targets."""

    def __init__(self, calls: Mapping[str, Sequence[Site]], curves: Mapping[Site, Curve], label: str) -> None:
        self.calls, self.curves, self.label = calls, curves, label

    @property
    def price(self) -> Price:
        """Microseconds of a target at a rank, over all its calls."""
        return lambda spectrum, rank: sum(self.curves[site].at(rank) for site in self.calls[spectrum.name])

    @property
    def record(self) -> dict[str, Any]:
        """The table for people."""
        rows = [
            {
                "call": str(site),
                "targets": [name for name, calls in self.calls.items() for one in calls if one == site],
                "microseconds": {
                    timings.DENSE: curve.dense,
                    **{str(rank): time for rank, time in zip(curve.ranks, curve.times, strict=True)},
                },
            }
            for site, curve in self.curves.items()
        ]
        return {"timed": self.label, "layers": rows}


def sites(model: nn.Module, names: Sequence[str], inputs: Mapping[str, Any]) -> dict[str, list[Site]]:
    """Every call of the named layers while the model runs once on the inputs, NumPy arrays by name.

    Raises:
        ModelError: the model does not call some of them.
    """
    calls: dict[str, list[Site]] = {name: [] for name in names}

    def record(name: str, module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        calls[name].append(_site(module, tuple(input_of(arguments, named).shape)))

    with ExitStack() as hooks, settled(model):
        for name in names:
            handle = model.get_submodule(name).register_forward_pre_hook(partial(record, name), with_kwargs=True)
            hooks.callback(handle.remove)
        model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    missed = [name for name, found in calls.items() if not found]
    if missed:
        raise ModelError(
            f"The model does not call {some(missed)} on the inputs that "
            "it is measured on, so they cannot be timed. Leave them out with model.exclude."
        )
    return calls


def _site(module: nn.Module, given: tuple[int, ...]) -> Site:
    dense, form = as_dense(module), form_of(module)
    bias = dense is not None and dense.bias is not None
    if isinstance(form, Patches):
        return Site(*shape(module), given, bias, form.kernel, form.stride, form.dilation, form.pads)
    return Site(*shape(module), given, bias)
