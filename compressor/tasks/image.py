"""What tasks over images share: the column, reading and decoding, and the image processor.

Everything runs on Pillow, so that neither training nor evaluation depends on whether torchvision is installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import DataError, DependencyError, ModelError, first_line
from compressor.failures import exhausted
from compressor.tasks.base import Column

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = ("PIL.Image.Image", "string", "large_string", "binary", "large_binary", "{'bytes'", "{'path'")
SETTINGS = "preprocessor_config.json"
UNBOUND = {"I": "whole numbers of 32 bits", "F": "fractions"}  # by Pillow's mode
VERIFIED = ("PNG", "WEBP")  # formats whose damage shows without decoding
PROBES = ((48, 64), (80, 40))  # (height, width): images of two shapes, which must come out in one


def column(name: str) -> Column:
    """The image's."""
    return Column(name, KINDS, "images, encoded images as bytes, or paths of image files", image=True)


# ---- images ----


def content(value: Mapping[str, Any]) -> bytes:
    """The encoded image of a cell `{bytes, path}`, as it lies in the data set.

    Raises:
        DataError: there are no bytes, and the path cannot be read.
    """
    if value["bytes"] is not None:
        return value["bytes"]
    try:
        return Path(value["path"] or "").read_bytes()
    except OSError as error:
        raise DataError(f"The image {value['path'] or 'without bytes or path'} cannot be read: {error}.") from error


def decode(value: Mapping[str, Any]) -> Image:
    """A cell `{bytes, path}` as an RGB image, turned as its camera says.

    Raises:
        DataError: it cannot be read or decoded.
    """
    from PIL import Image, ImageOps

    data = content(value)
    with _explained(value):
        return rgb(ImageOps.exif_transpose(Image.open(BytesIO(data))))


def rgb(image: Image) -> Image:
    """In three channels of 8 bits; 16 bits are scaled, where Pillow would cut them off."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return image.convert("RGB")


def check(values: Iterable[Mapping[str, Any]], name: str) -> None:
    """Look at every image's header and checksums, or decode it coarsely, so that damage is told before any training.

    Raises:
        DataError: an image that is none, or whose numbers have no known range; `name` says in which split.
    """
    from PIL import Image

    for number, value in enumerate(values):
        try:
            data = content(value)
            with _explained(value):
                Image.open(BytesIO(data)).verify()
                image = Image.open(BytesIO(data))
                if image.mode in UNBOUND:
                    raise ValueError(f"it has {UNBOUND[image.mode]}, whose range is not known")
                if image.format not in VERIFIED:
                    image.draft("RGB", (1, 1))  # of a JPEG an eighth of each side is enough
                    image.load()
        except DataError as error:
            raise DataError(f"{name}, row {number}: {error}") from error


@contextmanager
def _explained(value: Mapping[str, Any]) -> Iterator[None]:
    """What Pillow's decoders raise becomes a DataError."""
    from PIL import Image

    try:
        yield
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _broken(value, error) from error


def _broken(value: Mapping[str, Any], error: Exception) -> DataError:
    which = f" {value['path']}" if value["path"] else ""
    reason = "no format that Pillow knows" if "cannot identify" in str(error) else first_line(error)
    return DataError(f"The image{which} cannot be decoded: {reason}. Take it out, or save it anew as PNG or JPEG.")


def samples() -> list[Image]:
    """Three images of noise, the same every time, for what needs any images at all."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in (*PROBES, PROBES[0])]


# ---- the image processor ----


def load_processor(path: str, image_size: int | None = None, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """The checkpoint's own image processor on Pillow, or one made of the `pretrained_cfg` that timm's checkpoints have.

    Args:
        path: a checkpoint, or a folder of preprocessor_config.json alone.
        image_size: height and width of what the model is given; None keeps the checkpoint's.
        trust_remote_code: run the code that the checkpoint ships.
        options: what reading a checkpoint takes, such as `revision`.

    Raises:
        DependencyError: the checkpoint needs a package that is not installed.
        ModelError: there is none, it cannot be read, its images have no fixed size, or the model's patches do not
            divide that size.
    """
    from transformers import AutoImageProcessor
    from transformers.models.auto.image_processing_auto import get_image_processor_config

    trusting = options | {"trust_remote_code": trust_remote_code}
    try:
        config = _config(path, trusting)
        settings = getattr(config, "pretrained_cfg", None)
        if settings is not None and not get_image_processor_config(path, **options):
            found = from_timm(settings)
        else:
            found = AutoImageProcessor.from_pretrained(
                path, backend="pil", image_processor_filename=SETTINGS, **trusting
            )
    except ImportError as error:
        raise DependencyError(
            f"{path} needs a package that is not there: {first_line(error).partition(' but ')[0]}. "
            "For checkpoints of timm: pip install 'rankfold[timm]'."
        ) from error
    except Exception as error:  # transformers raises many kinds; each becomes a sentence
        if exhausted(error):
            raise
        raise ModelError(f"No image processor can be read from {path}: {first_line(error)}") from error
    if image_size is not None:
        _resize_(found, image_size)
    _require_fixed(found, path, image_size)
    _require_divided(found, path, config)
    return found


def _config(path: str, options: Mapping[str, Any]) -> Any | None:
    """The model's config; None in a folder of settings for images alone, as beside a module of one's own."""
    from transformers import AutoConfig

    if (Path(path) / SETTINGS).is_file() and not (Path(path) / "config.json").is_file():
        return None
    return AutoConfig.from_pretrained(path, **options)


def from_timm(settings: Mapping[str, Any]) -> Any:
    """What timm does to an image for evaluation: the shortest edge to size / crop_pct, the center, mean and deviation.

    timm's own transforms need torchvision. Where settings are missing, its defaults hold.
    """
    from PIL.Image import Resampling
    from transformers import CLIPImageProcessorPil
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    _, height, width = settings.get("input_size") or (3, 224, 224)
    share = settings.get("crop_pct") or 0.875
    squashed = settings.get("crop_mode") == "squash"
    edges = {"height": int(height / share), "width": int(width / share)}
    return CLIPImageProcessorPil(
        size=edges if squashed else {"shortest_edge": int(min(height, width) / share)},
        crop_size={"height": height, "width": width},
        resample=Resampling[(settings.get("interpolation") or "bilinear").upper()],
        image_mean=list(settings.get("mean") or IMAGENET_DEFAULT_MEAN),
        image_std=list(settings.get("std") or IMAGENET_DEFAULT_STD),
    )


def _resize_(processor: Any, image_size: int) -> None:
    """Scale the sizes of a processor, so that what it gives is `image_size` in height and width."""
    from transformers.image_utils import SizeDict

    square = SizeDict(height=image_size, width=image_size)
    crop = getattr(processor, "do_center_crop", None) and getattr(processor, "crop_size", None)
    size = {edge: length for edge, length in dict(processor.size).items() if length}
    if crop:
        processor.crop_size = square
        processor.size = SizeDict(**{edge: round(n * image_size / crop["height"]) for edge, n in size.items()})
    else:
        processor.size = square if "height" in size else SizeDict(**dict.fromkeys(size, image_size))


def _require_fixed(processor: Any, path: str, image_size: int | None) -> None:
    """Batches and exports need images of one size."""
    shapes = {processor([image], return_tensors="np")["pixel_values"][0].shape for image in samples()}
    listed = " and ".join(map(str, sorted(shapes)))
    if len(shapes) > 1:
        raise ModelError(
            f"The image processor of {path} ({type(processor).__name__}) gives images of different shapes, {listed}; "
            "only fixed sizes can be batched and exported. Give it a height and a width, or a center crop."
        )
    if image_size is not None and shapes != {(3, image_size, image_size)}:
        raise ModelError(
            f"The image processor of {path} ({type(processor).__name__}) gives images {listed}, not "
            f"{(3, image_size, image_size)} as model.image_size says. Leave that out, or write {SETTINGS} by hand."
        )


def _require_divided(processor: Any, path: str, config: Any) -> None:
    """A patch that does not fit at the edge would be dropped without a word."""
    patch = getattr(config, "patch_size", None)
    if getattr(config, "patch_stride", None) not in (None, patch):  # they overlap, and edges are padded
        return
    patches = tuple(patch)[-2:] if isinstance(patch, list | tuple) else (patch, patch)
    sizes = processor(samples()[:1], return_tensors="np")["pixel_values"][0].shape[1:]
    edges = [(size, edge) for size, edge in zip(sizes, patches, strict=False) if isinstance(edge, int) and edge > 0]
    if any(size % edge for size, edge in edges):
        size, edge = edges[-1]
        multiples = {max(size // edge, 1) * edge, (size // edge + 1) * edge}
        raise ModelError(
            f"Images of {sizes[0]} x {sizes[1]} cannot be cut into whole patches of {patches[0]} x {patches[-1]}, "
            f"which {path} reads: set model.image_size to a multiple, such as "
            f"{' or '.join(map(str, sorted(multiples)))}."
        )
