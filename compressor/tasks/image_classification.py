"""Image classification: one label for an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.tasks import classes, image
from compressor.tasks.base import Column, Outcomes, labeled

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from compressor.recipe import Source


@dataclass(frozen=True)
class ImageClassification:
    """One label for an image; the model gets a new head."""

    name: ClassVar[str] = "image-classification"
    architecture: ClassVar[str] = "image-classification"
    chooses_by: ClassVar[str] = "accuracy"
    qualities: ClassVar[tuple[str, ...]] = ("accuracy",)
    posed_at_once: ClassVar[int] = 32

    def processor(self, path: str, **options: Any) -> Any:
        """The image processor, on Pillow; `image_size` is one of the options."""
        return image.load_processor(path, **options)

    def columns(self, source: Source) -> Mapping[str, Column]:
        """`image` and `label`."""
        return {"image": image.column(source.image)} | classes.column(source)

    def labels(self, train: Any) -> list[str]:
        """Those of the training rows."""
        return classes.names(train)

    def encode(self, rows: Any, processor: Any, labels: Sequence[str] | None, max_length: int, name: str) -> Any:
        """image, as it is stored, and labels: decoding is left to `collate`, since decoded images fill the memory.

        Raises:
            DataError: a label that training has not seen, or an image that is none.
        """
        numbers = classes.numbers(rows, labels or (), name)
        images = rows.select_columns(["image"])
        image.check((row["image"] for row in images), name)
        return images.add_column("labels", numbers)

    def collate(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """pixel_values (B, 3, H, W) and labels (B,)."""
        import torch

        batch = processor([image.decode(row["image"]) for row in rows], return_tensors="pt")
        return dict(batch) | {"labels": torch.tensor([row["labels"] for row in rows])}

    def terms(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Every example (B,)."""
        return labeled(batch)

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The labels (B,)."""
        return batch["labels"][labeled(batch)]

    def pose(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> dict[str, Tensor]:
        """The same as `collate`."""
        return self.collate(rows, processor)

    def example(self, processor: Any, max_length: int | None = None) -> dict[str, Tensor]:
        """Three images of noise."""
        return dict(processor(image.samples(), return_tensors="pt"))

    def outcomes(self, logits: np.ndarray, batch: Mapping[str, np.ndarray]) -> Outcomes:
        """The logits (B, labels) themselves."""
        return classes.outcomes(logits, batch)
