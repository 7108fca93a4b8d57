"""What a language model's exports cost where text is generated: dense and compressed, in every precision for CPUs.

    RANKFOLD_MODELS=... RANKFOLD_DATA=... python benchmarks/decoding.py build/comparison/arc_easy-dense-1.0-0 \\
        build/comparison/arc_easy-jactus-0.5-0 --threads 2

The first folder is the dense model, all are as `comparison.py` saves them. One JSON row per export: milliseconds to
read a prompt, tokens per second after it, each beside dense fp32 in turns within one process; peak memory in a process
of its own; bytes of the files; perplexity on the text of a suite, since a fast export may be a broken one. Rows that
are in the file are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from decode_probe import Times
from deployment import batches, evaluation, load
from results import Rows, exit_code
from suites import Suite, named

from compressor import data, models, progress
from compressor.errors import RuntimeFailure
from compressor.files import file_digest
from compressor.machine import machine, versions
from exporters.base import Session
from exporters.onnx import OnnxExporter
from validators.perplexity import perplexity

Precision = Literal["fp32", "int8", "int8-weights", "int4"]
PROMPT, NEW_TOKENS = 128, 65  # tokens that are read; tokens that are said, the first of them by reading


@dataclass(frozen=True)
class Kind:
    """One way to export a model; `embeddings`: tables of words are quantized too."""

    precision: Precision
    embeddings: bool = True

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"onnx-{self.precision}{'' if self.embeddings else '-float-tables'}"

    def exporter(self) -> OnnxExporter:
        """What writes it."""
        return OnnxExporter(precision=self.precision, embeddings=self.embeddings)


KINDS = (Kind("fp32"), Kind("int8"), Kind("int8", False), Kind("int8-weights"), Kind("int4"), Kind("int4", False))


def exported(model: Path, kind: Kind, suite: Suite, work: Path) -> Path:
    """The export of a saved model, made where it is not there yet."""
    folder = work / model.name / kind.name
    if not folder.exists():
        progress.note(f"exporting {model.name} as {kind.name}")
        processor, exporter = suite.processor(str(model)), kind.exporter()
        samples = calibration_of(suite, processor) if exporter.calibrated else []
        exporter.export(load(model, suite), suite.task.example(processor), folder, samples)
    return folder


def calibration_of(suite: Suite, processor: Any) -> list[dict[str, np.ndarray]]:
    """The batches of train that an exporter's ranges are measured on."""
    (source,) = suite.sources(holdout=0)
    encoded = suite.task.encode(data.read(source, suite.task), processor, None, suite.max_length, "train")
    return batches(encoded.select(range(min(suite.calibration.samples, len(encoded)))), suite, processor)


def quality(folder: Path, suite: Suite, text: Sequence[dict[str, np.ndarray]], threads: int) -> float:
    """Perplexity of an export on batches of text."""
    runner = OnnxExporter().load(folder, Session("cpu", threads))
    found = [suite.task.outcomes(runner(batch)["logits"], batch).values[:, 0] for batch in text]  # each (N,) nats
    return perplexity(-np.concatenate(found).astype(np.float64))


def ask(folders: Sequence[Path], prompt: Sequence[int], runs: int, threads: int) -> dict[str, Any]:
    """What a fresh process measures.

    Raises:
        RuntimeFailure: it fails, or had torch in its memory.
    """
    request = {"folders": [str(folder.resolve()) for folder in folders], "prompt": list(prompt), "runs": runs}
    request |= {"new_tokens": NEW_TOKENS, "threads": threads, "seed": 0}
    command = [sys.executable, str(Path(__file__).with_name("decode_probe.py")), json.dumps(request)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeFailure(f"Measuring {', '.join(map(str, folders))} failed: {done.stderr.strip()[-500:]}")
    found = dict(json.loads(done.stdout))
    if found.pop("torch"):
        raise RuntimeFailure("torch was imported into the measuring process, so its memory is not the export's.")
    return found


def figures(times: Sequence[Times]) -> dict[str, float]:
    """Medians over the runs: ms of the prompt, tokens per second after it."""
    first, rest = np.asarray(times, dtype=float).T  # each (runs,) ns
    return {
        "prefill_ms": float(np.median(first)) / 1e6,
        "tokens_per_second": (NEW_TOKENS - 1) / (float(np.median(rest)) / 1e9),
    }


def row(
    dense: Path, folder: Path, prompt: Sequence[int], arguments: argparse.Namespace, found: float
) -> dict[str, Any]:
    """One export's figures and those of dense fp32 beside it, with what they were measured on."""
    facts = json.loads((folder / "export.json").read_text())
    beside, ours = ask([dense, folder], prompt, arguments.runs, arguments.threads)["nanoseconds"]
    memory = ask([folder], prompt, 1, arguments.threads)
    return {
        "precision": facts["precision"],
        "embeddings": facts.get("embeddings"),
        "dense": figures(beside),
        "candidate": figures(ours),
        "speedup": figures(ours)["tokens_per_second"] / figures(beside)["tokens_per_second"],
        "peak_mib": memory["peak"],
        "floor_mib": memory["floor"],
        "file_bytes": sum(facts["file_bytes"].values()),
        "perplexity": found,
        "digests": {name: file_digest(folder / name) for name in facts["model_files"]},
        "weights_digest": facts["weights_digest"],
        "prompt": len(prompt),
        "new_tokens": NEW_TOKENS - 1,
        "runs": arguments.runs,
        "threads": arguments.threads,
        "machine": machine(),
        "versions": versions(),
    }


def measure(arguments: argparse.Namespace) -> None:
    """Every kind of every model; dense fp32 itself too, beside itself."""
    rows, suite = Rows(arguments.out), named(arguments.suite)
    text = evaluation(suite, suite.processor(str(arguments.models[0])), None)
    prompt = text[0]["input_ids"][0, :PROMPT].tolist()
    dense = exported(arguments.models[0], KINDS[0], suite, arguments.work)
    for model in arguments.models:
        for kind in KINDS:
            key = {"export": f"{model.name}/{kind.name}", "threads": arguments.threads}
            if not rows.find(**key):
                folder = exported(model, kind, suite, arguments.work)
                found = quality(folder, suite, text, arguments.threads)
                rows.add(key | row(dense, folder, prompt, arguments, found))


def main() -> int:
    """Measure what is asked for; an error on purpose is one sentence and its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decoding.jsonl"))
    parser.add_argument("--work", type=Path, default=Path("build/decoding"), help="holds the exports")
    parser.add_argument("--suite", default="wikitext2", help="whose text is read")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    progress.set_level("normal")
    models.quiet_libraries()
    return exit_code(lambda: measure(arguments))


if __name__ == "__main__":
    sys.exit(main())
