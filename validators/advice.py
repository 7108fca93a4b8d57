"""Which export to deploy, by the Pareto front of accuracy, size, latency and memory.

An option is sound when its accuracy (and perplexity and parity) is good enough. One option beats another in a quantity
when the interval of their difference leaves out zero, and dominates it when it beats it somewhere and is beaten
nowhere. Of the sound options that nothing dominates, the one with the least geometric mean of size, latency and memory
is recommended.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from compressor.tasks.base import QUALITIES
from validators.base import Finding
from validators.wording import NOT_THE_ANSWER, listed

if TYPE_CHECKING:
    from validators.report import ExportReport

SOUND = (*QUALITIES, "parity")  # what an option has to hold
COSTS = ("size", "latency_p50", "peak_memory")
SAME = 0.005  # points of accuracy that would be printed as 0.00
MATERIAL = 0.02  # costs that differ by less than 2% are nothing to choose by: one machine's noise from day to day
APART = 0.05  # of two runtimes 5%: their exports were measured one after the other, not side by side
DENSE_FP32 = "dense"  # the name of the option that a runtime's exports are measured beside
ADJECTIVES = {
    "size": ("smaller", "larger"),
    "latency_p50": ("faster", "slower"),
    "peak_memory": ("lighter in memory", "heavier in memory"),
}
UNPROVEN = "Dense int8 was not measured, so this is unproven against it."
LEFT = "Dense fp32, which they are held against and no gate judges, is what is left to ship."
NOUNS = {
    "accuracy": "accuracy",
    "perplexity": "perplexity",
    "size": "size",
    "latency_p50": "latency",
    "peak_memory": "memory",
}


class Span(NamedTuple):
    """A value with the interval it lies in; lower is better."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Option:
    """Something that could be deployed.

    `costs` are ratios to dense fp32 of the first runtime (1.0 = as that), perplexity among them; under `accuracy`
    stands the accuracy lost against it.
    """

    label: str
    name: str
    runtime: str
    low_rank: bool
    sound: bool
    failed: tuple[str, ...]
    costs: Mapping[str, Span]


@dataclass(frozen=True)
class Recommendation:
    """The recommended option (None where nothing can be recommended) and the reason in words."""

    best: Option | None
    text: str


def recommend(exports: Sequence[ExportReport]) -> Recommendation:
    """Choose among the dense baseline and all exports, and say why."""
    candidates = [export for export in exports if not export.dense]
    if not candidates:
        return Recommendation(None, "There is no low-rank export to hold against the dense model.")
    if any(export.finding("accuracy") is None for export in candidates):
        return Recommendation(None, "Accuracy was not measured, so nothing can be recommended.")
    found = options(exports)
    shared = _measured(found, COSTS)
    if not shared:
        return Recommendation(None, "Neither size, latency nor memory was measured, so nothing can be recommended.")
    best = _best(found, shared)
    return Recommendation(best, _explain(best, found, shared))


def winner(exports: Sequence[ExportReport]) -> ExportReport | None:
    """The best of all exports that hold every gate, dense ones too; None where there is none."""
    found = [option for option in entered(options(_holding(exports))) if option.sound]
    shared = _measured(found, COSTS)
    if not found or not shared:
        return None
    best = _best(found, shared).name
    return next(export for export in exports if export.name == best)


def unwon(exports: Sequence[ExportReport]) -> str:
    """Why there is no winner."""
    held = len(_holding(exports))
    if not held:
        return f"none of {len(exports)} exports holds every gate"
    return f"{held} of {len(exports)} exports hold every gate that is set, but none of them keeps accuracy and parity"


def crowned(exports: Sequence[ExportReport]) -> tuple[ExportReport, ...]:
    """With the winner as the only candidate; where there is none, low-rank exports stay candidates and fail."""
    best = winner(exports)
    if best is None:
        return tuple(exports)
    return tuple(replace(export, role="candidate" if export is best else "reference") for export in exports)


def defend(exports: Sequence[ExportReport]) -> Recommendation:
    """Why the winner is the winner, and whether low-rank is the answer."""
    best = winner(exports)
    if best is None:
        text = f"{_capital(unwon(exports))}, dense or low-rank alike. {LEFT}"
        if _holding(exports):
            text += " A gate on accuracy or parity says how much of either may be lost."
        return Recommendation(None, text)
    found = options(_holding(exports))
    shared = _measured(found, COSTS)
    chosen = next(option for option in found if option.name == best.name)
    rivals = [option for option in entered(found) if option.sound and option.low_rank != chosen.low_rank]
    text = f"{_capital(chosen.label)} wins: {_compared(chosen, _baseline(chosen, found), shared)}."
    if rivals:
        rival = min(rivals, key=lambda option: _mean_cost(option, shared))
        text += f" {_beside(chosen, rival, shared)}."
    else:
        text += f" No {'other dense' if chosen.low_rank else 'low-rank'} export holds every gate."
    return Recommendation(chosen, text + ("" if chosen.low_rank else f" {_capital(NOT_THE_ANSWER)}."))


def front(exports: Sequence[ExportReport]) -> tuple[str, ...]:
    """Names of the sound exports that no other one dominates in accuracy, size, latency and memory."""
    sound = [option for option in entered(options(exports)) if option.sound]
    return tuple(option.name for option in _front(sound, _measured(sound, COSTS)))


def _holding(exports: Sequence[ExportReport]) -> list[ExportReport]:
    return [export for export in exports if not export.unmet]


def _measured(found: Sequence[Option], quantities: Sequence[str]) -> list[str]:
    """Of the quantities those that were measured for all options."""
    return [quantity for quantity in quantities if all(quantity in option.costs for option in found)]


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


def _baseline(option: Option, found: Sequence[Option]) -> Option:
    """Dense fp32 of the option's runtime."""
    return next(other for other in found if (other.name, other.runtime) == (DENSE_FP32, option.runtime))


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


def beats(one: Option, other: Option, quantity: str) -> bool:
    """Whether `one` is clearly better than `other`: by more than noise, and for costs by more than 2% (5% elsewhere).

    By the square-and-add interval of their difference, see `validators.compare.interval`: two intervals that overlap
    a little are apart all the same.
    """
    mine, theirs = one.costs[quantity], other.costs[quantity]
    least = MATERIAL if one.runtime == other.runtime else APART
    material = quantity in QUALITIES or mine.value < theirs.value * (1 - least)
    return material and mine.value + math.hypot(mine.high - mine.value, theirs.value - theirs.low) < theirs.value


def dominates(one: Option, other: Option, quantities: Sequence[str]) -> bool:
    """Whether `one` is clearly better somewhere and clearly worse nowhere."""
    better = any(beats(one, other, quantity) for quantity in quantities)
    return better and not any(beats(other, one, quantity) for quantity in quantities)


def _best(found: Sequence[Option], shared: Sequence[str]) -> Option:
    sound = [option for option in found if option.sound]
    return min(_front(sound, shared) or sound, key=lambda option: _mean_cost(option, shared))


def _front(sound: Sequence[Option], shared: Sequence[str]) -> list[Option]:
    """Those that none dominates."""
    quantities = (*_measured(sound, QUALITIES), *shared)
    return [one for one in sound if not any(dominates(other, one, quantities) for other in sound)]


def _mean_cost(option: Option, shared: Sequence[str]) -> float:
    """Geometric mean of the ratios to dense."""
    return math.exp(sum(math.log(option.costs[cost].value) for cost in shared) / len(shared))


def _explain(best: Option, found: Sequence[Option], shared: Sequence[str]) -> str:
    rivals = [option for option in found if option.low_rank and option.sound]
    lost = [option.label for option in found if option.low_rank and not option.sound]
    dense = [option for option in entered(found) if not option.low_rank]
    unproven = "" if any("int8" in option.label for option in dense) else f" {UNPROVEN}"
    if not rivals:
        return f"No low-rank export holds accuracy and parity: {NOT_THE_ANSWER}. Deploy {best.label}.{unproven}"
    rival = min(rivals, key=lambda option: _mean_cost(option, shared))
    text = _for_low_rank(best, found, shared) if best.low_rank else _against_low_rank(best, rival, shared)
    text += unproven + (f" It fails {_gates(best)}." if best.failed else "")
    return f"{text} {_capital(listed(lost))} {_do_not_hold(len(lost))}." if lost else text


def _for_low_rank(best: Option, found: Sequence[Option], shared: Sequence[str]) -> str:
    own = _baseline(best, found)
    text = f"{_capital(best.label)} is the best choice here: {_compared(best, own, shared)}."
    dense = [option for option in found if not option.low_rank and option is not own]
    return " ".join([text, *(f"{_beside(best, option, shared)}." for option in dense)])


def _beside(best: Option, reference: Option, shared: Sequence[str]) -> str:
    if not reference.sound:
        return f"{_capital(reference.label)} {_do_not_hold(1)}"
    return f"Against {reference.label} it is {_compared(best, reference, shared, named=False)}"


def _against_low_rank(best: Option, rival: Option, shared: Sequence[str]) -> str:
    quantities = (*_measured([best, rival], QUALITIES), *shared)
    said = f"{_capital(best.label)} is {_compared(best, rival, shared)}"
    ahead = [NOUNS[quantity] for quantity in quantities if beats(rival, best, quantity)]
    if not ahead:
        return f"{said}: {NOT_THE_ANSWER}."
    return f"{said}: the better balance. {_capital(rival.label)} is the answer only where {listed(ahead)} counts most."


def _compared(one: Option, other: Option, shared: Sequence[str], named: bool = True) -> str:
    """`smaller (0.28x) and faster (0.55x) than dense fp32 at the same accuracy`."""
    words = [word for cost in shared if (word := _difference(one, other, cost))]
    than = f" {'than' if words else 'as'} {other.label}" if named else ""
    return f"{listed(words) or 'about as large, fast and heavy'}{than} {_accuracy(one, other)}"


def _difference(one: Option, other: Option, cost: str) -> str | None:
    better, worse = ADJECTIVES[cost]
    word = better if beats(one, other, cost) else worse if beats(other, one, cost) else None
    return word and f"{word} ({one.costs[cost].value / other.costs[cost].value:.2f}x)"


def _accuracy(one: Option, other: Option) -> str:
    lost = 100 * (one.costs["accuracy"].value - other.costs["accuracy"].value)
    if abs(lost) < SAME:
        return f"at the same accuracy{_perplexity(one, other)}"
    said = f"with {abs(lost):.2f} points {'less' if lost > 0 else 'more'} accuracy{_noise(one, other, 'accuracy')}"
    return said + _perplexity(one, other)


def _perplexity(one: Option, other: Option) -> str:
    """` and 1.64x the perplexity`, where both have one."""
    if "perplexity" not in _measured([one, other], QUALITIES):
        return ""
    times = one.costs["perplexity"].value / other.costs["perplexity"].value
    return f" and {times:.2f}x the perplexity{_noise(one, other, 'perplexity')}" if f"{times:.2f}" != "1.00" else ""


def _noise(one: Option, other: Option, quantity: str) -> str:
    return "" if beats(one, other, quantity) or beats(other, one, quantity) else " (within noise)"


def _do_not_hold(count: int) -> str:
    return f"{'does' if count == 1 else 'do'} not hold accuracy and parity"


def _gates(option: Option) -> str:
    return f"{'its gate on' if len(option.failed) == 1 else 'its gates on'} {listed(list(option.failed))}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
