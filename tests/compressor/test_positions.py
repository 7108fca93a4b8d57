"""Vision models at another image size compute what their own interpolation computes, once and for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    CLIPConfig,
    CLIPForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from compressor import storage
from compressor.errors import ModelError
from compressor.models import load_dense, quiet_libraries, require_learnable
from compressor.positions import at_size
from compressor.tasks.image_classification import ImageClassification
from exporters.onnx import OnnxExporter

TASK = ImageClassification()
LABELS = ["dark", "light", "mixed"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
LABELED = {"num_labels": 3}
TOWER = SIZES | {"intermediate_size": 48} | LABELED
WORDS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}
WORDS |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BUILDS = {
    "vit": lambda: ViTForImageClassification(ViTConfig(**TOWER)),
    "deit": lambda: DeiTForImageClassification(DeiTConfig(**TOWER)),
    "clip": lambda: CLIPForImageClassification(CLIPConfig(vision_config=TOWER, text_config=WORDS, **LABELED)),
    "siglip": lambda: SiglipForImageClassification(SiglipConfig(vision_config=TOWER, text_config=WORDS, **LABELED)),
}
every_model = pytest.mark.parametrize("name", BUILDS)


def built(name: str) -> Any:
    """A random model whose positions matter."""
    torch.manual_seed(0)
    model = BUILDS[name]().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "position_embedding" in key:
                parameter.normal_()
    return model


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


@every_model
@pytest.mark.parametrize("size", [16, 48])
def test_the_logits_are_those_of_the_models_own_interpolation(name: str, size: int) -> None:
    model = built(name)
    images = torch.randn(2, 3, size, size)
    resized = at_size(model, size)
    with torch.no_grad():
        expected = model(images, interpolate_pos_encoding=True).logits
        found = resized(images).logits
        moved = at_size(model, 32)(torch.randn(2, 3, 32, 32)).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert moved.shape == expected.shape
    assert model.training is False
    assert resized.training is False


@every_model
def test_the_size_of_the_checkpoint_changes_nothing(name: str) -> None:
    model = built(name)
    assert at_size(model, 32) is model
    assert at_size(model, None) is model


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_a_resized_model_is_saved_loaded_and_exported_at_its_size(name: str, tmp_path: Path) -> None:
    built(name).save_pretrained(tmp_path / "dense")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "dense")
    path = str(tmp_path / "dense")
    model = load_dense(path, TASK, LABELS, image_size=48)
    processor = TASK.processor(path, image_size=48)
    batch = TASK.example(processor)
    require_learnable(model, batch | {"labels": torch.tensor([0, 1, 2])}, LABELS)
    storage.save_model(model, processor, tmp_path / "saved")
    again = storage.load(tmp_path / "saved", "image-classification")
    assert again.config.image_size == 48
    assert again.config.id2label == dict(enumerate(LABELS))
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    made = OnnxExporter().export(again, batch, tmp_path / "onnx-fp32")
    assert made.facts["inputs"][0]["axes"] == ["batch_size", 3, 48, 48]


def test_models_that_need_no_interpolation_or_do_it_themselves_are_left_alone() -> None:
    stages = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}
    others = [
        Dinov2ForImageClassification(Dinov2Config(**SIZES, mlp_ratio=2)),
        SwinForImageClassification(SwinConfig(**stages, image_size=32)),
        BeitForImageClassification(BeitConfig(**TOWER, use_relative_position_bias=True)),
    ]
    for model in others:
        assert at_size(model, 48) is model
        assert model(torch.randn(1, 3, 48, 48)).logits.shape[0] == 1


def test_positions_that_the_model_cannot_interpolate_are_told_before_any_training() -> None:
    model = built("vit")
    embeddings = model.vit.embeddings
    without_method = {"forward": type(embeddings).forward}  # as where a checkpoint ships its code
    embeddings.__class__ = type("Embeddings", (torch.nn.Module,), without_method)
    assert at_size(model, 48) is model
    images = {"pixel_values": torch.randn(1, 3, 48, 48), "labels": torch.tensor([0])}
    with pytest.raises(
        ModelError, match=r"ViTForImageClassification cannot be trained on pixel_values \(1, 3, 48, 48\)"
    ):
        require_learnable(model, images)
