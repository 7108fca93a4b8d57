"""The sections of a recipe as strict pydantic models; `compressor.recipe` puts them together. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from compressor import registry, schema
from compressor.errors import InputError, RecipeError, did_you_mean

Share = Annotated[float, Field(ge=0, lt=1)]
Measure = Literal["parameters", "latency", "memory"]
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


class Section(BaseModel):
    """A section of the recipe: frozen, and no key is accepted that it does not declare."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def _custom(text: str) -> PydanticCustomError:
    return PydanticCustomError("rankfold", "{text}", {"text": text})


def _registered(kind: registry.Kind, words: str) -> Callable[[str], str]:
    """A validator: the name of a row of a registry table."""

    def check(name: str) -> str:
        known = registry.names(kind)
        if name not in known:
            raise _custom(f"'{name}' is not one of the {words}: {', '.join(sorted(known))}.{did_you_mean(name, known)}")
        return name

    return check


class ModelSection(Section):
    """Which pretrained model, for which task, and which of its layers are compressed."""

    path: str = Field(
        description="a local folder (relative to the recipe, or under $RANKFOLD_MODELS), a hub id, or your own code: "
        "package.module:function"
    )
    processor: str | None = Field(
        default=None,
        description="folder or hub id of the tokenizer or image processor; default: the model's own, code has none",
    )
    code: str | None = Field(
        default=None, description="folder that the module of package.module:function lies in; default: the recipe's"
    )
    task: Annotated[str, AfterValidator(_registered("tasks", "tasks"))] = Field(
        default="text-classification", description="what the model is adapted to do; `list tasks` names them"
    )
    start: Literal["adapted", "pretrained"] = Field(
        default="adapted",
        description="which weights are compressed: the baseline's where that is adapted, or the checkpoint's",
    )
    targets: Literal["auto"] | list[str] = Field(default="auto", description="'auto', or globs over module names")
    exclude: list[str] = Field(default=[], description="globs over module names that stay dense")
    max_length: int = Field(default=128, ge=2, description="tokens; longer texts are cut")
    image_size: int | None = Field(
        default=None, ge=1, description="height and width that images are given; default: what the image processor says"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of model.path, a hub id")
    trust_remote_code: bool = Field(
        default=False, description="run code that the checkpoint ships; recorded in the artifact"
    )


class Source(Section):
    """One split of a data set and its columns."""

    path: str = Field(description="a folder, a .parquet/.csv/.json/.jsonl/.txt file, or a hub id")
    split: str = Field(default="train", description="split of a folder or hub data set; a single file has only `train`")
    text: str = Field(default="text", description="column of the text")
    text_pair: str | None = Field(default=None, description="column of a second text, for pairs")
    image: str = Field(default="image", description="column of the image: encoded bytes, or the path of a file")
    choices: str = Field(default="choices", description="multiple-choice: column of the lists of choices")
    label: str = Field(default="label", description="column of the class, or of the right choice's place from 0")
    limit: int | None = Field(default=None, ge=1, description="use only so many rows, drawn with the recipe's seed")


class Calibration(Section):
    """The sample that the moments are gathered on; drawn from train unless it names data of its own."""

    samples: int = Field(default=512, ge=1, description="examples that the moments are averaged over")
    batch_size: int = Field(default=32, ge=1, description="examples per step")
    source: Source | None = Field(default=None, description="data of its own; never the evaluation data")


class DataSection(Section):
    """Training, validation and evaluation data."""

    train: Source = Field(description="what the dense baseline and the cores are trained on")
    evaluation: Source = Field(description="what accuracy and parity are measured on; never used to choose anything")
    validation: Source | None = Field(
        default=None,
        description="chooses the best checkpoint, and the budget where it is searched; default: `holdout` of train",
    )
    holdout: Share = Field(
        default=0.1, description="share of train kept for choosing the best checkpoint; 0 keeps the last one"
    )
    calibration: Calibration = Field(default=Calibration(), description="the sample that the moments are gathered on")


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
        named = [key for key in get_args(Measure) if getattr(self, key) is not None]
        if len(named) != 1:
            said = f"names {' and '.join(named)}; keep one of them" if named else "names nothing to keep to"
            raise _custom(f"{said}: a budget is in parameters, latency or memory.")
        return self

    @model_serializer
    def _alone(self) -> dict[str, float]:
        return {self.quantity: self.share}

    @property
    def quantity(self) -> Measure:
        """What it is a share of."""
        return next(key for key in get_args(Measure) if getattr(self, key) is not None)

    @property
    def share(self) -> float:
        """Of the dense targets' parameters, or of what the dense model takes in fp32."""
        return float(getattr(self, self.quantity))


class PlanSection(Section):
    """How ranks are chosen."""

    strategy: Literal["gain", "energy", "uniform", "measured"] = Field(
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
    layout: Literal["two-factor", "pivoted"] = Field(
        default="two-factor", description="pivoted stores r*r fewer parameters"
    )

    @model_validator(mode="before")
    @classmethod
    def _measured_by_default(cls, value: Any) -> Any:
        budget = value.get("budget") if isinstance(value, dict) else None
        timed = isinstance(budget, dict) and budget.get("latency") is not None
        return {"strategy": "measured"} | value if timed else value

    @property
    def quantity(self) -> Measure:
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


class Training(Section):
    """One training run."""

    epochs: float = Field(default=3, gt=0, description="passes over the training data")
    learning_rate: float = Field(default=1e-3, gt=0, description="the highest one, after warmup")
    batch_size: int = Field(default=32, ge=1, description="examples per step")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled, as in AdamW")
    warmup: Share = Field(
        default=0.1, description="share of the steps with rising learning rate; cosine decay after it"
    )


class Distillation(Section):
    """What the compressed model is taught by the adapted dense baseline, beside the labels."""

    predictions: float = Field(
        default=0.5, ge=0, le=1, description="share of the loss that matches its predictions; the labels have the rest"
    )
    hidden: float = Field(
        default=1.0,
        ge=0,
        description="weight of matching its hidden states, as a share of their variance; unused where it gives none",
    )
    temperature: float = Field(default=2.0, gt=0, description="softens the predictions that are matched")


class AdaptSection(Training):
    """Training of the cores, towards the labels and towards the adapted dense baseline."""

    distill: Distillation | None = Field(
        default=Distillation(),
        description="taught by the dense baseline, where that is adapted; null: by the labels alone",
    )


class BaselineSection(Training):
    """The dense model on the same task, which everything is held against."""

    train: Literal["full", "none"] = Field(
        default="full", description="train all weights, or none; `none` where `path` is set"
    )
    path: str | None = Field(default=None, description="an already adapted dense model, used instead of training one")
    learning_rate: float = Field(default=1e-4, gt=0, description="the highest one, after warmup")

    @model_validator(mode="before")
    @classmethod
    def _trained_already(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("path") and "train" not in value:
            return value | {"train": "none"}
        return value

    @property
    def adapted(self) -> bool:
        """Whether it has learned the task, so that it can teach it."""
        return self.train == "full" or self.path is not None


class ExportSection(Section):
    """One export."""

    runtime: Annotated[str, AfterValidator(_registered("exporters", "runtimes"))] = Field(
        default="onnx", description="`list exporters` names them"
    )
    precision: str = Field(
        default="fp32",
        description="onnx writes fp32, fp16, int8, int8-static, int4 and fp32-fused; "
        "other runtimes say what they write",
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
                raise _custom(str(error)) from error
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
        default="cpu", description="where the exports run; int8 and int8-static run on the cpu only"
    )
    threads: int = Field(default=0, ge=0, description="0: as many as this process may use")
    batch_size: int = Field(default=1, ge=1, description="of the latency and memory measurements")
    sequence_length: int = Field(default=64, ge=1, description="of the latency and memory measurements")
    runs: int = Field(default=200, ge=10, description="timed runs of each model, alternating")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="of every interval")


class Gate(Section):
    """A limit on one quantity: absolute, or against the dense baseline."""

    type: Literal[
        "threshold", "max-degradation", "percent-max-degradation", "min-improvement", "percent-min-improvement"
    ] = Field(description="`threshold` is absolute; the others are against dense, in the quantity's unit or in percent")
    value: float = Field(description="the limit, or the difference to dense")
    unsure: Literal["fail", "pass"] = Field(default="fail", description="when the interval straddles the limit")


def _method(value: Any) -> Any:
    """Validate `{name: jactus, ...}` into the method's own dataclass; an instance of one is taken as it is."""
    if hasattr(value, "subspace"):
        return value
    if not isinstance(value, dict):
        raise _custom(f"must be a section such as {{name: {schema.DEFAULT_METHOD}}}, not {value!r}.")
    name = str(value.get("name", schema.DEFAULT_METHOD))
    try:
        cls = registry.load("methods", name)
    except InputError as error:
        details = InitErrorDetails(type=_custom(str(error)), loc=("name",), input=name)
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
