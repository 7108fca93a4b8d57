"""The table of rivals.jsonl: each file against dense fp32, and ours against the fastest file of each rival."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from results import Row

DENSE = "ours dense fp32"
WIDTH = 138


def table(rows: Sequence[Row]) -> Iterator[str]:
    """One table for each dense model; what left no file, or one that does not run, is told below it."""
    for suite, seed in dict.fromkeys((row["suite"], row["seed"]) for row in rows):
        found = [row for row in rows if (row["suite"], row["seed"]) == (suite, seed)]
        latencies = {row["threads"]: row for row in found if row["what"] == "latency"}  # of each the last
        exports = {row["export"]: row for row in found if row["what"] == "export"}
        measured = {name: row for name, row in exports.items() if "findings" in row}
        if measured:
            described = f"**{suite}**, seed {seed}: {_described([*latencies.values()])}"
            yield from ("", *textwrap.wrap(described, WIDTH), "")
            yield from _compared(measured, dict(sorted(latencies.items())))
        failures = {name: row["failure"] for name, row in exports.items() if "failure" in row}
        yield ""
        for name, said in failures.items():
            yield from textwrap.wrap(f"- {name}: no file that runs. {said}", WIDTH, subsequent_indent="  ")


def _compared(measured: Mapping[str, Row], latencies: Mapping[int, Row]) -> Iterator[str]:
    rivals = list(dict.fromkeys(row["rival"] for row in measured.values() if "rival" in row))
    best = {rival: name for rival in rivals if (name := fastest(rival, measured, latencies))}
    times = [f"p50, {count} thread{'s' * (count > 1)}" for count in latencies]
    against = [f"against {name}" for name in best.values()]
    head = ["file", "accuracy", "size (MiB)", "memory above floor (MiB)", *times, *against]
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    base = next(iter(measured.values()))
    for name, row in {DENSE: None, **measured}.items():
        side, findings = ("dense", base["findings"]) if row is None else ("candidate", row["findings"])
        accuracy, size = (findings[quantity][side] for quantity in ("accuracy", "size"))
        cells = [name, f"{accuracy:.4f}", f"{size:.1f}", f"{_memory(findings, side):.0f}"]
        cells += [_time(name, latency) for latency in latencies.values()]
        held = row is not None and "rival" not in row
        cells += [_against(name, other, measured, latencies) if held else "" for other in best.values()]
        yield f"| {' | '.join(cells)} |"


def fastest(rival: str, measured: Mapping[str, Row], latencies: Mapping[int, Row]) -> str | None:
    """The rival's fastest file at the least number of threads."""
    values = next(iter(latencies.values()))["milliseconds"] if latencies else {}
    names = [name for name, row in measured.items() if row.get("rival") == rival and name in values]
    return min(names, key=lambda name: values[name]["p50"], default=None)


def _against(name: str, other: str, measured: Mapping[str, Row], latencies: Mapping[int, Row]) -> str:
    """Size, time with its interval and points of accuracy, ours against a rival's."""
    ours, theirs = (measured[one]["findings"] for one in (name, other))
    size = ours["size"]["candidate"] / theirs["size"]["candidate"]
    points = 100 * (ours["accuracy"]["candidate"] - theirs["accuracy"]["candidate"])
    times = [_ratio(latency["ratios"].get(name, {}).get(other)) for latency in latencies.values()]
    return f"{size:.2f}x size, {' and '.join(times)} time, {points:+.1f} points"


def _time(name: str, latency: Row) -> str:
    """Milliseconds, and the ratio to dense fp32."""
    if name not in latency["milliseconds"]:
        return "-"
    milliseconds = f"{latency['milliseconds'][name]['p50']:.2f} ms"
    return milliseconds if name == DENSE else f"{milliseconds}, {latency['ratios'][name][DENSE][0]:.3f}x"


def _ratio(found: Sequence[float] | None) -> str:
    return "{:.2f}x ({:.2f} to {:.2f})".format(*found) if found else "-"


def _memory(findings: Row, side: str) -> float:
    details = findings["peak_memory"]["details"]
    return details[f"{side}_peak"] - details[f"{side}_floor"]


def _described(latencies: Sequence[Row]) -> str:
    """What was timed, and where."""
    if not latencies:
        return "not timed yet"
    last = latencies[-1]
    return (
        f"{last['rows']} rows of the test set timed {last['passes']} times, one at a time, all files in turns, with "
        f"{_busy(latencies)}ONNX Runtime {last['versions'].get('onnxruntime', '')} on {last['machine']['cpu']}"
    )


def _busy(latencies: Sequence[Row]) -> str:
    """What one thread is timed by, where it is not the clock on the wall."""
    return "one thread by processor time, " if latencies[0].get("clock") == "processor" else ""
