"""Exports held against the first of them without a recipe or data: size, peak memory and latency."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compressor import progress
from compressor.display import columns
from compressor.errors import GateError, InputError, did_you_mean
from compressor.machine import machine, versions
from compressor.recipe import Gate
from exporters.base import Session
from validators import render, wording
from validators.base import Check, Finding
from validators.bench_inputs import read_inputs, synthetic_inputs
from validators.entrants import entrant, names
from validators.export_report import ExportReport
from validators.latency import Latency
from validators.measure import judged
from validators.memory import Memory
from validators.process_memory import used
from validators.size import Size

HEADERS = ("Export", "Size", "x", "Peak memory", "x", "Latency p50", "x", "95%", "p90", "p99", "Verdict")
SHOWN = ("size", "peak_memory", "latency_p50", "latency_p90", "latency_p99")


@dataclass(frozen=True)
class Bench:
    """The first export, the others held against it, and how they were measured.

    Findings have the values of the first in the place of dense.
    """

    base: str
    entries: tuple[ExportReport, ...]
    setting: Mapping[str, Any]

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """`fail` where a gate does not hold."""
        return "fail" if any(entry.failures for entry in self.entries) else "pass"

    def raise_for_gates(self) -> None:
        """Do nothing where every gate holds.

        Raises:
            GateError: one line for each that does not.
        """
        if self.verdict == "fail":
            lines = [
                f"  {entry.name}: {wording.complaint(finding, self.base, 'this')}"
                for entry in self.entries
                for finding in entry.failures
            ]
            raise GateError("\n".join(["Not every gate holds.", *lines]))

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        exports = [one.to_dict() for one in self.entries]
        return {"base": self.base, "verdict": self.verdict, "exports": exports, **self.setting}

    def to_markdown(self) -> str:
        """A table, fit for a GitHub step summary."""
        return f"## {render.escaped(self._title())}\n\n{render.markdown_table([HEADERS, *self._rows()])}\n"

    def __str__(self) -> str:
        return f"{self._title()}\n\n{columns(HEADERS, list(self._rows()))}"

    def _title(self) -> str:
        what, threads = self.setting["inputs"], self.setting["threads"]
        return f"{what}, {self.setting['device']}, {threads} thread{'s' * (threads != 1)}; x: against {self.base}"

    def _rows(self) -> Iterator[tuple[str, ...]]:
        size, memory, *times = (wording.amount(one, one.dense) for one in _shown(self.entries[0]))
        yield (self.base, size, "", memory, "", times[0], "", "", *times[1:], "-")
        for entry in self.entries:
            yield _row(entry)


def _shown(entry: ExportReport) -> list[Finding]:
    """The findings of a row, in the order of SHOWN."""
    found = {finding.quantity: finding for finding in entry.findings}
    return [found[name] for name in SHOWN]


def _row(entry: ExportReport) -> tuple[str, ...]:
    size, memory, p50, p90, p99 = _shown(entry)
    low, high = (end / p50.dense for end in p50.interval or (p50.candidate, p50.candidate))
    return (
        entry.name,
        *(cell for one in (size, memory, p50) for cell in (wording.amount(one, one.candidate), wording.ratio(one))),
        f"{low:.3f} to {high:.3f}",
        *(wording.amount(one, one.candidate) for one in (p90, p99)),
        entry.verdict if entry.gated else "-",
    )


def bench(
    paths: Sequence[Path],
    session: Session = Session(),  # noqa: B008 (frozen)
    *,
    batch_size: int = 1,
    sequence_length: int = 64,
    runs: int = 200,
    inputs_file: Path | None = None,
    percents: Mapping[str, float] | None = None,
) -> Bench:
    """Measure exports, folders or ONNX files, in turns with the first.

    Args:
        paths: two or more; the first is what the others are held against.
        session: where they run, and with how many threads.
        batch_size, sequence_length: of made-up inputs: what free axes are.
        runs: timed rounds of each pair.
        inputs_file: an .npz of the inputs by name in place of made-up ones.
        percents: by quantity, how much worse than the first an export may be, in percent.

    Raises:
        InputError: fewer than two exports, one that cannot be read, or a quantity that is not measured.
        DependencyError, ResourceError, RuntimeFailure: as the measuring processes failed.
    """
    gates = _gates(percents or {})
    if len(paths) < 2:
        raise InputError("Name two exports or more: each is held against the first.")
    with tempfile.TemporaryDirectory(prefix="rankfold-") as scratch:
        entrants = [entrant(name, path, Path(scratch)) for name, path in zip(names(paths), paths, strict=True)]
        arrays = read_inputs(inputs_file) if inputs_file else synthetic_inputs(entrants, batch_size, sequence_length)
        base, *others = (one.subject(arrays, session) for one in entrants)
        checks: tuple[Check, ...] = (Size(), Memory(), Latency(runs=runs))
        jobs = [(other, check) for other in others for check in checks]
        found: list[list[Finding]] = [[] for _ in others]
        for place, (other, check) in enumerate(progress.track(jobs, "measuring", len(jobs))):
            found[place // len(checks)] += [judged(one, gates) for one in check.run(base, other)]
    entries = tuple(
        ExportReport(one.name, one.facts["runtime"], one.facts["precision"], "candidate", tuple(findings))
        for one, findings in zip(entrants[1:], found, strict=True)
    )
    return Bench(entrants[0].name, entries, _setting(paths, arrays, session, runs))


def _gates(percents: Mapping[str, float]) -> dict[str, Gate]:
    for name in percents:
        if name not in SHOWN:
            raise InputError(f"--gate {name}: measured are {', '.join(SHOWN)}.{did_you_mean(name, SHOWN)}")
    return {name: Gate(type="percent-max-degradation", value=value) for name, value in percents.items()}


def _setting(paths: Sequence[Path], arrays: Mapping[str, Any], session: Session, runs: int) -> dict[str, Any]:
    running = used(session.device, session.threads)
    return {
        "inputs": ", ".join(f"{name} {array.shape}" for name, array in arrays.items()),
        "device": session.device,
        "threads": running["threads"],
        "runs": runs,
        "paths": [str(path) for path in paths],
        "machine": machine() | running,
        "versions": versions(),
    }
