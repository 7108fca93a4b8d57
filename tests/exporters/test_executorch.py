"""The ExecuTorch program: what it computes, row by row, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from compressor import registry
from compressor.errors import ArtifactError, DependencyError, ExportError, RuntimeFailure
from exporters.base import Exported, Session
from exporters.executorch import ExecutorchExporter
from exporters.record import EXPORT_FILE
from validators.base import Evaluation, Subject
from validators.child import ask

Padded = Callable[..., dict[str, Tensor]]
Folded = Callable[[Any], Any]
Exports = Callable[[str], Exported]
ONE = Session(threads=1)
needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs ExecuTorch: pip install 'rankfold[executorch]'"
)
# torchao and ExecuTorch call what torch has deprecated, on import and in their passes
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Sorting(nn.Module):
    """Computes what no kernel of ExecuTorch does."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.linalg.qr(self.table(input_ids))[1].sum(1)


@pytest.fixture(scope="module")
def bert(tiny_bert: Callable[..., Any], folded: Folded) -> Any:
    """A folded classifier."""
    return folded(tiny_bert())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, bert: Any, padded: Padded) -> Exports:
    """Precision -> the classifier's export, made once and not to be changed."""
    folder, done = tmp_path_factory.mktemp("executorch"), dict[str, Exported]()

    def export(precision: str) -> Exported:
        if precision not in done:
            exporter = ExecutorchExporter(precision=precision)  # type: ignore[arg-type]
            done[precision] = exporter.export(bert, padded(2, 7), folder / f"executorch-{precision}")
        return done[precision]

    return export


@pytest.fixture
def copy(exported: Exports, tmp_path: Path) -> Path:
    """A copy of the fp32 export that a test may spoil."""
    return Path(shutil.copytree(exported("fp32").path, tmp_path / "copy"))


def arrays(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@needs_executorch
@pytest.mark.parametrize("shape", [(1, 3), (1, 16), (5, 9), (3, 12)])
def test_the_program_computes_what_the_model_computes_at_any_shape(
    exported: Exports, bert: Any, padded: Padded, shape: tuple[int, int]
) -> None:
    inputs = padded(*shape)
    found = ExecutorchExporter().load(exported("fp32").path, ONE)(arrays(inputs) | {"labels": np.zeros(3)})["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(found, bert(**inputs).logits.numpy(), rtol=0, atol=1e-5)


@needs_executorch
def test_int8_is_smaller_and_near(exported: Exports, bert: Any, padded: Padded) -> None:
    small, full = exported("int8"), exported("fp32")
    assert small.facts["file_bytes"]["model.pte"] < full.facts["file_bytes"]["model.pte"]
    assert "torchao.dequantize_affine" in small.facts["nodes"]
    inputs = padded(16, 9)
    with torch.no_grad():
        expected = bert(**inputs).logits.numpy()
    found = ExecutorchExporter("int8").load(small.path, ONE)(arrays(inputs))["logits"]
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@needs_executorch
def test_quantizing_leaves_the_model_as_it_was(exported: Exports, bert: Any) -> None:
    exported("int8")
    assert {tensor.dtype for tensor in bert.state_dict().values()} <= {torch.float32, torch.int64}
    assert bert.bert.embeddings.word_embeddings.padding_idx == 0


@needs_executorch
def test_the_folder_says_what_it_is_and_how_it_was_made(exported: Exports) -> None:
    export = exported("fp32")
    facts = json.loads((export.path / EXPORT_FILE).read_text())
    assert facts == export.facts
    assert (facts["runtime"], facts["precision"], facts["max_length"]) == ("executorch", "fp32", 16)  # its positions
    assert facts["inputs"][0] == {"name": "input_ids", "dtype": "int64", "axes": [1, "sequence_length"]}
    assert facts["nodes"]["executorch_call_delegate"] > 0
    assert [figure["shape"][0] for figure in facts["parity"]] == [1, 2, 3]
    assert facts["file_bytes"] == {"model.pte": (export.path / "model.pte").stat().st_size}
    assert {file.name for file in export.path.iterdir()} == {"model.pte", "config.json", EXPORT_FILE}


@needs_executorch
def test_results_stay_as_they_were_when_the_next_row_is_computed(exported: Exports, padded: Padded) -> None:
    runner = ExecutorchExporter().load(exported("fp32").path, ONE)
    first = runner(arrays(padded(1, 5)))["logits"]
    kept = first.copy()
    runner(arrays(padded(4, 8)))
    np.testing.assert_array_equal(first, kept)


@needs_executorch
def test_an_image_classifier_has_no_free_axis(folded: Folded, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = folded(ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, num_labels=3, **sizes)))
    images = {"pixel_values": torch.randn(3, 3, 32, 32)}
    export = ExecutorchExporter().export(model, images, tmp_path / "vit")
    assert export.facts["inputs"] == [{"name": "pixel_values", "dtype": "float32", "axes": [1, 3, 32, 32]}]
    found = ExecutorchExporter().load(export.path)(arrays(images))["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(found, model(**images).logits.numpy(), rtol=0, atol=1e-5)


@needs_executorch
def test_more_tokens_than_planned_for_are_refused_in_a_sentence(exported: Exports, padded: Padded) -> None:
    runner = ExecutorchExporter().load(exported("fp32").path, ONE)
    with pytest.raises(RuntimeFailure, match=r"takes rows of 16 tokens at most, not of 17.*larger `max_length`"):
        runner(arrays(padded(1, 17)))


@needs_executorch
def test_what_executorch_refuses_to_compute_is_told(exported: Exports, padded: Padded) -> None:
    runner = ExecutorchExporter().load(exported("fp32").path, ONE)
    inputs = arrays(padded(2, 5))
    with pytest.raises(RuntimeFailure, match=r"failed to run .*model\.pte on input_ids \(2, 5\).*in row 0: .*0x12"):
        runner(inputs | {"input_ids": inputs["input_ids"] + 1000})


@needs_executorch
def test_a_model_without_kernels_is_refused(padded: Padded, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot run what it made of the model.*kernel.*another runtime"):
        ExecutorchExporter().export(Sorting(), padded(2, 7), tmp_path / "sorting")
    assert not (tmp_path / "sorting").exists()


@needs_executorch
def test_a_file_that_was_cut_off_is_refused(copy: Path) -> None:
    file = copy / "model.pte"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RuntimeFailure, match=r"ExecuTorch refuses .*model\.pte \(1000 bytes\): .*restore it"):
        ExecutorchExporter().load(copy, ONE)


@needs_executorch
def test_its_memory_is_measured_in_a_process_of_its_own(exported: Exports, padded: Padded) -> None:
    nothing = Evaluation(registry.task("text-classification"), ())  # a subject needs one; the child never reads it
    reference: Any = None
    subject = Subject("executorch", "executorch", exported("fp32").path, nothing, ONE, reference)
    stages = ask("memory", [subject], arrays(padded(1, 5)), steady_runs=1)
    assert stages["peak"] >= stages["floor"] > 100  # MiB: torch and ExecuTorch themselves, which belong to the floor


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model\.pte and .*export\.json missing: .* is no whole export"):
        ExecutorchExporter().load(tmp_path, ONE)


def test_cuda_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pte").touch()
    (tmp_path / EXPORT_FILE).write_text(
        '{"runtime": "executorch", "precision": "fp32", "inputs": [{"name": "x", "dtype": "int64"}]}'
    )
    with pytest.raises(DependencyError, match=r"runs on the cpu, not on cuda"):
        ExecutorchExporter().load(tmp_path, Session("cuda"))


def test_another_precision_is_refused() -> None:
    with pytest.raises(ExportError, match=r"writes fp32 and int8, not 'fp16'"):
        ExecutorchExporter(precision="fp16")  # type: ignore[arg-type]


@pytest.mark.skipif(importlib.util.find_spec("executorch") is not None, reason="ExecuTorch is installed")
def test_without_the_package_its_command_is_named(bert: Any, padded: Padded, tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match=r"pip install 'rankfold\[executorch\]'"):
        ExecutorchExporter().export(bert, padded(2, 7), tmp_path / "export")
