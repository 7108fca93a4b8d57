"""The bill of materials: a CycloneDX 1.6 ML-BOM, the same bytes for the same package.

cyclonedx-python-lib has no model cards yet, so the JSON is written here; the tests hold it against the schema.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor import __version__
from compressor.files import write_json
from compressor.packaging.base_model import UNKNOWN
from compressor.packaging.contents import BOM, CARD, MODEL, File, files_in
from compressor.packaging.proof import GRAPHS
from compressor.packaging.summary import Split, Summary
from compressor.packaging.tasks import PACKAGED

if TYPE_CHECKING:
    from validators.base import Finding

SPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 4122's for URLs
SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
SPDX = {  # the hub's identifiers are SPDX's in lower case; where SPDX has none, the name stands
    name.lower(): name
    for name in (
        *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "MPL-2.0", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0"),
        *("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0", "ISC", "Unlicense"),
    )
}


def write(summary: Summary, folder: Path) -> None:
    """bom.cdx.json of the files that are there now; its serial number is derived from its content."""
    listed = files_in(folder)
    data = [_data(split) for split in summary.data]
    libraries = [_library(name, summary.versions) for name in PACKAGED[summary.task].needs]
    files = [_file(name, file) for name, file in listed.items() if name != CARD]
    bom: dict[str, Any] = {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "rankfold", "version": __version__}]},
            "component": _model(summary, listed),
        },
        "components": [*data, *libraries, *files],
        "dependencies": [{"ref": "model", "dependsOn": [one["bom-ref"] for one in (*libraries, *files)]}],
    }
    serial = uuid.uuid5(SPACE, json.dumps(bom, sort_keys=True))
    write_json(folder / BOM, {**bom, "serialNumber": f"urn:uuid:{serial}"})


def _model(summary: Summary, listed: Mapping[str, File]) -> dict[str, Any]:
    """The version is of the graph and of weights that lie beside it; a hash is one file's."""
    graph = f"{MODEL}/{GRAPHS[summary.export.runtime]}"
    digests = [file.sha256 for name, file in sorted(listed.items()) if name.startswith(graph)]
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": summary.name,
        "version": whole[:12],
        "description": f"{summary.base.name} for {summary.task}, {summary.made}, for ONNX Runtime",
        **({"hashes": [_sha256(whole)]} if len(digests) == 1 else {"properties": [_property(whole)]}),
        **_licenses(summary),
        "pedigree": {"ancestors": [_base(summary)]},
        "modelCard": _card(summary),
    }


def _property(digest: str) -> dict[str, str]:
    """A digest over the digests of several files."""
    return {"name": "rankfold:weights-digest", "value": digest}


def _base(summary: Summary) -> dict[str, Any]:
    digest = summary.manifest["base_digest"]
    known = {"properties": [_property(digest)]} if digest else {}
    return {"type": "machine-learning-model", "name": summary.base.name, **known, **_licenses(summary)}


def _licenses(summary: Summary) -> dict[str, Any]:
    stated = summary.base.license
    if stated == UNKNOWN:
        return {}
    return {"licenses": [{"license": _license(one)} for one in stated.split(", ")]}


def _license(stated: str) -> dict[str, str]:
    known = SPDX.get(stated.lower())
    return {"id": known} if known else {"name": stated}


def _card(summary: Summary) -> dict[str, Any]:
    classes = summary.report.context.get("model") or {}
    architecture = classes.get("class") if isinstance(classes, Mapping) else None
    packaged = PACKAGED[summary.task]
    return {
        "modelParameters": {
            "approach": {"type": packaged.approach},
            "task": summary.task,
            **({"modelArchitecture": str(architecture)} if architecture else {}),
            "datasets": [{"ref": f"data-{split.split}"} for split in summary.data],
            "inputs": [{"format": packaged.reads}],
            "outputs": [{"format": packaged.says}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [_metric(one) for one in summary.export.findings if math.isfinite(one.candidate)]
        },
        "considerations": {"technicalLimitations": summary.limits},
    }


def _metric(finding: Finding) -> dict[str, Any]:
    """One quantity with its unit; an interval without a confidence is no confidence interval."""
    unit = f" ({finding.unit})" if finding.unit else ""
    metric: dict[str, Any] = {"type": f"{finding.quantity}{unit}", "value": repr(float(finding.candidate))}
    if finding.interval and finding.confidence:
        low, high = (repr(float(end)) for end in finding.interval)
        metric["confidenceInterval"] = {"lowerBound": low, "upperBound": high}
    return metric


def _data(split: Split) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": f"data-{split.split}",
        "name": split.name,
        "description": f"{split.split}: {split.rows} rows; the digest is over the rows, whatever the file format",
        "hashes": [_sha256(split.digest)],
        "data": [{"type": "dataset", "name": split.name}],
    }


def _library(name: str, versions: Mapping[str, str]) -> dict[str, Any]:
    version = versions.get(name)
    known = {"version": version, "purl": f"pkg:pypi/{name}@{version}"} if version else {"purl": f"pkg:pypi/{name}"}
    return {"type": "library", "bom-ref": f"pypi-{name}", "name": name, **known}


def _file(name: str, file: File) -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file-{name}", "name": name, "hashes": [_sha256(file.sha256)]}


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}
