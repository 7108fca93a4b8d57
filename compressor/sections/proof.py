"""What is exported, how it is measured, and what has to hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from compressor import registry
from compressor.errors import InputError
from compressor.sections.base import Section, fault, registered

AUTO_RUNTIME = "onnx"  # that `export: auto` looks for the best in
Quantity = Literal[
    "accuracy",
    "perplexity",
    "parity",
    "parity_max_difference",
    "size",
    "peak_memory",
    "latency_p50",
    "latency_p90",
    "latency_p99",
]
SHARES = frozenset({"accuracy", "parity"})  # shares of 1, shown as percentages


class ExportSection(Section):
    """One export."""

    runtime: Annotated[str, AfterValidator(registered("exporters", "runtimes"))] = Field(
        default="onnx", description="`list exporters` names them"
    )
    precision: str = Field(
        default="fp32",
        description="onnx writes fp32, fp16, int8, int8-static, int8-weights, int4, fp32-fused and "
        "int8-fused, openvino fp32, fp16, int8 and int8-static; other runtimes say what they write",
    )

    @field_validator("precision")
    @classmethod
    def _written(cls, precision: str, info: ValidationInfo) -> str:
        """A precision that the runtime's exporter writes; it says itself which ones."""
        runtime = info.data.get("runtime")
        if runtime is not None:  # else it is at fault itself
            try:
                registry.exporter(runtime, precision)
            except InputError as error:
                raise fault(str(error)) from error
        return precision

    @property
    def name(self) -> str:
        """Folder name under exports/."""
        return f"{self.runtime}-{self.precision}"


class ValidateSection(Section):
    """Where and how hard the proofs are measured."""

    split: Literal["evaluation", "validation"] = Field(
        default="evaluation",
        description="what accuracy and parity are measured on; validation is for choosing, as a search's trials do",
    )
    device: Literal["cpu", "cuda"] = Field(
        default="cpu",
        description="where the exports run; cuda takes onnx in fp32, fp16 and int4, and torch-export",
    )
    threads: int = Field(default=0, ge=0, description="0: as many as this process may use")
    batch_size: int = Field(default=1, ge=1, description="of the latency and memory measurements")
    sequence_length: int = Field(default=64, ge=1, description="of the latency and memory measurements")
    runs: int = Field(default=200, ge=10, description="timed runs of each model, alternating")
    repeats: int = Field(
        default=3, ge=1, description="fresh processes for each model's peak memory; one shows no spread"
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="of every interval")


class Gate(Section):
    """A limit on one quantity: absolute, or against the dense baseline."""

    type: Literal[
        "threshold", "max-degradation", "percent-max-degradation", "min-improvement", "percent-min-improvement"
    ] = Field(description="`threshold` is absolute; the others are against dense, in the quantity's unit or in percent")
    value: float = Field(allow_inf_nan=False, description="the limit, or the difference to dense")
    unsure: Literal["fail", "pass"] = Field(default="fail", description="when the interval straddles the limit")
