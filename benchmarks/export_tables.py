"""Markdown tables of what exports cost: files, memory, time; `tables.py` has those of the trainings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from results import Row
from tables import head, label_of, line


def deployment(rows: Sequence[Row]) -> Iterator[str]:
    """Each export against dense fp32 of the same run."""
    yield from head(
        ("export", "accuracy (dense fp32)", "parity with torch", "file", "matrices", "peak memory", "latency p50")
    )
    for row in sorted(rows, key=lambda row: row["export"]):
        found = row["findings"]
        score = found["accuracy"]
        cells = [row["export"], f"{score['candidate']:.4f} ({score['dense']:.4f})"]
        cells += [f"{found['parity']['candidate']:.4f}", _ratio(found["size"])]
        details = found["size"]["details"]
        cells += [f"{details['candidate_matmul_weight_bytes'] / details['dense_matmul_weight_bytes']:.3f}x"]
        cells += [_ratio(found[name]) for name in ("peak_memory", "latency_p50")]
        yield line(cells)


def _ratio(finding: Row) -> str:
    ratio = f"{finding['candidate'] / finding['dense']:.3f}x"
    if finding["interval"] is None:
        return ratio
    low, high = (bound / finding["dense"] for bound in finding["interval"])
    return f"{ratio} ({low:.2f} to {high:.2f})"


def gpu_exports(rows: Sequence[Row]) -> Iterator[str]:
    """Each export on its GPU, dense fp32 first, which the runtime's others are held against; MiB and ms."""
    yield from head(("suite", "runtime", "export", "device", "accuracy", "peak memory (MiB)", "latency p50 (ms)"))
    told: set[tuple[str, str, str]] = set()
    for row in (row for row in rows if row["what"] == "export"):
        findings, place = row["findings"], row["gpu"] or row["device"]
        suite, runtime = row["suite"], row["runtime"]
        if (suite, runtime, place) not in told:
            told.add((suite, runtime, place))
            yield line([suite, runtime, "dense fp32", place, *_measured(findings, "dense")])
        name = row["export"].removeprefix(f"{suite}-")
        yield line([suite, runtime, name, place, *_measured(findings, "candidate")])


def _measured(findings: Row, side: str) -> list[str]:
    """Accuracy, peak memory and latency of a side."""
    forms = {"accuracy": "{:.4f}", "peak_memory": "{:,.0f}", "latency_p50": "{:.2f}"}
    return [form.format(findings[name][side]) if name in findings else "-" for name, form in forms.items()]


def gpu_training(rows: Sequence[Row]) -> Iterator[str]:
    """What three steps of training allocated on the GPU, and what is counted."""
    yield from head(("suite", "arm", "kept", "device", "batch", "trained", "allocated", "counted", "a step"))
    for row in (row for row in rows if row["what"] == "training"):
        counted = row["counted_bytes"]["peak"] + row["counted_bytes"].get("teacher", 0)
        allocated = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f} MB"
        cells = [row["suite"], label_of(row["arm"]), f"{row['budget']:.0%}", row["gpu"] or row["device"]]
        cells += [" x ".join(map(str, row["batch"])), f"{row['trainable']:,}", allocated]
        yield line([*cells, f"{counted / 1e6:,.0f} MB", f"{row['step_ms']:.1f} ms"])


def rounding(rows: Sequence[Row]) -> Iterator[str]:
    """Each precision of a model against its own fp32, without data and with it."""
    yield "How many labels or next tokens are those of fp32, and how far the logits (a text's log-likelihoods) are from"
    yield "its own, in standard deviations of them; weights rounded to the nearest step, and by the task's data, in"
    yield "int8 once channels are made even."
    yield ""
    yield from head(
        ("model", "precision", "same", "by data", "difference", "by data", "accuracy or perplexity", "by data")
    )
    pairs: dict[tuple[str, str], dict[bool, Row]] = {}
    for row in rows:
        pairs.setdefault((row["model"], row["precision"]), {})[row["by_data"]] = row
    for (model, precision), pair in pairs.items():
        cells = [[form(pair[way]) if way in pair else "-" for way in (False, True)] for form in (_same, _error, _good)]
        yield line([model, precision, *(cell for two in cells for cell in two)])


def _same(row: Row) -> str:
    return f"{row['agreement']:.1%}"


def _error(row: Row) -> str:
    return f"{row['rmse']:.3f}"


def _good(row: Row) -> str:
    return f"{row['perplexity']:.1f}" if "perplexity" in row else f"{row['accuracy']:.3f}"


def decoding(rows: Sequence[Row]) -> Iterator[str]:
    """Each export of a language model beside dense fp32, which is the first: text said and read, size, quality."""
    first = rows[0]
    yield f"Medians of {first['runs']} runs in turns with dense fp32, on {first['machine']['cpu']}; a prompt of"
    yield f"{first['prompt']} tokens, {first['new_tokens']} said after it. Perplexity on WikiText-2, `x` against dense."
    yield ""
    yield from head(
        ("export", "threads", "tokens/s", "x", "prompt (ms)", "x", "file", "peak memory (MiB)", "perplexity")
    )
    whole = {row["threads"]: row["file_bytes"] for row in reversed(rows)}  # of the first export of each
    for row in rows:
        ours, dense = row["candidate"], row["dense"]
        cells = [row["export"], str(row["threads"]), f"{ours['tokens_per_second']:.1f}", f"{row['speedup']:.2f}"]
        cells += [f"{ours['prefill_ms']:.0f}", f"{dense['prefill_ms'] / ours['prefill_ms']:.2f}"]
        cells += [f"{row['file_bytes'] / whole[row['threads']]:.3f}x", f"{row['peak_mib']:,.0f}"]
        yield line([*cells, f"{row['perplexity']:.1f}"])
