"""What could be deployed: dense fp32 of every runtime and every export, by what each costs and whether it holds.

An option is sound when its accuracy (and perplexity and parity) is good enough. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from compressor.tasks.base import QUALITIES
from validators.base import Finding
from validators.export_report import ExportReport
from validators.intervals import Span

SOUND = (*QUALITIES, "parity")  # what an option has to hold
COSTS = ("size", "latency_p50", "peak_memory")
DENSE_FP32 = "dense"  # the name of the option that a runtime's exports are measured beside


@dataclass(frozen=True)
class Option:
    """Something that could be deployed.

    `costs` are ratios to dense fp32 of the first runtime (1.0 = as that), perplexity among them; under `accuracy`
    stands the accuracy lost against it. Of all of them lower is better.
    """

    label: str
    name: str
    runtime: str
    low_rank: bool
    sound: bool
    failed: tuple[str, ...]  # quantities whose gates do not hold
    costs: Mapping[str, Span]


def options(exports: Sequence[ExportReport]) -> tuple[Option, ...]:
    """Dense fp32 of every runtime, then every export whose accuracy was measured."""
    measured = [export for export in exports if export.finding("accuracy")]
    limits, labels, standing = _limits(measured), _labels(measured), _standing(measured)
    return (
        *(_dense(runtime, standing) for runtime in standing),
        *(_option(export, label, limits, standing) for export, label in zip(measured, labels, strict=True)),
    )


def entered(found: Sequence[Option]) -> list[Option]:
    """The options but those that the others are measured beside."""
    return [option for option in found if option.name != DENSE_FP32]


def baseline(option: Option, found: Sequence[Option]) -> Option:
    """Dense fp32 of the option's runtime."""
    return next(other for other in found if (other.name, other.runtime) == (DENSE_FP32, option.runtime))


def common(found: Sequence[Option], quantities: Sequence[str]) -> list[str]:
    """Of the quantities those that were measured for all options."""
    return [quantity for quantity in quantities if all(quantity in option.costs for option in found)]


def _standing(exports: Sequence[ExportReport]) -> dict[str, dict[str, float]]:
    """By runtime, dense fp32 against that of the first: accuracy lost, and ratios.

    Each export is measured beside dense anew, and the middle one counts: a runtime's exports keep their ratios.
    """
    found: dict[str, dict[str, list[float]]] = {export.runtime: {} for export in exports}
    for runtime, finding in ((export.runtime, finding) for export in exports for finding in export.findings):
        known = math.isfinite(finding.dense) if finding.quantity == "accuracy" else _is_comparable(finding)
        if finding.quantity in (*COSTS, *QUALITIES) and known:
            found[runtime].setdefault(finding.quantity, []).append(finding.dense)
    bases = {runtime: {name: median(values) for name, values in own.items()} for runtime, own in found.items()}
    first = next(iter(bases.values()), {})
    return {
        runtime: {n: first[n] - base if n == "accuracy" else base / first[n] for n, base in own.items() if n in first}
        for runtime, own in bases.items()
    }


def _dense(runtime: str, standing: Mapping[str, Mapping[str, float]]) -> Option:
    label = f"dense fp32 ({runtime})" if len(standing) > 1 else "dense fp32"
    costs = {quantity: Span(value, value, value) for quantity, value in standing[runtime].items()}
    return Option(label, DENSE_FP32, runtime, low_rank=False, sound=True, failed=(), costs=costs)


def _limits(exports: Sequence[ExportReport]) -> dict[str, float]:
    """The strictest limit of parity and of each quality that a gate limits."""
    limits: dict[str, float] = {}
    for finding in (finding for export in exports for finding in export.findings):
        if finding.quantity in SOUND and finding.limit is not None:
            strictest = max if finding.better == "higher" else min
            limits[finding.quantity] = strictest(finding.limit, limits.get(finding.quantity, finding.limit))
    return limits


def _labels(exports: Sequence[ExportReport]) -> list[str]:
    """`low-rank int8`, `dense int8`; with the export's name where two would read alike."""
    plain = [f"{'dense' if e.dense else 'low-rank'} {e.precision}" for e in exports]
    twice = {label for label in plain if [*plain, "dense fp32"].count(label) > 1}
    return [f"{p} ({e.name})" if p in twice else p for p, e in zip(plain, exports, strict=True)]


def _option(
    export: ExportReport, label: str, limits: Mapping[str, float], standing: Mapping[str, Mapping[str, float]]
) -> Option:
    low_rank, sound = not export.dense, _is_sound(export, limits)
    failed = tuple(finding.quantity for finding in export.failures)
    costs = dict(_costs(export, standing[export.runtime]))
    return Option(label, export.name, export.runtime, low_rank, sound, failed, costs)


def _is_sound(export: ExportReport, limits: Mapping[str, float]) -> bool:
    accuracy, parity = export.finding("accuracy"), export.finding("parity")
    qualities = [finding for finding in export.findings if finding.quantity in QUALITIES]
    if accuracy is None or not all(math.isfinite(finding.candidate) for finding in qualities):
        return False
    if parity is not None and not (parity.ok and math.isfinite(parity.candidate)):
        return False
    limited = [finding for finding in export.findings if finding.quantity in limits]
    if not all(_holds(finding, limits[finding.quantity]) for finding in limited):
        return False
    if any(finding.quantity in QUALITIES for finding in limited):
        return True
    return all(map(_reaches_dense, qualities))


def _reaches_dense(finding: Finding) -> bool:
    """Whether a quality is as good as the dense model's, as far as its interval can tell."""
    ends = [finding.candidate, *(finding.interval or ())]
    return max(ends) >= finding.dense if finding.better == "higher" else min(ends) <= finding.dense


def _holds(finding: Finding, limit: float) -> bool:
    if finding.verdict != "ungated":
        return finding.ok
    worse = finding.candidate < limit if finding.better == "higher" else finding.candidate > limit
    return not worse  # a reference has no gate of its own: it is held to the candidates' limit


def _costs(export: ExportReport, standing: Mapping[str, float]) -> Iterator[tuple[str, Span]]:
    """Measured quantities with lower is better, by where dense fp32 of the export's runtime stands."""
    for finding in export.findings:
        low, high = finding.interval or (finding.candidate, finding.candidate)
        values, base = (low, finding.candidate, high), standing.get(finding.quantity)
        if base is None:
            continue
        if finding.quantity == "accuracy":
            yield "accuracy", _span([base + finding.dense - value for value in values])
        elif _is_comparable(finding):
            yield finding.quantity, _span([base * value / finding.dense for value in values])


def _is_comparable(finding: Finding) -> bool:
    return math.isfinite(finding.ratio) and finding.ratio > 0


def _span(values: Sequence[float]) -> Span:
    known = [value for value in values if not math.isnan(value)]
    return Span(min(known, default=math.inf), values[1], max(known, default=math.inf))
