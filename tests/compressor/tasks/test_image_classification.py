"""Image classification over tiny vision models of several families, and what is refused of images and sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    HieraConfig,
    HieraForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from transformers.utils import is_timm_available

from compressor import data, storage, tensors
from compressor.adapt import adapt_
from compressor.calibration import calibrate
from compressor.distillation import distillation_loss
from compressor.errors import DataError, DependencyError, ModelError
from compressor.factorize import decompose, factorize_, fold_, plan, restructure_
from compressor.methods.jactus import Jactus
from compressor.models import describe, load_dense, quiet_libraries, require_learnable
from compressor.recipe import Distillation
from compressor.sections.data import Calibration, DataSection, Source
from compressor.sections.training import Training
from compressor.targets import find_targets, head_parameters
from compressor.tasks.base import together
from compressor.tasks.image import check, content, decode, from_timm
from compressor.tasks.image_classification import ImageClassification
from exporters.onnx import OnnxExporter

TASK = ImageClassification()
LABELS = ["dark", "light", "mixed"]
SIZE = 32
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 8}
RANDOM = {"num_labels": 3, "initializer_range": 0.2}
HALF = [0.5, 0.5, 0.5]
TIMM = {"input_size": [3, SIZE, SIZE], "crop_pct": 0.8, "interpolation": "bicubic", "mean": HALF, "std": HALF}
BYTES = datasets.Value("binary")
STRUCT = {"bytes": BYTES, "path": datasets.Value("string")}


def vit() -> Any:
    return ViTForImageClassification(ViTConfig(**BLOCKS, **RANDOM, intermediate_size=64))


def deit() -> Any:
    return DeiTForImageClassification(DeiTConfig(**BLOCKS, **RANDOM, intermediate_size=64))


def dinov2() -> Any:
    sizes = BLOCKS | {"image_size": 56}  # its position embeddings are interpolated to the images' size
    return Dinov2ForImageClassification(Dinov2Config(**sizes, **RANDOM, mlp_ratio=2))


def swin() -> Any:
    stages = {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}
    return SwinForImageClassification(SwinConfig(**stages, **RANDOM, image_size=SIZE))


def timm_vit() -> Any:
    pytest.importorskip("timm", reason="needs timm and torchvision: pip install 'rankfold[timm]'")
    return wrapped("vit_tiny_patch16_224", patch_size=8, embed_dim=32, depth=2, num_heads=2)


def timm_swin() -> Any:
    pytest.importorskip("timm", reason="needs timm and torchvision: pip install 'rankfold[timm]'")
    stages = {"embed_dim": 16, "depths": (2, 1), "num_heads": (2, 2), "window_size": 4}
    return wrapped("swin_tiny_patch4_window7_224", **stages)


def wrapped(architecture: str, **arguments: Any) -> Any:
    from transformers import TimmWrapperForImageClassification

    config = TimmWrapperConfig(architecture=architecture, model_args=arguments | {"img_size": SIZE}, num_labels=3)
    config.pretrained_cfg = TIMM
    return TimmWrapperForImageClassification(config)


class Case(NamedTuple):
    """A family of models: how one is made, its targets, and its hidden states."""

    build: Callable[[], Any]
    targets: int
    states: int


CASES = {
    "vit": Case(vit, 2 * 6, 3),
    "deit": Case(deit, 2 * 6, 3),
    "dinov2": Case(dinov2, 2 * 6, 3),
    "swin": Case(swin, 3 * 6 + 1, 3),  # and the reduction between its stages
    "timm-vit": Case(timm_vit, 2 * 4, 2),  # one layer makes query, key and value
    "timm-swin": Case(timm_swin, 3 * 4 + 1, 2),
}


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_libraries()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def checkpoint(model: Any, folder: Path) -> str:
    """The model as a folder, with an image processor but where timm has its own way to say it."""
    torch.manual_seed(0)
    model.save_pretrained(folder)
    if not hasattr(model.config, "pretrained_cfg"):
        ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return str(folder)


def drawn(count: int = 24, seed: int = 0) -> list[tuple[Image.Image, str]]:
    """Images of two sizes whose brightness tells the label."""
    generator = np.random.default_rng(seed)
    shapes = [(40, 30, 3), (32, 32, 3)]
    return [
        (Image.fromarray(generator.integers(*bounds, shapes[number % 2], dtype=np.uint8)), label)
        for number in range(count)
        for label, bounds in [(LABELS[number % 3], ((0, 90), (160, 256), (0, 256))[number % 3])]
    ]


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def written(path: Path, rows: list[tuple[Any, Any]], feature: Any = None) -> Source:
    """A parquet file of images and labels."""
    features = datasets.Features({"image": feature or datasets.Image(), "label": datasets.Value("string")})
    table = {"image": [image for image, _ in rows], "label": [label for _, label in rows]}
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(path))
    return Source(path=str(path))


# ---- training ends with every tensor of the best epoch, whatever the hub calls it ----


def states(
    monkeypatch: pytest.MonkeyPatch, model: Any, worth: list[float], killed: int | None = None
) -> list[dict[str, Any]]:
    """The model's tensors at each validation; what they are said to be worth, and at which one the process ends."""
    seen: list[dict[str, Any]] = []

    def accuracy(_: Any) -> dict[str, float]:
        if len(seen) == killed:
            raise KeyboardInterrupt
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        return {"accuracy": worth[len(seen) - 1]}

    monkeypatch.setattr("compressor.adapt._accuracy", accuracy)
    return seen


def fewer(source: Source) -> Source:
    """Some of its rows: those that are trained on prove nothing."""
    return source.model_copy(update={"limit": 6})


def same(model: Any, state: dict[str, Any]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", CASES)
def test_the_best_epoch_is_kept_and_a_killed_training_goes_on_with_every_tensor(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = checkpoint(CASES[name].build(), tmp_path / "dense"), tmp_path / "steps"
    source = written(tmp_path / "train.parquet", drawn())
    processor = TASK.processor(path)
    read = data.prepare(DataSection(train=source, evaluation=fewer(source), holdout=0.25), TASK, processor, 128, 0)

    def train(model: Any) -> Any:
        training = Training(epochs=3, batch_size=8, learning_rate=1e-2)
        adapt_(model, TASK, processor, read.train, read.validation, training, folder=folder)
        return model

    model = load_dense(path, TASK, LABELS)
    seen = states(monkeypatch, model, [0.1, 0.2, 0.9, 0.5])
    train(model)
    assert same(model, seen[2])
    assert not same(model, seen[3])

    model = load_dense(path, TASK, LABELS)
    seen = states(monkeypatch, model, [0.1, 0.2, 0.3, 0.4])
    train(model)
    assert same(model, seen[3])
    model = load_dense(path, TASK, LABELS)
    states(monkeypatch, model, [0.1, 0.2, 0.3, 0.4], killed=2)
    with pytest.raises(KeyboardInterrupt):
        train(model)
    model = load_dense(path, TASK, LABELS)
    states(monkeypatch, model, [0.1, 0.3, 0.4])
    assert same(train(model), seen[3])


# ---- the whole line, one model of each family ----


@pytest.mark.parametrize("name", CASES)
def test_a_family_goes_down_the_whole_line(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = checkpoint(case.build(), tmp_path / "dense")
    processor, model = TASK.processor(path), load_dense(path, TASK, LABELS)
    found = find_targets(model)
    assert len(found) == case.targets
    assert [row.name for row in describe(path, TASK) if row.target] == [target.name for target in found]
    assert [len(parameter) for parameter in head_parameters(model).values()] == [3, 3]

    source = written(tmp_path / "train.parquet", drawn())
    section = DataSection(train=source, evaluation=fewer(source), calibration=Calibration(samples=8))
    read = data.prepare(section, TASK, processor, 128, 0)
    method = Jactus(union=0.75)
    moments = calibrate(model, data.batches(read.calibration, TASK, processor, 4), method.needs())
    assert moments.samples == 8
    ranks = plan(model, method, moments, keep=0.5, multiple_of=2)
    assert ranks.parameters <= 0.5 * ranks.dense_parameters
    teacher = load_dense(path, TASK, LABELS)
    factorize_(model, method, moments, ranks, subspaces=decompose(model, method, moments))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folder, training = tmp_path / "steps", Training(epochs=1, batch_size=24, learning_rate=1e-2, warmup=0.0)
    lessons = {"teacher": teacher, "distillation": Distillation()}
    history = adapt_(model, TASK, processor, read.train, read.validation, training, folder=folder, **lessons)
    assert history[-1]["step"] == 1
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    free = (*(f"{target.name}." for target in found), *head_parameters(model))
    assert all(key.startswith(free) for key in moved)
    assert all(any(key.startswith(f"{layer}.") for key in moved) for layer in ranks.ranks)

    evaluation = data.posed(read.evaluation, TASK, processor)
    adapted = data.outcomes(model, TASK, evaluation)
    fold_(model)
    folded = data.outcomes(model, TASK, evaluation)
    np.testing.assert_allclose(folded.values, adapted.values, atol=1e-4)
    exported = OnnxExporter().export(model, TASK.example(processor), tmp_path / "onnx-fp32")
    assert exported.facts["inputs"] == [
        {"name": "pixel_values", "dtype": "float32", "axes": ["batch_size", 3, SIZE, SIZE]}
    ]
    runner = OnnxExporter().load(tmp_path / "onnx-fp32")
    run = [
        TASK.outcomes(runner({"pixel_values": batch["pixel_values"].numpy()})["logits"], {"labels": np.array([])})
        for batch in evaluation
    ]
    np.testing.assert_allclose(together(run).values, folded.values, atol=1e-4)

    storage.save_model(model, processor, tmp_path / "saved")
    config = type(model.config).from_pretrained(tmp_path / "saved")
    again = restructure_(type(model)(config), ranks)
    tensors.load_tensors_(again, tmp_path / "saved" / "model.safetensors")
    np.testing.assert_array_equal(data.outcomes(again, TASK, evaluation).values, folded.values)


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_of_every_family_teach(name: str) -> None:
    student, teacher = CASES[name].build(), CASES[name].build().eval()
    batch = {"pixel_values": torch.randn(2, 3, SIZE, SIZE), "labels": torch.tensor([0, 2])}
    taught = teacher(pixel_values=batch["pixel_values"], output_hidden_states=True)
    assert len(taught.hidden_states) == CASES[name].states
    section = Distillation(predictions=0.5, hidden=1.0)
    with_states, outputs = distillation_loss(student.eval(), teacher, batch, section)
    without, _ = distillation_loss(student.eval(), teacher, batch, section.model_copy(update={"hidden": 0.0}))
    errors = []
    for ours, theirs in zip(outputs.hidden_states[1:], taught.hidden_states[1:], strict=True):
        axis = 1 if ours.ndim == 4 else 2  # where the channels are
        ours, theirs = (state.detach().double().movedim(axis, 0).flatten(1) for state in (ours, theirs))
        errors.append(float(((ours - theirs) ** 2).mean() / theirs.var(1, correction=0).mean()))
    assert float((with_states - without).detach()) == pytest.approx(np.mean(errors), rel=1e-3)


class _Silent(nn.Module):
    """A classifier that refuses to give hidden states."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = vit(), how

    def forward(self, output_hidden_states: bool = False, **inputs: Any) -> Any:
        if output_hidden_states and self.how == "refuses":
            raise ValueError("hidden states cannot be given")
        return self.inner(**inputs)


@pytest.mark.parametrize("how", ["refuses", "gives none"])
def test_a_model_without_hidden_states_is_taught_by_its_predictions(how: str) -> None:
    student, teacher = _Silent(how).eval(), _Silent(how).eval()
    batch = {"pixel_values": torch.randn(2, 3, SIZE, SIZE), "labels": torch.tensor([0, 2])}
    found, _ = distillation_loss(student, teacher, batch, Distillation(predictions=0.3, hidden=5.0))
    wanted, _ = distillation_loss(student, teacher, batch, Distillation(predictions=0.3, hidden=0.0))
    assert float(found.detach()) == float(wanted.detach())


# ---- targets in a Sequential ----


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)


def test_blocks_of_one_class_in_a_sequential_are_repeated_and_single_layers_in_a_row_are_not() -> None:
    model = nn.Module()
    model.stem = nn.Sequential(_Block(), nn.ReLU())
    model.blocks = nn.Sequential(_Block(), nn.Identity(), _Block())
    model.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    assert [target.name for target in find_targets(model)] == [
        f"blocks.{number}.{layer}" for number in (0, 2) for layer in ("up", "down")
    ]
    assert {name.rpartition(".")[0] for name in head_parameters(model)} == {
        "stem.0.up",
        "stem.0.down",
        "head.0",
        "head.2",
    }


# ---- images ----


def cells(source: Source) -> Any:
    return data.read(source, TASK)["image"]


def test_images_are_read_from_features_bytes_and_paths_as_the_same_rows(tmp_path: Path) -> None:
    rows = drawn(4)
    (tmp_path / "files").mkdir()
    for number, (image, _) in enumerate(rows):
        image.save(tmp_path / "files" / f"{number}.png")
    blobs = [((tmp_path / "files" / f"{number}.png").read_bytes(), label) for number, (_, label) in enumerate(rows)]
    names = [(f"files/{number}.png", label) for number, (_, label) in enumerate(rows)]
    structs = [({"bytes": blob, "path": None}, label) for blob, label in blobs]
    sources = [
        written(tmp_path / "feature.parquet", structs),
        written(tmp_path / "bytes.parquet", blobs, BYTES),
        written(tmp_path / "paths.parquet", names, datasets.Value("string")),
        written(tmp_path / "struct.parquet", structs, STRUCT),
    ]
    digests = {data.digest(data.read(source, TASK)) for source in sources}
    assert len(digests) == 1
    changed = [(encoded(drawn(1, seed=1)[0][0]), blobs[0][1]), *blobs[1:]]
    other = written(tmp_path / "other.parquet", changed, BYTES)
    assert data.digest(data.read(other, TASK)) not in digests


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.string_view()])
def test_images_and_labels_may_be_views(tmp_path: Path, kind: Any) -> None:
    (image, label), *_ = drawn(1)
    image.save(tmp_path / "0.png")
    blob = (tmp_path / "0.png").read_bytes()
    cell = pa.array([blob if kind == pa.binary_view() else "0.png"]).cast(kind)
    pq.write_table(
        pa.table({"image": cell, "label": pa.array([label]).cast(pa.string_view())}), tmp_path / "rows.parquet"
    )
    rows = data.read(Source(path=str(tmp_path / "rows.parquet")), TASK)
    assert content(rows[0]["image"]) == blob
    assert TASK.encode(rows, None, [label], 128, "data")["labels"][:] == [0]


def test_a_list_beside_a_folder_of_pictures_is_not_read_in_its_place(tmp_path: Path) -> None:
    for number, (image, label) in enumerate(drawn(4)):
        folder = tmp_path / "pictures" / "train" / label
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    (tmp_path / "pictures" / "train.txt").write_text("train/a/0.png\n")
    source = Source(path=str(tmp_path / "pictures"))
    assert len(data.read(source, TASK)) == 4
    (tmp_path / "pictures" / "test.txt").write_text("words\n")
    with pytest.raises(DataError, match=r"pictures/test\.txt has no column 'image', 'label'"):
        data.read(source.model_copy(update={"split": "test"}), TASK)


def test_a_folder_of_pictures_by_class_is_a_data_set(tmp_path: Path) -> None:
    for number, (image, label) in enumerate(drawn(6)):
        folder = tmp_path / "pictures" / ("train" if number < 4 else "test") / label
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    rows = data.read(Source(path=str(tmp_path / "pictures")), TASK)
    assert TASK.labels(rows) == LABELS
    kept = TASK.encode(rows, None, LABELS, 128, "data.train")
    assert sorted(kept["labels"]) == [0, 0, 1, 2]
    assert len(data.read(Source(path=str(tmp_path / "pictures"), split="test"), TASK)) == 2
    assert len(data.digest(rows)) == 64


def test_a_digest_of_texts_is_that_of_their_json(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["é", "b"], "label": [1, 0]})
    import hashlib

    lines = [{"label": 1, "text": "é"}, {"label": 0, "text": "b"}]
    plain = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    assert data.digest(rows) == hashlib.sha256(plain.encode()).hexdigest()


def test_images_stay_encoded_until_they_are_put_together(tmp_path: Path) -> None:
    path = checkpoint(vit(), tmp_path / "vit")
    processor = TASK.processor(path)
    rows = drawn(5)
    read = data.read(written(tmp_path / "rows.parquet", rows), TASK)
    kept = TASK.encode(read, processor, LABELS, 128, "data.train")
    assert kept.column_names == ["image", "labels"]
    assert kept[1]["image"]["bytes"] == encoded(rows[1][0])
    batches = data.batches(kept, TASK, processor, 2)
    assert [batch["labels"].tolist() for batch in batches] == [[0, 1], [2, 0], [1]]
    image = rows[2][0].resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    expected = (np.asarray(image, dtype=np.float64) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(batches[1]["pixel_values"][0], expected.transpose(2, 0, 1), atol=1e-5)


def test_gray_transparent_and_turned_images_become_upright_rgb(tmp_path: Path) -> None:
    processor = TASK.processor(checkpoint(vit(), tmp_path / "vit"))
    image = Image.fromarray(np.arange(16 * 24, dtype=np.uint8).reshape(16, 24) % 251)
    turned = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 270 degrees
    image.rotate(90, expand=True).save(turned, "PNG", exif=exif)
    rows = [encoded(image), encoded(image.convert("RGBA")), turned.getvalue()]
    batch = TASK.collate([{"image": {"bytes": blob, "path": None}, "labels": 0} for blob in rows], processor)
    assert batch["pixel_values"].shape == (3, 3, SIZE, SIZE)
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][2])


# ---- what is refused ----


def test_a_missing_image_column_is_named(tmp_path: Path) -> None:
    source = written(tmp_path / "rows.parquet", drawn(2)).model_copy(update={"image": "imgae"})
    with pytest.raises(DataError, match=r"no column 'imgae' \(Did you mean 'image'\?\); it has image, label\."):
        data.read(source, TASK)


@pytest.mark.parametrize(("kind", "values"), [("int64", [1, 2]), (r"List\(Value\('int64'\)\)", [[1], [2]])])
def test_a_column_of_numbers_holds_no_images(tmp_path: Path, kind: str, values: list[Any]) -> None:
    datasets.Dataset.from_dict({"image": values, "label": ["a", "b"]}).to_parquet(str(tmp_path / "rows.parquet"))
    with pytest.raises(DataError, match=rf"the image column 'image' holds {kind}, not images, encoded images as bytes"):
        data.read(Source(path=str(tmp_path / "rows.parquet")), TASK)


def damaged(blob: bytes) -> bytes:
    return blob[: len(blob) // 2] + bytes(len(blob) - len(blob) // 2)


@pytest.mark.parametrize("damage", [lambda _: b"no image at all", damaged, lambda blob: blob[:60]])
def test_a_broken_image_is_found_before_any_training(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    blobs = [(encoded(image), label) for image, label in drawn(3)]
    blobs[1] = (damage(blobs[1][0]), blobs[1][1])
    rows = data.read(written(tmp_path / "rows.parquet", blobs, BYTES), TASK)
    with pytest.raises(
        DataError, match=r"data\.train, row 1: The image cannot be decoded: .*as PNG or JPEG\."
    ) as caught:
        TASK.encode(rows, None, LABELS, 128, "data.train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "BMP", "TIFF", "PNG", "WEBP"])
def test_an_image_that_was_cut_off_is_told_before_it_is_needed(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    whole = encoded(noise, kind)
    check([{"bytes": whole, "path": None}], "train")
    with pytest.raises(DataError, match="train, row 0: The image cannot be decoded"):
        check([{"bytes": whole[: len(whole) // 2], "path": None}], "train")


def test_images_of_16_bits_are_scaled_and_those_without_a_range_refused() -> None:
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    cell = {"bytes": encoded(Image.fromarray(ramp)), "path": None}
    check([cell], "train")
    found = np.asarray(decode(cell))
    assert found.shape == (256, 256, 3)
    assert np.abs(found - (ramp / 257)[..., None]).max() <= 0.5
    fractions = encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF")
    with pytest.raises(DataError, match=r"row 0: .* it has fractions, whose range is not known"):
        check([{"bytes": fractions, "path": None}], "train")


def test_a_truncated_jpeg_is_told_when_it_is_decoded(tmp_path: Path) -> None:
    processor = TASK.processor(checkpoint(vit(), tmp_path / "vit"))
    blob = encoded(drawn(1)[0][0], "JPEG")
    row = {"image": {"bytes": blob[: len(blob) * 2 // 3], "path": "photo.jpg"}, "labels": 0}
    with pytest.raises(DataError, match=r"The image photo\.jpg cannot be decoded: .*truncated"):
        TASK.collate([row], processor)


def test_an_image_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    rows = data.read(written(tmp_path / "rows.parquet", [("gone.png", "dark")], datasets.Value("string")), TASK)
    with pytest.raises(DataError, match=r"data\.train, row 0: The image .*gone\.png cannot be read: .*No such file"):
        TASK.encode(rows, None, LABELS, 128, "data.train")


def test_a_cell_without_an_image_is_refused(tmp_path: Path) -> None:
    rows = data.read(written(tmp_path / "rows.parquet", [({"bytes": None, "path": None}, "dark")], STRUCT), TASK)
    with pytest.raises(DataError, match=r"row 0: The image without bytes or path cannot be read"):
        TASK.encode(rows, None, LABELS, 128, "data.train")


def test_a_label_that_training_has_not_seen_is_named(tmp_path: Path) -> None:
    rows = data.read(written(tmp_path / "rows.parquet", drawn(3)), TASK)
    with pytest.raises(DataError, match=r"data\.evaluation has labels .*: 'mixed'; the 2 known are 'dark', 'light'\."):
        TASK.encode(rows, None, LABELS[:2], 128, "data.evaluation")


# ---- the size of images ----


def test_an_image_size_is_kept_by_the_files_beside_a_model(tmp_path: Path) -> None:
    path = checkpoint(dinov2(), tmp_path / "dinov2")
    processor = TASK.processor(path, image_size=48)
    assert TASK.example(processor)["pixel_values"].shape == (3, 3, 48, 48)
    model = load_dense(path, TASK, LABELS)
    storage.save_model(model, processor, tmp_path / "saved")
    assert TASK.example(TASK.processor(str(tmp_path / "saved")))["pixel_values"].shape == (3, 3, 48, 48)
    require_learnable(model, TASK.example(processor) | {"labels": torch.zeros(3, dtype=torch.long)})


def test_a_center_crop_keeps_its_share_of_the_image(tmp_path: Path) -> None:
    path = checkpoint(vit(), tmp_path / "vit")
    BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}).save_pretrained(path)
    processor = TASK.processor(path, image_size=112)
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (128, 112)
    image = Image.fromarray(np.zeros((64, 200, 3), np.uint8))
    assert processor([image], return_tensors="np")["pixel_values"].shape == (1, 3, 112, 112)


def test_a_size_that_patches_do_not_divide_is_refused_with_those_that_fit(tmp_path: Path) -> None:
    path = checkpoint(vit(), tmp_path / "vit")
    with pytest.raises(ModelError, match=r"Images of 30 x 30 cannot be cut into whole patches of 8 x 8.*24 or 32\."):
        TASK.processor(path, image_size=30)
    with pytest.raises(ModelError, match=r"Images of 3 x 3 .*such as 8\."):
        TASK.processor(path, image_size=3)


def test_patches_that_overlap_take_sizes_that_they_do_not_divide(tmp_path: Path) -> None:
    config = HieraConfig(embed_dim=8, image_size=[32, 32], depths=[1], num_heads=[1], num_query_pool=0)
    path = checkpoint(HieraForImageClassification(config), tmp_path / "hiera")  # patches of 7 x 7, every 4
    assert TASK.example(TASK.processor(path, image_size=32))["pixel_values"].shape[1:] == (3, 32, 32)


def test_a_size_that_the_model_does_not_take_is_told_before_any_work(tmp_path: Path) -> None:
    path = checkpoint(vit(), tmp_path / "vit")
    batch = TASK.example(TASK.processor(path, image_size=40)) | {"labels": torch.zeros(3, dtype=torch.long)}
    with pytest.raises(
        ModelError, match=r"ViTForImageClassification cannot be trained on pixel_values \(3, 3, 40, 40\)"
    ):
        require_learnable(load_dense(path, TASK, LABELS), batch)


def test_settings_for_images_need_no_model_beside_them(tmp_path: Path) -> None:
    ViTImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(tmp_path)
    assert TASK.example(TASK.processor(str(tmp_path)))["pixel_values"].shape == (3, 3, 24, 24)


def test_images_of_no_fixed_size_are_refused(tmp_path: Path) -> None:
    path = checkpoint(vit(), tmp_path / "vit")
    ConvNextImageProcessorPil(size={"shortest_edge": 32}).save_pretrained(path)
    assert TASK.example(TASK.processor(path))["pixel_values"].shape == (3, 3, 32, 32)
    BitImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False).save_pretrained(path)
    with pytest.raises(ModelError, match=r"gives images of different shapes, .*only fixed sizes can be batched"):
        TASK.processor(path)


def test_a_checkpoint_without_an_image_processor_is_refused(tmp_path: Path) -> None:
    path = checkpoint(vit(), tmp_path / "vit")
    (Path(path) / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"No image processor can be read from .*vit: "):
        TASK.processor(path)


def test_the_settings_of_timm_are_followed_without_torchvision() -> None:
    image = drawn(1)[0][0]  # 30 wide, 40 high
    found = from_timm(TIMM)([image], return_tensors="np")["pixel_values"][0]
    resized = image.resize((40, 53), Image.Resampling.BICUBIC)  # 32 / 0.8 on the shorter edge
    left, top = (40 - SIZE) // 2, (53 - SIZE) // 2
    cropped = np.asarray(resized.crop((left, top, left + SIZE, top + SIZE)), np.float64)
    np.testing.assert_allclose(found, (cropped / 255 - 0.5).transpose(2, 0, 1) / 0.5, atol=1e-5)


def test_a_checkpoint_as_timm_writes_it_is_read_or_says_what_is_missing(tmp_path: Path) -> None:
    settings = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": TIMM}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    if not is_timm_available():
        with pytest.raises(DependencyError, match=r"requires the timm library\. .*pip install 'rankfold\[timm\]'"):
            TASK.processor(str(tmp_path))
        return
    processor = TASK.processor(str(tmp_path), image_size=64)
    assert (processor.size["shortest_edge"], processor.crop_size["width"]) == (80, 64)


def test_a_text_task_has_no_use_for_an_image_size(tmp_path: Path) -> None:
    from compressor.tasks.text_classification import TextClassification

    with pytest.raises(ModelError, match=r"model\.image_size is 98, but the task reads texts"):
        TextClassification().processor(str(tmp_path), image_size=98)
