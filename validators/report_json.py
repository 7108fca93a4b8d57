"""The JSON form of reports, which has no number that is not finite: None in its place, and back again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def jsonable(value: Any) -> Any:
    """Plain JSON data: NumPy scalars unpacked, infinities and NaN as None."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def restored(data: Mapping[str, Any]) -> dict[str, Any]:
    """What `Report.to_dict` gives as the dataclasses want it: findings in a list, NaN for null.

    Odd shapes are left as they are: whoever validates the types complains of them.
    """
    exports = data.get("exports")
    return dict(data) | ({"exports": [_export(e) for e in exports]} if isinstance(exports, list) else {})


def _export(export: Any) -> Any:
    findings = export.get("findings") if isinstance(export, Mapping) else None
    if not isinstance(findings, Mapping):
        return export
    return dict(export) | {"findings": [_finding(finding) for finding in findings.values()]}


def _finding(finding: Any) -> Any:
    if not isinstance(finding, Mapping):
        return finding
    numbers = {key: _nan(finding[key]) for key in ("dense", "candidate", "details") if key in finding}
    ends = {key: _ends(finding[key]) for key in ("interval", "alone") if key in finding}
    judged = finding.get("verdict", "ungated") != "ungated"
    limit = {"limit": math.nan} if judged and finding.get("limit") is None else {}  # every verdict has one
    return dict(finding) | numbers | ends | limit


def _ends(given: Any) -> Any:
    """An interval with infinity in place of None."""
    if not isinstance(given, list) or len(given) != 2:
        return given
    return [open_ if end is None else end for end, open_ in zip(given, (-math.inf, math.inf), strict=True)]


def _nan(value: Any) -> Any:
    """The same value with NaN in place of None."""
    if isinstance(value, Mapping):
        return {key: _nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan(item) for item in value]
    return math.nan if value is None else value
