"""How findings read in words and figures: the same in the terminal, markdown, JUnit, HTML and error messages."""

from __future__ import annotations

import math

from compressor.sections.proof import SHARES
from validators.base import Finding

LABELS = {
    "accuracy": "Accuracy",
    "perplexity": "Perplexity",
    "parity": "Parity with torch",
    "parity_max_difference": "Largest output difference",
    "size": "Size",
    "peak_memory": "Peak memory",
    "latency_p50": "Latency p50",
    "latency_p90": "Latency p90",
    "latency_p99": "Latency p99",
}
ROUNDING = "parity_max_difference"  # dense fp32's is nothing but that, so a ratio to it says nothing
COST_PREFIXES = ("size", "peak_memory", "latency")  # what quantities' names begin with that a smaller budget betters
NOT_THE_ANSWER = "low-rank is not the answer here"
HEADERS = ("Quantity", "Dense", "Candidate", "Ratio", "Interval", "Limit", "Verdict")


def label(quantity: str) -> str:
    """`latency_p50` -> `Latency p50`; quantities of other distributions are spelled from their name."""
    return LABELS.get(quantity, quantity.replace("_", " ").capitalize())


def number(value: float) -> str:
    """Four significant digits; values that are no finite number are said in words."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-3:
        return f"{value:.2g}"
    return f"{value:#.4g}".rstrip(".") if value else "0"


def detail(value: float) -> str:
    """A bare number: counts stay whole."""
    return f"{value:,.0f}" if math.isfinite(value) and float(value).is_integer() else number(value)


def amount(finding: Finding, value: float) -> str:
    """A value of the finding's quantity with its unit."""
    if finding.quantity in SHARES and math.isfinite(value):
        return f"{100 * value:.2f}%"
    return f"{number(value)} {finding.unit}".strip() if math.isfinite(value) else number(value)


def ratio(finding: Finding) -> str:
    """candidate / dense, or a dash where that says nothing: dense is 0, not a number, or rounding."""
    return f"{finding.ratio:.3f}" if math.isfinite(finding.ratio) and finding.quantity != ROUNDING else "-"


def interval(finding: Finding) -> str:
    """`9.10 to 9.60 ms (95%)`; an interval without a confidence is the spread of repeated measurements."""
    if finding.verdict_interval is None:
        return "-"
    if finding.verdict_interval[0] <= 0 and finding.verdict_interval[1] == math.inf:
        needed = finding.details.get("runs_needed")
        return f"not known: takes {needed:,.0f} runs" if needed else "not known"
    low, high = (amount(finding, end) for end in finding.verdict_interval)
    if finding.unit and low.endswith(f" {finding.unit}") and high.endswith(f" {finding.unit}"):
        low = low.removesuffix(f" {finding.unit}")
    kind = f"{100 * finding.confidence:g}%" if finding.confidence else "spread"
    return f"{low} to {high} ({kind})"


def limit(finding: Finding) -> str:
    """`min 92.10%`, `max 10.00 ms`, or a dash for what no gate limits."""
    if finding.limit is None:
        return "-"
    return f"{'min' if finding.better == 'higher' else 'max'} {amount(finding, finding.limit)}"


def verdict(finding: Finding) -> str:
    """The verdict, and for `unsure` what it counts as."""
    if finding.verdict == "unsure":
        return "unsure (passes)" if finding.accept_unsure else "unsure (fails)"
    return "-" if finding.verdict == "ungated" else finding.verdict


def row(finding: Finding) -> tuple[str, ...]:
    """One cell for each of HEADERS."""
    values = (amount(finding, finding.dense), amount(finding, finding.candidate))
    return (label(finding.quantity), *values, ratio(finding), interval(finding), limit(finding), verdict(finding))


def complaint(finding: Finding, base: str = "dense", ours: str = "candidate") -> str:
    """One line about a failed gate: quantity, candidate, dense, interval and limit; the two may have other names."""
    facts = [f"{base} {amount(finding, finding.dense)}", f"limit {limit(finding)}"]
    if finding.verdict_interval is not None:
        facts.insert(1, f"interval {interval(finding)}")
    said = "is unsure, its interval straddles the limit" if finding.verdict == "unsure" else "fails"
    return f"{finding.quantity} {said}: {ours} {amount(finding, finding.candidate)}, {', '.join(facts)}"


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
