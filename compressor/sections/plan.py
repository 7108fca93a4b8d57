"""How ranks are chosen, and what they may cost."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_serializer, model_validator

from compressor.allocation import Layout, Resource, Strategy
from compressor.sections.base import Section, fault


class Budget(Section):
    """What the deployed layers, or the whole model, may cost: exactly one of the three."""

    parameters: float | None = Field(
        default=0.5, gt=0, le=1, description="share of the targets' parameters that is kept"
    )
    latency: float | None = Field(
        default=None, gt=0, le=1, description="share of dense fp32's p50 that the first export may take"
    )
    memory: float | None = Field(
        default=None, gt=0, le=1, description="share of dense fp32's peak over the floor that the first export may take"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_default_beside(cls, value: Any) -> Any:
        named = isinstance(value, dict) and any(value.get(key) is not None for key in ("latency", "memory"))
        return {"parameters": None} | value if named else value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        named = [key for key in get_args(Resource) if getattr(self, key) is not None]
        if len(named) != 1:
            said = f"names {' and '.join(named)}; keep one of them" if named else "names nothing to keep to"
            raise fault(f"{said}: a budget is in parameters, latency or memory.")
        return self

    @model_serializer
    def _alone(self) -> dict[str, float]:
        return {self.quantity: self.share}

    @property
    def quantity(self) -> Resource:
        """What it is a share of."""
        return next(key for key in get_args(Resource) if getattr(self, key) is not None)

    @property
    def share(self) -> float:
        """Of the dense targets' parameters, or of what the dense model takes in fp32."""
        return float(getattr(self, self.quantity))


class PlanSection(Section):
    """How ranks are chosen."""

    strategy: Strategy = Field(
        default="gain",
        description="most loss removed per parameter, most energy kept per parameter, one share for all, or most loss "
        "removed per measured microsecond (default where the budget is latency)",
    )
    budget: Budget | Literal["auto"] = Field(
        default=Budget(),
        description="what may be kept: a share of exactly one of these; auto: the smallest share of the parameters "
        "whose gates hold, which `run` finds",
    )
    path: str | None = Field(default=None, description="a plan.json, edited or not, replayed instead of choosing ranks")
    multiple_of: int = Field(default=8, ge=1, description="ranks are multiples of this")
    layout: Layout = Field(default="two-factor", description="pivoted stores r*r fewer parameters")

    @field_validator("budget", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            said = ", ".join(f"{{{key}: {value}}}" for key in get_args(Resource))
            raise fault(f"is {value} of what? Write one of {said}.")
        return value

    @model_validator(mode="before")
    @classmethod
    def _measured_by_default(cls, value: Any) -> Any:
        budget = value.get("budget") if isinstance(value, dict) else None
        timed = isinstance(budget, dict) and budget.get("latency") is not None
        return {"strategy": "measured"} | value if timed else value

    @property
    def quantity(self) -> Resource:
        """What the budget is a share of."""
        return "parameters" if self.budget == "auto" else self.budget.quantity

    @property
    def share(self) -> float:
        """How much of it is kept; the most there can be where it is searched."""
        return 1.0 if self.budget == "auto" else self.budget.share

    @property
    def times_layers(self) -> bool:
        """Whether layers are timed on the runtime of the first export."""
        return self.path is None and (self.strategy == "measured" or self.quantity == "latency")

    @property
    def measures(self) -> bool:
        """Whether anything is measured before the ranks are known."""
        return self.times_layers or (self.path is None and self.quantity != "parameters")
