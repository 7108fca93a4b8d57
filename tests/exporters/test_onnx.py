"""The ONNX export of real weights: what it computes, what stands in it, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from compressor import registry, storage
from compressor.errors import DependencyError, ExportError, ResourceError
from compressor.layers import FactorizedLinear, PivotedLinear
from exporters.base import Exported, Session
from exporters.folder import new_folder
from exporters.onnx import OnnxExporter
from exporters.onnx import file as onnx_file
from exporters.onnx import graph as onnx_graph
from exporters.onnx.precisions import PRECISIONS
from exporters.record import EXPORT_FILE

pytestmark = pytest.mark.slow
GUIDE = Path(__file__).parents[2] / "docs" / "add-an-exporter.md"
Exports = Callable[[str, str], Exported]


class Bag(nn.Module):
    """The smallest model with token inputs: the mean of embeddings, classified."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[..., None].float()
        return self.head((self.table(input_ids) * mask).sum(1) / mask.sum(1))


class FixedLength(Bag):
    """Works for seven tokens only."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(7 * 8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.table(input_ids).flatten(1))


class Noisy(Bag):
    """Another answer every time."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(input_ids, attention_mask) + torch.rand(3)


class Branching(Bag):
    """Takes a path that depends on the values."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = super().forward(input_ids, attention_mask)
        return logits if input_ids.sum() > 3 else -logits


class Tied(Bag):
    """Reads its embedding table a second time, transposed, as a language model's head does."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3000, 128)  # transposed over what the ONNX optimizer folds by itself
        self.head = nn.Linear(128, 3000, bias=False)
        self.head.weight = self.table.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.table(input_ids))


@pytest.fixture
def tokens() -> dict[str, Tensor]:
    ids = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def weights(folder: Path) -> dict[str, np.ndarray]:
    """The initializers of an exported graph, by name."""
    graph = onnx.load(folder / "model.onnx").graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def operators(folder: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(folder / "model.onnx").graph.node)


def batch(rows: int, columns: int) -> dict[str, Tensor]:
    """Random tokens of BERT's vocabulary with a different padding in every row."""
    generator = torch.Generator().manual_seed(rows * columns)
    ids = torch.randint(1000, 30000, (rows, columns), generator=generator)
    mask = (torch.arange(columns) < torch.arange(columns, columns - rows, -1).clamp(min=1)[:, None]).long()
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask}


def run(export: Exported, inputs: dict[str, Tensor]) -> np.ndarray:
    return OnnxExporter().load(export.path)({name: tensor.numpy() for name, tensor in inputs.items()})["logits"]


@pytest.mark.parametrize("which", ["dense", "factorized"])
@pytest.mark.parametrize("shape", [(1, 3), (1, 64), (5, 21), (3, 512)])
def test_the_graph_computes_what_the_model_computes_at_any_shape(
    exported: Exports, request: pytest.FixtureRequest, which: str, shape: tuple[int, int]
) -> None:
    inputs = batch(*shape)
    with torch.no_grad():
        expected = request.getfixturevalue(which)(**inputs).logits.numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(run(exported(which, "fp32"), inputs), expected, rtol=0, atol=1e-4)


def test_only_factors_of_the_compressed_layers_are_stored(exported: Exports, factorized: nn.Module) -> None:
    export = exported("factorized", "fp32")
    stored = weights(export.path)
    layers = [layer for layer in factorized.modules() if isinstance(layer, FactorizedLinear | PivotedLinear)]
    assert len(layers) == 36
    expected = Counter(
        tuple(reversed(child.weight.shape))
        for layer in layers
        for child in layer.children()  # (in, out) for MatMul
    )
    found = Counter(array.shape for name, array in stored.items() if "encoder" in name and array.ndim == 2)
    assert found == expected


def test_every_compressed_layer_is_two_products(exported: Exports) -> None:
    before, after = operators(exported("dense", "fp32").path), operators(exported("factorized", "fp32").path)
    assert before["MatMul"] == 36 + 2 * 6  # layers, and two products of activations per attention
    assert after["MatMul"] == 2 * 36 + 2 * 6
    assert before["Gemm"] == after["Gemm"] == 2  # pooler and classifier


def test_the_weight_bytes_are_those_of_the_model(exported: Exports, factorized: nn.Module) -> None:
    facts = exported("factorized", "fp32").facts
    linear = sum(layer.weight.numel() for layer in factorized.modules() if isinstance(layer, nn.Linear))
    assert facts["matmul_weight_bytes"] == 4 * linear
    floats = sum(parameter.numel() for parameter in factorized.parameters())
    assert 4 * floats <= facts["initializer_bytes"] < 4 * floats + 100_000  # and some integer constants
    assert facts["initializer_bytes"] < facts["file_bytes"]["model.onnx"] < facts["initializer_bytes"] + 300_000


def test_weights_carry_the_names_of_their_modules(exported: Exports, factorized: nn.Module) -> None:
    stored = weights(exported("factorized", "fp32").path)
    state = factorized.state_dict()
    matrices = {name for name, tensor in state.items() if tensor.ndim == 2 and tensor.is_floating_point()}
    for name in matrices:
        array = stored[name] if name in stored else stored[f"{name}.T"].T
        np.testing.assert_array_equal(array, state[name].numpy())


def test_the_graph_tells_nothing_of_the_exporting_machine(exported: Exports) -> None:
    graph = onnx.load(exported("dense", "fp32").path / "model.onnx")
    del graph.graph.initializer[:]  # whose bytes may spell anything
    raw = graph.SerializeToString()
    assert b".py" not in raw
    assert str(Path.cwd()).encode() not in raw


def test_the_folder_says_what_it_is_and_how_it_was_made(exported: Exports, dense: nn.Module) -> None:
    export = exported("dense", "fp32")
    facts = json.loads((export.path / EXPORT_FILE).read_text())
    assert facts == export.facts
    assert (facts["runtime"], facts["precision"], facts["opset"]) == ("onnx", "fp32", 20)
    assert facts["inputs"][0] == {"name": "input_ids", "dtype": "int64", "axes": ["batch_size", "sequence_length"]}
    assert facts["outputs"] == [{"name": "logits", "dtype": "float32", "axes": ["batch_size", 32]}]
    assert [figure["shape"][0] for figure in facts["parity"]] == [1, 2, 3]
    assert max(figure["max_difference"] for figure in facts["parity"]) < 1e-4
    assert facts["versions"]["torch"] == torch.__version__
    assert json.loads((export.path / "config.json").read_text())["model_type"] == "bert"
    assert export.model_files == ("model.onnx",)


def test_the_digest_is_of_the_weights_in_name_order() -> None:
    model = Bag()
    digest = hashlib.sha256()
    for name in ("head.bias", "head.weight", "table.weight"):
        array = model.state_dict()[name].numpy()
        digest.update(f"{name} torch.float32 {array.shape}\n".encode() + array.tobytes())
    assert storage.weights_digest(model) == digest.hexdigest()
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    assert storage.weights_digest(model) != digest.hexdigest()


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, tokens: dict[str, Tensor]) -> None:
    graphs = [OnnxExporter().export(Bag(), tokens, tmp_path / name).path / "model.onnx" for name in ("a", "b")]
    assert graphs[0].read_bytes() == graphs[1].read_bytes()


@pytest.mark.parametrize("which", ["dense", "factorized"])
def test_int8_leaves_no_weight_in_fp32(exported: Exports, which: str) -> None:
    export = exported(which, "int8")
    stored = weights(export.path)
    layers = {"dense": 36, "factorized": 72}[which]
    assert operators(export.path)["MatMulInteger"] == layers + 2  # and pooler and classifier
    assert operators(export.path)["MatMul"] == 2 * 6  # products of activations with activations
    assert not [name for name, array in stored.items() if array.dtype == np.float32 and array.ndim > 1]


@pytest.mark.parametrize("which", ["dense", "factorized"])
def test_int8_is_a_quarter_of_fp32_and_agrees_with_it(exported: Exports, texts: dict[str, Tensor], which: str) -> None:
    full, small = exported(which, "fp32"), exported(which, "int8")
    assert small.facts["matmul_weight_bytes"] * 4 == full.facts["matmul_weight_bytes"]
    assert small.facts["file_bytes"]["model.onnx"] < 0.27 * full.facts["file_bytes"]["model.onnx"]
    expected, found = run(full, texts), run(small, texts)
    distance = np.linalg.norm(expected[:, None] - found[None], axis=-1)  # (N, N)
    assert (distance.argmin(axis=0) == np.arange(len(found))).all()  # every text is nearest to itself
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.95
    assert np.abs(found - expected).max() > 1e-3  # it did compute in int8


def test_int8_weights_keep_to_seven_bits_per_channel(exported: Exports) -> None:
    stored = weights(exported("dense", "int8").path)
    name = "bert.encoder.layer.0.intermediate.dense.weight.T"
    assert stored[f"{name}_scale"].shape == (1536,)
    assert np.abs(stored[f"{name}_quantized"].astype(int)).max() <= 64


def test_int8_takes_the_graph_of_the_fp32_export_beside_it(
    exported: Exports, dense: nn.Module, example: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported("dense", "fp32").path, tmp_path / "onnx-fp32")
    monkeypatch.setattr(onnx_graph, "write", lambda *_: pytest.fail("traced again"))
    export = OnnxExporter(precision="int8", embeddings=False).export(dense, example, tmp_path / "onnx-int8")
    assert export.facts["reused_fp32_graph"]
    assert weights(export.path)["bert.embeddings.word_embeddings.weight"].dtype == np.float32


def test_int8_traces_anew_where_the_weights_have_changed(tmp_path: Path, tokens: dict[str, Tensor]) -> None:
    model = Bag()
    OnnxExporter().export(model, tokens, tmp_path / "onnx-fp32")
    with torch.no_grad():
        model.head.bias += 1
    export = OnnxExporter(precision="int8").export(model, tokens, tmp_path / "onnx-int8")
    assert not export.facts["reused_fp32_graph"]
    np.testing.assert_array_equal(weights(export.path)["head.bias"], model.head.bias.detach().numpy())
    assert sorted(file.name for file in export.path.iterdir()) == [EXPORT_FILE, "model.onnx"]


def test_a_tied_head_is_quantized_behind_its_transpose(tmp_path: Path, tokens: dict[str, Tensor]) -> None:
    full = OnnxExporter().export(Tied(), tokens, tmp_path / "onnx-fp32")
    assert operators(full.path)["Transpose"] == 1  # stored once, read twice
    assert full.facts["matmul_weight_bytes"] == 3000 * 128 * 4
    small = OnnxExporter(precision="int8").export(Tied(), tokens, tmp_path / "onnx-int8")
    assert operators(small.path)["MatMulInteger"] == 1
    assert operators(small.path)["MatMul"] == 0
    assert small.facts["matmul_weight_bytes"] == 3000 * 128


@pytest.mark.parametrize("precision", PRECISIONS)
def test_large_weights_move_into_one_file_beside_the_graph(
    tmp_path: Path, tokens: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(onnx_file, "LARGE", 1000)
    exporter = OnnxExporter(precision=precision)  # type: ignore[arg-type]
    samples = [{name: tensor.numpy() for name, tensor in tokens.items()}]
    export = exporter.export(Tied(), tokens, tmp_path / "export", samples)
    assert export.model_files == ("model.onnx", "model.onnx.data")
    assert export.facts["file_bytes"]["model.onnx"] < 20_000
    moved = (tmp_path / "export").rename(tmp_path / "elsewhere")
    found = exporter.load(moved)(samples[0])["logits"]
    assert found.shape == (2, 7, 3000)


def test_an_existing_folder_is_not_overwritten(tmp_path: Path, tokens: dict[str, Tensor]) -> None:
    (tmp_path / "onnx-fp32").mkdir()
    with pytest.raises(ExportError, match="onnx-fp32 exists already"):
        OnnxExporter().export(Bag(), tokens, tmp_path / "onnx-fp32")
    assert list((tmp_path / "onnx-fp32").iterdir()) == []


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (FixedLength(), "fixed sequence_length of input_ids to 7"),
        (Noisy(), "differs from the model by"),
        (Branching(), r"cannot export Branching.*test_onnx\.py:\d+"),
        (Bag().bfloat16(), r"weights of torch\.bfloat16; call `model\.float\(\)`"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_that_cannot_be_exported_is_told_why(
    tmp_path: Path, tokens: dict[str, Tensor], model: nn.Module, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        OnnxExporter().export(model, tokens, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_an_example_of_one_row_is_refused(tmp_path: Path, tokens: dict[str, Tensor]) -> None:
    single = {name: tensor[:1] for name, tensor in tokens.items()}
    with pytest.raises(ExportError, match="at least 2 rows and 2 tokens"):
        OnnxExporter().export(Bag(), single, tmp_path / "export")


def test_the_model_is_exported_in_evaluation_mode_and_given_back_as_it_was(
    tmp_path: Path, tokens: dict[str, Tensor]
) -> None:
    model = nn.ModuleDict({"bag": Bag(), "drop": nn.Dropout(0.5)})
    model.forward = lambda **inputs: model["drop"](model["bag"](**inputs))  # type: ignore[method-assign]
    model.train()
    model["bag"].eval()
    OnnxExporter().export(model, tokens, tmp_path / "export")
    assert (model.training, model["drop"].training, model["bag"].training) == (True, True, False)


def test_what_a_killed_export_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".export.partial").mkdir()
    (tmp_path / ".export.partial" / "half").touch()
    with new_folder(tmp_path / "export") as scratch:
        (scratch / "whole").touch()
        assert not (tmp_path / "export").exists()
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")] == ["export", "export/whole"]


def test_a_full_disk_is_a_matter_of_resources(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No space left"), new_folder(tmp_path / "export"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_the_registry_knows_the_exporter() -> None:
    assert registry.load("exporters", "onnx") is OnnxExporter
    assert OnnxExporter.name == "onnx"
    with pytest.raises(
        ExportError,
        match="int8-static, int8-weights, int4, fp32-fused and int8-fused, not 'int3'",
    ):
        OnnxExporter(precision="int3")  # type: ignore[arg-type]


def test_the_exporter_of_the_guide_works(
    tmp_path: Path, tokens: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)[0]
    (tmp_path / "exporter_of_the_guide.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    row = {"onnx-optimized": "exporter_of_the_guide:OptimizedOnnx"}
    monkeypatch.setattr(registry, "TABLES", registry.TABLES | {"exporters": row})
    exporter = registry.load("exporters", "onnx-optimized")(precision="fp32")
    model = Bag().eval()
    export = exporter.export(model, tokens, tmp_path / "export")
    found = run(export, tokens)
    np.testing.assert_allclose(found, model(**tokens).detach().numpy(), atol=1e-5)
    assert sorted(file.name for file in export.path.iterdir()) == [EXPORT_FILE, "model.onnx"]
    domains = {opset.domain for opset in onnx.load(export.path / "model.onnx").opset_import}
    assert "com.microsoft" in domains  # ONNX Runtime wrote it
    with pytest.raises(DependencyError, match="runs on the cpu, not on cuda"):
        exporter.load(export.path, Session("cuda"))
