"""How far two reports can be compared: the same data, the same circumstances, the same quantities, the same files.

What does not match is told in sentences. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressor.artifact import place
from compressor.errors import DataError
from validators import wording
from validators.facts import look
from validators.report import Report

CIRCUMSTANCES = {
    "CPU": ("machine", "cpu"),
    "GPU": ("machine", "gpu"),
    "threads": ("machine", "threads"),
    "device": ("recipe", "validate", "device"),
    "batch size": ("recipe", "validate", "batch_size"),
    "sequence length": ("recipe", "validate", "sequence_length"),
    "onnxruntime": ("versions", "onnxruntime"),
    "onnxruntime-gpu": ("versions", "onnxruntime-gpu"),
    "openvino": ("versions", "openvino"),
    "executorch": ("versions", "executorch"),
}
EVALUATION = ("data", "evaluation", "digest")
RUNNING_TEXT = "text-generation"  # the task whose qualities depend on how a text is cut


def data(before: Report, after: Report, allow: bool) -> Iterator[str]:
    """What is to be said about the evaluation data.

    Raises:
        DataError: it differs, and `allow` does not let it.
    """
    ours, theirs = look(after.context, *EVALUATION), look(before.context, *EVALUATION)
    if ours is None or theirs is None:
        yield "A report does not say which evaluation data it was measured on; qualities compare only on the same data."
    texts = list(_differences(before, after))
    if texts and not allow:
        raise DataError(
            f"{'; '.join(texts)}: qualities measured on it cannot be compared. Measure the old model on the new data, "
            "or compare all the same with --allow-different-data."
        )
    yield from (f"{text}: accuracy and other qualities may differ for that reason alone." for text in texts)


def _differences(before: Report, after: Report) -> Iterator[str]:
    """In what the evaluation data differs: its rows, or the blocks of tokens that running text is cut into."""
    ours, theirs = look(after.context, *EVALUATION), look(before.context, *EVALUATION)
    if None not in (ours, theirs) and ours != theirs:
        yield f"The evaluation data differs (sha256 {str(theirs)[:12]} before, {str(ours)[:12]} after)"
    if any(look(report.context, "model", "task") != RUNNING_TEXT for report in (before, after)):
        return
    length, formerly = (look(report.context, "recipe", "model", "max_length") for report in (after, before))
    if length != formerly:
        yield f"The text was cut into blocks of {_known(formerly)} tokens before and {_known(length)} after"
    if _tokenizers(before) != _tokenizers(after):
        yield "The text was cut into tokens by another tokenizer"


def _tokenizers(report: Report) -> set[Any]:
    """Digests of the tokenizers that lie beside the exports."""
    files = _below(report, "exports/").items()
    return {digest for path, digest in files if path.endswith("/tokenizer.json")}


def circumstances(before: Report, after: Report) -> Iterator[str]:
    """What time and memory depend on, where that differs."""
    pairs = {name: (look(before.context, *keys), look(after.context, *keys)) for name, keys in CIRCUMSTANCES.items()}
    said = [f"{name} {_known(old)} before, {_known(new)} after" for name, (old, new) in pairs.items() if old != new]
    if said:
        yield (
            f"Measured under different circumstances: {'; '.join(said)}. Latency and memory are compared all the same "
            "and may differ for that reason alone; `python -m compressor validate` measures a run again here."
        )


def leftovers(before: Report, after: Report) -> Iterator[str]:
    """What a comparison that passes must not hide: what only one side has, and a report that fails its own gates."""
    pairs = [(old, new) for new in after.exports for old in before.exports if old.name == new.name]
    for old, new in pairs:
        for one, other, side in ((old, new, "before"), (new, old, "after")):
            only = [finding.quantity for finding in one.findings if other.finding(finding.quantity) is None]
            if only:
                yield f"{new.name}: {wording.listed(only)} {'was' if len(only) == 1 else 'were'} measured only {side}."
    there = {export.name for export in after.exports}
    gone = [export.name for export in before.exports if export.role == "reference" and export.name not in there]
    if gone:
        yield f"Only the report before has the reference {wording.listed(gone)}."
    won = winners(before, after)
    roles = ("candidate", "reference")
    shown = [] if won else [new.name for old, new in pairs if (old.role, new.role) == roles]
    if shown:
        yield (
            f"{wording.listed(shown)} {'was' if len(shown) == 1 else 'were'} a candidate before and only stand beside "
            "the winner now: not judged here, nor is the winner against what shipped unless it has the same name."
        )
    if won and won[0] != won[1]:
        yield f"{won[0]} won before, {won[1]} wins now: what would ship is held against what shipped."
    dropped = [name for name in _gated(before) if name not in _gated(after)]
    if dropped:
        yield f"The recipe before gates {wording.listed(dropped)}, the one after does not."
    if after.verdict == "fail":
        yield "The report after fails gates of its own recipe."


def winners(before: Report, after: Report) -> tuple[str, str] | None:
    """The names of the exports that won where both recipes say `export: auto`; None where one does not."""
    found = []
    for report in (before, after):
        won = [export.name for export in report.exports if export.role == "candidate"]
        if report.auto and len(won) == 1:
            found += won
    return (found[0], found[1]) if len(found) == 2 else None


def same_files(before: Report, after: Report, name: str) -> bool:
    """Whether an export's files are byte for byte the same in both, and were measured on the same data."""
    ours, theirs = _files(after, name), _files(before, name)
    measured_on = look(after.context, *EVALUATION)
    return (
        bool(ours) and ours == theirs and measured_on is not None and measured_on == look(before.context, *EVALUATION)
    )


def _files(report: Report, name: str) -> dict[str, Any]:
    """Digests of an export's files, without the record of the versions that wrote them."""
    prefix = f"{place(name)}/"
    return {path: digest for path, digest in _below(report, prefix).items() if path != f"{prefix}export.json"}


def _below(report: Report, prefix: str) -> dict[str, Any]:
    """Digests of the files whose paths begin so."""
    found = look(report.context, "files")
    files = found.items() if isinstance(found, Mapping) else ()
    return {path: digest for path, digest in files if path.startswith(prefix)}


def _gated(report: Report) -> list[str]:
    found = look(report.context, "recipe", "gates")
    return [str(name) for name in found] if isinstance(found, Mapping) else []


def _known(value: Any) -> str:
    return "unknown" if value is None else str(value)
