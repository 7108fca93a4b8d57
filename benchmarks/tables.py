"""Markdown tables of the results: python benchmarks/tables.py benchmarks/results."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ARMS = {
    "dense": "dense, full fine-tuning",
    "dense-lora": "dense, LoRA 16",
    "jactus": "JACTUS (R4, thin updates 16, gain)",
    "jactus-pretrained": "the same from the checkpoint, by labels alone",
    "svdllm-lora-pretrained": "SVD-LLM and LoRA from the checkpoint, by labels alone",
    "svdllm-lora": "SVD-LLM whitening, then LoRA 16 on both factors",
    "svd-core": "SVD with a trained core",
    "gfwsvd": "GFWSVD",
    "gfwsvd-gain": "GFWSVD's truncation, ranks by gain",
    "svdllm": "SVD-LLM",
    "svd": "SVD",
}
TEXT = ("banking77", "trec")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def accuracy(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Test accuracy by arm and budget: mean over seeds, and each seed's."""
    cells: dict[tuple[str, float], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    trained: dict[tuple[str, float], int] = {}
    chosen = (row for row in rows if row["phase"] == "final" and row["suite"] in TEXT)
    for row in sorted(chosen, key=lambda row: row["seed"]):
        cells[row["arm"], row["budget"]][row["suite"]].append(row["accuracy"])
        trained[row["arm"], row["budget"]] = row["trainable"]
    suites = TEXT
    yield "| arm | kept | trained numbers | " + " | ".join(suites) + " |"
    yield "|---|---|---|" + "---|" * len(suites)
    order = sorted(cells, key=lambda key: (-key[1], list(ARMS).index(key[0])))
    for arm, budget in order:
        found = " | ".join(_cell(cells[arm, budget][suite]) for suite in suites)
        yield f"| {ARMS[arm]} | {budget:.0%} | {trained[arm, budget]:,} | {found} |"


def single(rows: list[dict[str, Any]], suite: str) -> Iterator[str]:
    """One suite with one seed: quality, and what training takes."""
    yield "| arm | kept | quality | before training | trained numbers | seconds | training memory |"
    yield "|---|---|---|---|---|---|---|"
    found = [row for row in rows if row["phase"] == "final" and row["suite"] == suite]
    for row in sorted(found, key=lambda row: (-row["budget"], list(ARMS).index(row["arm"]))):
        cells = [ARMS[row["arm"]], f"{row['kept']:.0%}", _quality(row), _number(row.get("before_training"))]
        if row["epochs"]:
            peak = row["training_bytes"]["peak"] / 1e6
            cells += [f"{row['trainable']:,}", f"{row['seconds']:.0f}", f"{peak:.0f} MB"]
        else:
            cells += ["-", "-", "-"]
        yield f"| {' | '.join(cells)} |"


def _quality(row: dict[str, Any]) -> str:
    return f"{row['accuracy']:.3f}" if "accuracy" in row else f"perplexity {row['perplexity']:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    each = ", ".join(f"{value:.4f}" for value in values)
    return f"**{statistics.mean(values):.4f}** ({each})"


def deployment(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Each export against dense fp32 of the same run."""
    yield "| export | accuracy (dense fp32) | parity with torch | file | matrices | peak memory | latency p50 |"
    yield "|---|---|---|---|---|---|---|"
    for row in sorted(rows, key=lambda row: row["export"]):
        found = row["findings"]
        score = found["accuracy"]
        cells = [f"{score['candidate']:.4f} ({score['dense']:.4f})", f"{found['parity']['candidate']:.4f}"]
        details = found["size"]["details"]
        matrices = details["candidate_matmul_weight_bytes"] / details["dense_matmul_weight_bytes"]
        cells += [_ratio(found["size"]), f"{matrices:.3f}x"]
        cells += [_ratio(found[name]) for name in ("peak_memory", "latency_p50")]
        yield f"| {row['export']} | {' | '.join(cells)} |"


def _ratio(finding: dict[str, Any]) -> str:
    ratio = f"{finding['candidate'] / finding['dense']:.3f}x"
    if finding["interval"] is None:
        return ratio
    low, high = (bound / finding["dense"] for bound in finding["interval"])
    return f"{ratio} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Print what there is."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results")
    compared, deployed = (read(folder / f"{name}.jsonl") for name in ("comparison", "deployment"))
    tables = {"texts": accuracy(compared)}
    tables |= {suite: single(compared, suite) for suite in sorted({row["suite"] for row in compared} - {*TEXT})}
    tables["deployment"] = deployment(deployed)
    for name, table in tables.items():
        print("\n".join([f"### {name}", "", *table, ""]))


if __name__ == "__main__":
    main()
