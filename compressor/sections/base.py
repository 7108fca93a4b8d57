"""What every section of a recipe is, and how its faults are told. No torch in this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from compressor import registry
from compressor.errors import did_you_mean

Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A section of the recipe: frozen, and no key is accepted that it does not declare."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


def fault(text: str) -> PydanticCustomError:
    """What a validator raises: `text` is the sentence that the user reads."""
    return PydanticCustomError("rankfold", "{text}", {"text": text})


def registered(kind: registry.Kind, words: str) -> Callable[[str], str]:
    """A validator: the name of a row of a registry table."""

    def check(name: str) -> str:
        known = registry.names(kind)
        if name not in known:
            raise fault(f"'{name}' is not one of the {words}: {', '.join(sorted(known))}.{did_you_mean(name, known)}")
        return name

    return check
