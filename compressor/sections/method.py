"""The method, as the dataclass that it is."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter, ValidationError, WithJsonSchema
from pydantic_core import InitErrorDetails

from compressor import registry, schema
from compressor.errors import InputError, RecipeError
from compressor.sections.base import fault


def _method(value: Any) -> Any:
    """Validate `{name: jactus, ...}` into the method's own dataclass; an instance of one is taken as it is."""
    if hasattr(value, "subspace"):
        return value
    if not isinstance(value, dict):
        raise fault(f"must be a section such as {{name: {schema.DEFAULT_METHOD}}}, not {value!r}.")
    name = str(value.get("name", schema.DEFAULT_METHOD))
    try:
        cls = registry.load("methods", name)
    except InputError as error:
        details = InitErrorDetails(type=fault(str(error)), loc=("name",), input=name)
        raise ValidationError.from_exception_data("Method", [details]) from error
    return TypeAdapter(cls).validate_python({key: item for key, item in value.items() if key != "name"})


def default_method() -> Any:
    """The default method with its default fields."""
    return _method({})


def _method_section(value: Any) -> dict[str, Any]:
    cls = type(value)
    target = f"{cls.__module__}:{cls.__qualname__}"
    name = next((name for name, row in registry.names("methods").items() if row == target), None)
    if name is None:
        raise RecipeError(f"{target} is in no table of methods; register it under the entry point 'rankfold.methods'.")
    return {"name": name, **TypeAdapter(cls).dump_python(value, mode="json")}


Method = Annotated[
    Any, BeforeValidator(_method), PlainSerializer(_method_section), WithJsonSchema({"description": "see Method"})
]
