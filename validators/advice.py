"""Which export to deploy and why, in sentences; `validators.pareto` chooses. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.tasks.base import QUALITIES
from validators import pareto
from validators.contest import holding, unwon, winner
from validators.export_report import ExportReport
from validators.options import Option, baseline, common, entered, options
from validators.pareto import beats, mean_cost, shared_costs
from validators.wording import NOT_THE_ANSWER, listed

SAME = 0.005  # points of accuracy that would be printed as 0.00
ADJECTIVES = {
    "size": ("smaller", "larger", "large"),
    "latency_p50": ("faster", "slower", "fast"),
    "peak_memory": ("lighter in memory", "heavier in memory", "heavy"),
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
    best = pareto.best(found)
    if best is None:
        return Recommendation(None, "Neither size, latency nor memory was measured, so nothing can be recommended.")
    return Recommendation(best, _explain(best, found, shared_costs(found)))


def defend(exports: Sequence[ExportReport]) -> Recommendation:
    """Why the winner is the winner, and whether low-rank is the answer."""
    best = winner(exports)
    if best is None:
        text = f"{_capital(unwon(exports))}, dense or low-rank alike. {LEFT}"
        if holding(exports):
            text += " A gate on accuracy or parity says how much of either may be lost."
        return Recommendation(None, text)
    found = options(holding(exports))
    shared = shared_costs(entered(found))
    chosen = next(option for option in found if option.name == best.name)
    others = [option for option in entered(found) if option.low_rank != chosen.low_rank]
    rivals = [option for option in others if option.sound]
    text = f"{_capital(chosen.label)} wins: {_compared(chosen, baseline(chosen, found), shared)}."
    if rivals:
        rival = min(rivals, key=lambda option: mean_cost(option, shared))
        text += f" {_beside(chosen, rival, shared)}."
    else:
        held = "that holds every gate keeps accuracy and parity" if others else "holds every gate"
        text += f" No {'other dense' if chosen.low_rank else 'low-rank'} export {held}."
    return Recommendation(chosen, text + ("" if chosen.low_rank else f" {_capital(NOT_THE_ANSWER)}."))


def _explain(best: Option, found: Sequence[Option], shared: Sequence[str]) -> str:
    rivals = [option for option in found if option.low_rank and option.sound]
    lost = [option.label for option in found if option.low_rank and not option.sound]
    dense = [option for option in entered(found) if not option.low_rank]
    unproven = "" if any("int8" in option.label for option in dense) else f" {UNPROVEN}"
    if not rivals:
        return f"No low-rank export holds accuracy and parity: {NOT_THE_ANSWER}. Deploy {best.label}.{unproven}"
    rival = min(rivals, key=lambda option: mean_cost(option, shared))
    text = _for_low_rank(best, found, shared) if best.low_rank else _against_low_rank(best, rival, shared)
    text += unproven + (f" It fails {_gates(best)}." if best.failed else "")
    return f"{text} {_capital(listed(lost))} {_do_not_hold(len(lost))}." if lost else text


def _for_low_rank(best: Option, found: Sequence[Option], shared: Sequence[str]) -> str:
    own = baseline(best, found)
    text = f"{_capital(best.label)} is the best choice here: {_compared(best, own, shared)}."
    dense = [option for option in found if not option.low_rank and option is not own]
    return " ".join([text, *(f"{_beside(best, option, shared)}." for option in dense)])


def _beside(best: Option, reference: Option, shared: Sequence[str]) -> str:
    if not reference.sound:
        return f"{_capital(reference.label)} {_do_not_hold(1)}"
    return f"Against {reference.label} it is {_compared(best, reference, shared, named=False)}"


def _against_low_rank(best: Option, rival: Option, shared: Sequence[str]) -> str:
    quantities = (*common([best, rival], QUALITIES), *shared)
    said = f"{_capital(best.label)} is {_compared(best, rival, shared)}"
    ahead = [NOUNS[quantity] for quantity in quantities if beats(rival, best, quantity)]
    if not ahead:
        return f"{said}: {NOT_THE_ANSWER}."
    return f"{said}: the better balance. {_capital(rival.label)} is the answer only where {listed(ahead)} counts most."


def _compared(one: Option, other: Option, shared: Sequence[str], named: bool = True) -> str:
    """`smaller (0.28x) and faster (0.55x) than dense fp32 at the same accuracy`."""
    words = [word for cost in shared if (word := _difference(one, other, cost))]
    than = f" {'than' if words else 'as'} {other.label}" if named else ""
    alike = f"about as {listed([ADJECTIVES[cost][2] for cost in shared])}"
    return f"{listed(words) or alike}{than} {_accuracy(one, other)}"


def _difference(one: Option, other: Option, cost: str) -> str | None:
    better, worse, _ = ADJECTIVES[cost]
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
    if "perplexity" not in common([one, other], QUALITIES):
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
