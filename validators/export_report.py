"""What was measured of one export beside the dense baseline, and whether its gates hold. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from compressor.artifact import DENSE
from validators.base import Finding
from validators.report_json import jsonable

Role = Literal["candidate", "reference"]


@dataclass(frozen=True)
class ExportReport:
    """The findings of one export, each beside the dense baseline.

    A `candidate` is what the gates judge; a `reference` (plain dense int8, say) is shown beside it and fails nothing.
    """

    name: str
    runtime: str
    precision: str
    role: Role
    findings: tuple[Finding, ...]

    def finding(self, quantity: str) -> Finding | None:
        """The finding of one quantity, or None where it was not measured."""
        return next((finding for finding in self.findings if finding.quantity == quantity), None)

    @property
    def dense(self) -> bool:
        """Whether it is an export of the dense model."""
        return self.name.startswith(DENSE)

    @property
    def gated(self) -> tuple[Finding, ...]:
        """The findings that a gate judged."""
        return tuple(f for f in self.findings if f.verdict != "ungated") if self.role == "candidate" else ()

    @property
    def unmet(self) -> tuple[Finding, ...]:
        """The findings whose gates do not hold, whether they fail the build or not."""
        return tuple(finding for finding in self.findings if not finding.ok)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that fail the build."""
        return tuple(finding for finding in self.gated if not finding.ok)

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """`fail` when a gate failed, or was unsure where the recipe does not accept that."""
        return "fail" if self.failures else "pass"

    def to_dict(self) -> dict[str, Any]:
        """JSON data; numbers that are not finite become None."""
        findings = {f.quantity: jsonable(asdict(f) | {"ratio": f.ratio}) for f in self.findings}
        facts = {"name": self.name, "runtime": self.runtime, "precision": self.precision, "role": self.role}
        return facts | {"verdict": self.verdict, "findings": findings}
