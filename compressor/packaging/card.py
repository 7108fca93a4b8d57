"""The model card: README.md with the hub's front matter, drawn from the artifact and its report.

Names of models, data and labels are untrusted text and are escaped.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from compressor import __version__
from compressor.packaging.contents import CARD, MODEL, read_facts
from compressor.packaging.summary import Summary
from compressor.packaging.tasks import PACKAGED
from compressor.tasks.base import QUALITIES
from validators import facts, wording
from validators.render import escaped


def write(summary: Summary, folder: Path) -> None:
    """README.md."""
    import jinja2

    page = jinja2.Environment(  # noqa: S701 (markdown, not HTML: the filter `plain` escapes)
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page.filters |= {"plain": escaped, "number": "{:,}".format}
    packaged = PACKAGED[summary.task]
    text = page.get_template(f"{CARD}.j2").render(
        front=front_matter(summary),
        name=summary.name,
        base=summary.base,
        task=summary.task,
        made=summary.made,
        dense=summary.export.dense,
        precision=summary.export.precision,
        version=__version__,
        typed=packaged.typed + (packaged.second if read_facts(folder).get("pair") else ""),
        answer=packaged.answer,
        digest=summary.manifest["base_digest"],
        trusted=summary.manifest["trust_remote_code"],
        code=any((folder / MODEL).rglob("*.py")),
        parameters=summary.manifest["parameters"],
        data=summary.data,
        headline=_headline(summary),
        headers=wording.HEADERS,
        rows=[wording.row(finding) for finding in summary.export.findings],
        measured="; ".join(f"{name}: {value}" for name, value in facts.brief(summary.report.context)),
        limits=summary.limits,
        signed=summary.signed,
    )
    (folder / CARD).write_text(text, encoding="utf-8", newline="\n")


def front_matter(summary: Summary) -> str:
    """What the hub reads of a model card."""
    results = [_result(summary, quantity) for quantity in QUALITIES]
    data: dict[str, Any] = {
        "library_name": "onnx",
        "pipeline_tag": summary.task,
        "license": summary.base.license,
        **({"base_model": summary.base.name} if summary.base.hub else {}),
        "tags": ["onnx", *([] if summary.export.dense else ["low-rank", summary.method]), summary.export.precision],
        "metrics": [quantity for quantity, result in zip(QUALITIES, results, strict=True) if result],
        "model-index": [{"name": summary.name, "results": [result for result in results if result]}],
    }
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _result(summary: Summary, quantity: str) -> dict[str, Any] | None:
    """One measured quality, as a model index has it."""
    found = summary.export.finding(quantity)
    if found is None or not math.isfinite(found.candidate):
        return None
    name = next((split.name for split in summary.data if split.split == "evaluation"), "evaluation")
    return {
        "task": {"type": summary.task},
        "dataset": {"name": name, "type": name},
        "metrics": [{"type": quantity, "value": found.candidate}],
    }


def _headline(summary: Summary) -> str:
    """What the gates said, in a sentence."""
    gated, failed = summary.export.gated, summary.export.failures
    if not gated:
        return "No gates were set."
    if not failed:
        return "The gate that was set holds." if len(gated) == 1 else f"All {len(gated)} gates that were set hold."
    return f"**{len(failed)} of {len(gated)} gates {'does' if len(failed) == 1 else 'do'} not hold.**"
