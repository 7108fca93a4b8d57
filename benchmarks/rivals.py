"""Our int8 files against those of Olive and optimum: same trained model, same test rows, same session, one run.

    RANKFOLD_DATA=... python benchmarks/rivals.py build/comparison/trec-dense-1.0-1 build/comparison/trec-jactus-0.5-1

Models are folders that `comparison.py` saved, `<suite>-<arm>-<budget>-<seed>`: each dense one is given to the rivals
(see rival_ways.py; they are installed under --work) and exported by us, as are the compressed ones of its suite and
seed. One row per file: accuracy on the whole test set, peak memory, size, digest; or why there is no file. One row per
number of threads: all files take turns in one process, on real rows at the lengths that they have. Rows that are in the
file already are not measured again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rival_ways
from deployment import SEED, calibration_rows, load, subjects
from results import Row, Rows, exit_code
from rival_ways import WAYS, Job, NoGraph
from suites import Suite, named

from compressor import data, models, progress, registry, turns
from compressor.errors import InputError, RankfoldError, first_line
from compressor.files import file_digest
from compressor.machine import machine, versions
from compressor.tasks.base import inputs_of
from exporters.base import Arrays, Runner, Session
from validators.accuracy import Accuracy
from validators.base import Evaluation, Subject
from validators.latency import PERCENTILES, ratio_intervals
from validators.memory import Memory
from validators.size import Size, file_bytes

DENSE, BASE = "dense", "ours dense fp32"
PRECISIONS = ("fp32", "int8", "int8-fused")
CLOCKS = {"wall": time.perf_counter_ns, "processor": time.process_time_ns}
RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Contest:
    """One dense model and the compressed ones that are held against what rivals make of it."""

    suite: Suite
    seed: int
    dense: Path
    others: Sequence[Path]
    work: Path

    @property
    def key(self) -> dict[str, Any]:
        """What its rows have in common."""
        return {"suite": self.suite.name, "seed": self.seed}

    def ours(self, session: Session) -> Iterator[Subject]:
        """Our exports, dense fp32 first; the others without fp32, which is no rival of int8."""
        for folder in (self.dense, *self.others):
            root, label = self.work / folder.name, folder.name.removeprefix(f"{self.suite.name}-")
            arm = label.removesuffix(f"-{self.seed}").replace("dense-1.0", DENSE).replace("-", " ")
            for found in subjects(folder, self.suite, session, PRECISIONS, root):
                precision = found.path.name.removeprefix("onnx-")
                if precision != "fp32" or folder == self.dense:
                    name = f"ours {arm} {precision}"
                    yield Subject(name, "onnx", found.path, found.evaluation, session, found.reference)


def contests(folders: Sequence[Path], work: Path) -> list[Contest]:
    """One for each dense model among the folders.

    Raises:
        InputError: a folder is no model that comparison.py saved, or there is no dense one.
    """
    wrong = [folder for folder in folders if not (folder / "config.json").is_file() or folder.name.count("-") < 3]
    if wrong:
        raise InputError(f"{', '.join(map(str, wrong))}: no folder <suite>-<arm>-<budget>-<seed> with a saved model.")
    found = []
    for dense in (folder for folder in folders if "-dense-1.0-" in folder.name):
        suite, seed = dense.name.split("-dense-1.0-")
        others = [one for one in folders if one.name.startswith(f"{suite}-") and one.name.endswith(f"-{seed}")]
        kept = [one for one in others if one != dense]
        found.append(Contest(named(suite), int(seed), dense, kept, work))
    if not found:
        raise InputError("Name at least one dense model, <suite>-dense-1.0-<seed>: the rivals start from it.")
    return found


def job(contest: Contest, evaluation: Evaluation) -> Job:
    """What the rivals are given, with rows of train to calibrate on."""
    from transformers import AutoConfig

    folder = contest.work / contest.dense.name
    inputs = inputs_of(evaluation.batches[0])
    fixed = {name: (1, *array.shape[1:]) for name, array in inputs.items() if array.dtype.kind == "f"}
    found = AutoConfig.from_pretrained(contest.dense)
    calibration = folder / "calibration.npz"
    if not calibration.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(calibration, **dict(calibration_inputs(contest, list(found.id2label.values()))))
    task = contest.suite.task
    return Job(
        checkpoint(contest),
        task.architecture,
        found.model_type,
        fixed,
        calibration,
        folder,
        contest.work / "environments",
    )


def checkpoint(contest: Contest) -> Path:
    """The dense model under the names of tensors that its pretrained checkpoint has.

    The rivals' transformers knows no newer ones, and leaves at random what it does not find.
    """
    folder, suite = contest.work / contest.dense.name / "checkpoint", contest.suite
    if not (folder / "config.json").is_file():
        trained = load(contest.dense, suite)
        model = models.load_dense(suite.checkpoint, suite.task, [*trained.config.id2label.values()])
        model.load_state_dict(trained.state_dict())
        model.config = trained.config
        model.save_pretrained(folder)
        suite.processor(str(contest.dense)).save_pretrained(folder)
    return folder


def calibration_inputs(contest: Contest, labels: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Inputs of rows of train, unpadded, as olive_calibration.py reads them."""
    suite = contest.suite
    task, processor = suite.task, suite.processor(str(contest.dense))
    encoded = calibration_rows(suite, processor, labels)
    for number in range(len(encoded)):
        posed = inputs_of(data.arrays(task.pose([encoded[number]], processor)))
        yield from ((f"{number}/{name}", array) for name, array in posed.items())


def theirs(contest: Contest, base: Subject, rows: Rows) -> Iterator[Subject]:
    """The rivals' graphs; a row says why where there is none, and is asked no second time."""
    given = job(contest, base.evaluation)
    for way in WAYS:
        key = {"what": "export", **contest.key, "export": way.name}
        if any("failure" in row for row in rows.find(**key)):
            continue
        progress.note(f"{contest.dense.name}: {way.name}")
        try:
            folder = rival_ways.make(way, given)
        except NoGraph as error:
            rows.add(key | {"rival": way.rival, "command": way.command, "failure": str(error)} | setting())
            continue
        yield Subject(way.name, "onnx", folder, base.evaluation, base.session, base.reference)


def setting() -> Row:
    """Machine and versions."""
    return {"machine": machine(), "versions": versions()}


def describe(contest: Contest, base: Subject, one: Subject, length: int) -> Row:
    """What a file is and costs, or why it does not run."""
    way = next((way for way in WAYS if way.name == one.name), None)
    found: Row = {"files": {file.name: file_digest(file) for file in sorted(one.path.glob("model.onnx*"))}}
    found["file_bytes"] = file_bytes(one.path)
    if way:
        installed = rival_ways.versions(way.rival, job(contest, base.evaluation))
        found |= {"rival": way.rival, "command": way.command, "rival_versions": installed}
    try:
        checks = (Accuracy(), Memory(sequence_length=length), Size())
        findings = [finding for check in checks for finding in check.run(base, one)]
    except RankfoldError as error:
        return found | {"failure": first_line(error).replace(str(contest.work), "").replace(str(one.path), one.name)}
    return found | {"findings": {finding.quantity: asdict(finding) for finding in findings}, "length": length}


def drawn(evaluation: Evaluation, count: int) -> list[Arrays]:
    """Rows of the test set, each alone and unpadded."""
    places = [(batch, row) for batch in evaluation.batches for row in range(len(next(iter(inputs_of(batch).values()))))]
    chosen = np.random.default_rng(SEED).permutation(len(places))[:count]
    return [alone(*places[number]) for number in chosen]


def alone(batch: Arrays, row: int) -> Arrays:
    """One row of a batch (1, ...), without the tokens that the mask hides."""
    inputs = {name: array[row : row + 1] for name, array in inputs_of(batch).items()}
    if "attention_mask" not in inputs:
        return inputs
    real = inputs["attention_mask"].astype(bool)
    return {name: array[real][None] for name, array in inputs.items()}  # (1, T)


def median_length(rows: Sequence[Arrays]) -> int:
    """Tokens of the median row; what images have does not matter."""
    return int(np.median([next(iter(row.values())).shape[1] for row in rows]))


def timed(runners: Sequence[Runner], rows: Sequence[Arrays], passes: int, clock: str) -> np.ndarray:
    """Milliseconds (passes x rows, runners): every runner answers a row before the next one comes.

    One more pass over the same rows goes before, so that no length is new to a runner.
    """
    now = [rows[0]]
    calls: list[Callable[[], object]] = [lambda runner=runner: runner(now[0]) for runner in runners]
    found = []
    with closing(turns.rounds(calls, SEED, CLOCKS[clock])) as rounds:
        for _ in progress.track(range(1 + passes), "timing"):
            for now[0] in rows:
                found.append(next(rounds))
    return np.array(found[len(rows) :]) / 1e6


def latency(exports: Sequence[Subject], threads: int, rows: Sequence[Arrays], passes: int, clock: str) -> Row:
    """Percentiles of every file; ratio and interval of the medians of ours to the others, and of all to dense fp32."""
    session = Session("cpu", threads)
    runners = [registry.load("exporters", one.runtime)().load(one.path, session) for one in exports]
    times = dict(zip((one.name for one in exports), timed(runners, rows, passes, clock).T, strict=True))
    values = {name: np.percentile(column, PERCENTILES).tolist() for name, column in times.items()}
    ratios = {name: {BASE: ratio(column, times[BASE])} for name, column in times.items() if name != BASE}
    for name in (name for name in ratios if name.startswith("ours ")):
        ratios[name] |= {other: ratio(times[name], times[other]) for other in times if not other.startswith("ours ")}
    named_values = {
        name: dict(zip((f"p{p}" for p in PERCENTILES), found, strict=True)) for name, found in values.items()
    }
    return {"milliseconds": named_values, "ratios": ratios, "rows": len(rows), "passes": passes, "clock": clock}


def ratio(ours: np.ndarray, other: np.ndarray) -> list[float]:
    """Ratio of the medians, and its interval."""
    low, high = ratio_intervals(np.stack([other, ours], axis=1), CONFIDENCE, RESAMPLES, SEED)[0]
    return [float(np.median(ours) / np.median(other)), float(low), float(high)]


def run(contest: Contest, rows: Rows, threads: Sequence[int], count: int, passes: int, clock: str) -> None:
    """Every file's row, then the turns with each number of threads.

    Processor time is that of all threads together, so with several of them the clock is the wall's all the same.
    """
    base, *found = contest.ours(Session("cpu", 1))
    found += theirs(contest, base, rows)
    drawn_rows = drawn(base.evaluation, count)
    for one in found:
        key = {"what": "export", **contest.key, "export": one.name}
        if not rows.find(**key):
            rows.add(key | describe(contest, base, one, median_length(drawn_rows)) | setting())
    failed = {row["export"] for row in rows.find(what="export", **contest.key) if "failure" in row}
    able = [base, *(one for one in found if one.name not in failed)]
    for number in threads:
        key = {"what": "latency", **contest.key, "threads": number, "exports": [one.name for one in able]}
        if not rows.find(**key):
            rows.add(key | latency(able, number, drawn_rows, passes, clock if number == 1 else "wall") | setting())


def main(words: Sequence[str] | None = None) -> int:
    """Every dense model; an error on purpose is one sentence and its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="folders of dense and compressed models")
    parser.add_argument("--work", type=Path, default=Path("build/rivals"), help="environments and exports")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rivals.jsonl"))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rows", type=int, default=50, help="of the test set that are timed")
    parser.add_argument("--passes", type=int, default=10, help="over these rows")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="of one thread; processor: on a busy machine"
    )
    arguments = parser.parse_args(words)
    progress.set_level("normal")
    models.quiet_libraries()

    def work() -> None:
        for contest in contests(arguments.models, arguments.work.resolve()):
            run(contest, Rows(arguments.out), arguments.threads, arguments.rows, arguments.passes, arguments.clock)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
