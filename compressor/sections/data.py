"""Which model, for which task, and on which data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from compressor.sections.base import Section, Share, registered

COLUMNS = ("text", "text_pair", "image", "choices", "label")  # the keys of a source that name one
ONLY_SPLIT = "train"  # of a single file
READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}


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
    task: Annotated[str, AfterValidator(registered("tasks", "tasks"))] = Field(
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
    subset: str | None = Field(default=None, description="of a hub data set that has several (its configurations)")
    split: str = Field(
        default=ONLY_SPLIT, description="split of a folder or hub data set; a single file has only `train`"
    )
    text: str = Field(default="text", description="column of the text")
    text_pair: str | None = Field(default=None, description="column of a second text, for pairs")
    image: str = Field(default="image", description="column of the image: encoded bytes, or the path of a file")
    choices: str = Field(default="choices", description="multiple-choice: column of the lists of choices")
    label: str = Field(default="label", description="column of the class, or of the right choice's place from 0")
    limit: int | None = Field(default=None, ge=1, description="use only so many rows, drawn with the recipe's seed")

    @property
    def file(self) -> Path | None:
        """The single file that is read: the path itself, or `<folder>/<split>.<kind>`; None where there is neither.

        A text beside a folder of the split's name lists what lies there.
        """
        path = Path(self.path)
        kinds = [kind for kind in READERS if kind != ".txt" or not (path / self.split).is_dir()]
        places = [path, *(path / f"{self.split}{kind}" for kind in kinds)]
        return next((place for place in places if place.is_file()), None)


class Calibration(Section):
    """The sample that the moments are gathered on; drawn from train unless it names data of its own."""

    samples: int = Field(default=512, ge=1, description="examples that the moments are averaged over")
    batch_size: int = Field(default=32, ge=1, description="examples per step")
    source: Source | None = Field(default=None, description="data of its own; never the evaluation data")


class DataSection(Section):
    """Training, validation and evaluation data."""

    train: Source = Field(description="what the dense baseline and the cores are trained on")
    evaluation: Source = Field(
        description="what accuracy and parity are measured on; chooses nothing but the winner of `export: auto`"
    )
    validation: Source | None = Field(
        default=None,
        description="chooses the best checkpoint, and the budget where it is searched; default: `holdout` of train",
    )
    holdout: Share = Field(
        default=0.1, description="share of train kept for choosing the best checkpoint; 0 keeps the last one"
    )
    calibration: Calibration = Field(default=Calibration(), description="the sample that the moments are gathered on")
