"""The torch.export program: what it computes, what stands in the file, and what it refuses."""

from __future__ import annotations

import copy as copying
import gc
import json
import pickle
import shutil
import weakref
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from compressor import nvidia
from compressor.errors import ArtifactError, DependencyError, ExportError, ResourceError, RuntimeFailure
from exporters import torch_export
from exporters.base import Exported, Session
from exporters.record import EXPORT_FILE
from exporters.torch_export import TorchExporter
from validators.base import Evaluation, Subject
from validators.child import ask

Padded = Callable[..., dict[str, Tensor]]
Folded = Callable[[Any], Any]
ONE = Session(threads=1)
NO_CUDA, NEEDS_CUDA = not torch.cuda.is_available(), "needs an NVIDIA GPU and a CUDA build of torch"


class FixedLength(nn.Module):
    """Works for seven tokens only."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(7 * 8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.table(input_ids).flatten(1))


class Branching(nn.Module):
    """Takes a path that depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.table(input_ids).sum(1)
        return found if input_ids.sum() > 3 else -found


class Tied(nn.Module):
    """Reads its embedding table a second time, as a language model's head does; and an array of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.full((8,), 2.0))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.table(input_ids) * self.scale)


def arrays(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@pytest.fixture(scope="module")
def bert(tiny_bert: Callable[..., Any], folded: Folded) -> Any:
    """A folded classifier."""
    return folded(tiny_bert())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, bert: Any, padded: Padded) -> Exported:
    """The classifier's export, not to be changed."""
    return TorchExporter().export(bert, padded(2, 7), tmp_path_factory.mktemp("torch") / "torch-export-fp32")


@pytest.fixture
def copy(exported: Exported, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(exported.path, tmp_path / "copy"))


@pytest.mark.parametrize("shape", [(1, 3), (1, 16), (5, 9), (3, 12)])
def test_the_program_computes_what_the_model_computes_at_any_shape(
    exported: Exported, bert: Any, shape: tuple[int, int], padded: Padded
) -> None:
    inputs = padded(*shape)
    found = TorchExporter().load(exported.path, ONE)(arrays(inputs) | {"labels": np.zeros(3)})["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(found, bert(**inputs).logits.numpy(), rtol=0, atol=1e-5)


def test_the_folder_says_what_it_is_and_how_it_was_made(exported: Exported, bert: Any) -> None:
    facts = json.loads((exported.path / EXPORT_FILE).read_text())
    assert facts == exported.facts
    assert (facts["runtime"], facts["precision"]) == ("torch-export", "fp32")
    assert facts["inputs"][0] == {"name": "input_ids", "dtype": "int64", "axes": ["batch_size", "sequence_length"]}
    assert [figure["shape"][0] for figure in facts["parity"]] == [1, 2, 3]
    linear = [layer.weight.numel() for layer in bert.modules() if isinstance(layer, nn.Linear)]
    assert facts["matmul_weight_bytes"] == 4 * sum(linear)
    assert facts["nodes"]["aten.linear.default"] == len(linear)
    assert facts["file_bytes"] == {"model.pt2": (exported.path / "model.pt2").stat().st_size}
    assert {file.name for file in exported.path.iterdir()} == {"model.pt2", "config.json", EXPORT_FILE}


def test_the_file_holds_nothing_pickled_and_nothing_of_the_exporting_machine(exported: Exported) -> None:
    with zipfile.ZipFile(exported.path / "model.pt2") as archive:
        sizes = {entry.filename.partition("/")[2]: entry.file_size for entry in archive.infolist()}
        graph = archive.read(next(name for name in archive.namelist() if name.endswith("models/model.json"))).decode()
    assert sizes["data/sample_inputs/model.pt"] == 0
    assert ".py" not in graph
    assert str(Path.cwd()) not in graph


def test_what_is_tied_is_stored_and_counted_once(tmp_path: Path, padded: Padded) -> None:
    export = TorchExporter().export(Tied(), padded(2, 7), tmp_path / "tied")
    assert export.facts["matmul_weight_bytes"] == 50 * 8 * 4
    assert export.facts["initializer_bytes"] == 50 * 8 * 4 + 8 * 4


def test_a_decoder_gives_the_logits_of_the_whole_text(tmp_path: Path, padded: Padded, folded: Folded) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.4)
    model = folded(LlamaForCausalLM(config))
    runner = TorchExporter().load(TorchExporter().export(model, padded(2, 7), tmp_path / "llama").path, ONE)
    inputs = padded(1, 11)
    with torch.no_grad():
        np.testing.assert_allclose(runner(arrays(inputs))["logits"], model(**inputs).logits.numpy(), rtol=0, atol=1e-4)


def test_a_missing_input_is_named(exported: Exported) -> None:
    with pytest.raises(RuntimeFailure, match="needs the inputs attention_mask too; got input_ids"):
        TorchExporter().load(exported.path, ONE)({"input_ids": np.ones((1, 3))})


def test_inputs_that_do_not_fit_are_told_with_their_shapes(exported: Exported) -> None:
    runner = TorchExporter().load(exported.path, ONE)
    with pytest.raises(RuntimeFailure, match=r"model\.pt2 on input_ids \(1, 3\), attention_mask \(1, 4\): "):
        runner({"input_ids": np.ones((1, 3)), "attention_mask": np.ones((1, 4))})


def test_threads_are_those_asked_for(exported: Exported) -> None:
    before = torch.get_num_threads()
    try:
        TorchExporter().load(exported.path, Session(threads=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["model.pt2", EXPORT_FILE])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=f"{copy / name} missing"):
        TorchExporter().load(copy)


def test_a_record_that_does_not_name_the_inputs_is_told(copy: Path) -> None:
    (copy / EXPORT_FILE).write_text('{"runtime": "torch-export", "precision": "fp32"}')
    with pytest.raises(ArtifactError, match="does not name the program's inputs"):
        TorchExporter().load(copy)
    (copy / EXPORT_FILE).write_text('{"runtime": "torch-export"}')
    with pytest.raises(ArtifactError, match=r"export\.json cannot be read \(KeyError\('precision'\)\)"):
        TorchExporter().load(copy)


def test_a_file_that_was_cut_off_is_refused_with_its_path(copy: Path) -> None:
    file = copy / "model.pt2"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(RuntimeFailure, match=f"{file} is no program of torch.export"):
        TorchExporter().load(copy)


class Normalized(nn.Module):
    """Reads float inputs, as image models do, and has a saved and an unsaved array."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.norm.running_mean = torch.linspace(-1, 1, 6)
        self.register_buffer("table", torch.linspace(1, 2, 6), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.norm(features) * self.table.to(features.dtype))


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_computes_what_torch_computes_in_it(
    tmp_path: Path, bert: Any, padded: Padded, precision: Literal["fp16", "bf16"], dtype: torch.dtype
) -> None:
    before = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    export = TorchExporter(precision=precision).export(bert, padded(2, 7), tmp_path / "half")
    inputs = padded(3, 12)
    found = TorchExporter().load(export.path, ONE)(arrays(inputs))["logits"]
    assert found.dtype == np.float32
    half = copying.deepcopy(bert).to(dtype)
    with torch.no_grad():
        np.testing.assert_array_equal(found, half(**inputs).logits.float().numpy())
        assert 0 < np.abs(found - bert(**inputs).logits.numpy()).max() < 0.1
    full = sum(tensor.nbytes for tensor in bert.state_dict().values() if tensor.is_floating_point())
    assert export.facts["initializer_bytes"] == pytest.approx(full / 2, rel=0.02)  # token types are integers
    assert all(torch.equal(tensor, before[name]) for name, tensor in bert.state_dict().items())  # the model is left


def test_half_precision_takes_floats_and_keeps_what_is_not_saved(tmp_path: Path) -> None:
    model = Normalized().eval()
    export = TorchExporter(precision="bf16").export(model, {"features": torch.randn(2, 6)}, tmp_path / "half")
    assert export.facts["inputs"] == [{"name": "features", "dtype": "float32", "axes": ["batch_size", 6]}]
    features = torch.randn(5, 6)
    found = TorchExporter().load(export.path, ONE)({"features": features.numpy()})["logits"]
    with torch.no_grad():
        np.testing.assert_allclose(found, model(features).numpy(), atol=0.05)
    kept = torch.export.load(export.path / "model.pt2").constants
    assert [tensor.dtype for tensor in kept.values() if tensor.shape == (6,)] == [torch.float32]


def test_half_precision_that_overflows_is_refused(tmp_path: Path, padded: Padded) -> None:
    model = Tied()
    model.scale.fill_(1e5)  # above what fp16 holds
    with pytest.raises(ExportError, match="logits that are not finite"):
        TorchExporter(precision="fp16").export(model, padded(2, 7), tmp_path / "half")
    TorchExporter(precision="bf16").export(model, padded(2, 7), tmp_path / "brain")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize(
    "entry", ["data/sample_inputs/model.pt", "data/constants/custom_obj_0", "data/aotinductor/model/run.so"]
)
def test_a_file_that_brings_objects_is_refused_before_anything_runs(copy: Path, tmp_path: Path, entry: str) -> None:
    spoiled, ran = tmp_path / "spoiled.pt2", tmp_path / "ran"
    with zipfile.ZipFile(copy / "model.pt2") as archive, zipfile.ZipFile(spoiled, "w") as other:
        for name in archive.namelist():
            if not name.endswith(entry):
                other.writestr(name, archive.read(name))
        other.writestr(f"{archive.namelist()[0].partition('/')[0]}/{entry}", pickle.dumps(Payload(ran)))
    spoiled.replace(copy / "model.pt2")
    with pytest.raises(ArtifactError, match=f"may run code while it is loaded: .*{entry}"):
        TorchExporter().load(copy)
    assert not ran.exists()


def test_a_list_of_pickled_weights_is_refused(copy: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "spoiled.pt2"
    with zipfile.ZipFile(copy / "model.pt2") as archive, zipfile.ZipFile(spoiled, "w") as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name).replace(b'"use_pickle": false', b'"use_pickle": true'))
    spoiled.replace(copy / "model.pt2")
    with pytest.raises(ArtifactError, match=r"may run code while it is loaded: .*weights_config"):
        TorchExporter().load(copy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has CUDA")
def test_cuda_without_cuda_is_refused(exported: Exported) -> None:
    with pytest.raises(DependencyError, match="The device cuda was asked for"):
        TorchExporter().load(exported.path, Session(device="cuda"))


def test_a_torch_that_calls_another_makers_gpu_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking() -> None:
        raise DependencyError("no NVIDIA driver is visible here")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nvidia, "require", lacking)
    with pytest.raises(DependencyError, match="no NVIDIA driver is visible here"):
        TorchExporter().require(Session(device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(NO_CUDA, reason=NEEDS_CUDA)
def test_cuda_runs_the_program(exported: Exported, padded: Padded) -> None:
    inputs = arrays(padded(3, 5))
    runner = TorchExporter().load(exported.path, Session(device="cuda"))
    assert runner.providers == ("CUDA",)
    expected = TorchExporter().load(exported.path, ONE)(inputs)["logits"]
    np.testing.assert_allclose(runner(inputs)["logits"], expected, atol=1e-3)


def test_a_program_on_a_gpu_computes_in_all_bits_and_leaves_torchs_setting(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudnn: Any = torch.backends.cudnn

    def precisions() -> tuple[str, str]:
        return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision

    before, program = precisions(), SimpleNamespace(module=lambda: lambda *_: precisions())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nvidia, "require", lambda: None)
    monkeypatch.setattr("torch.export.passes.move_to_device_pass", lambda *_: program)
    runner = TorchExporter().load(exported.path, Session("cuda", 1))
    assert precisions() == before != ("ieee", "ieee")
    assert runner.module() == ("ieee", "ieee")  # what `bound` records and runs, too
    assert precisions() == before


@pytest.mark.parametrize(
    ("device", "replayed"),
    [
        ("cpu", False),
        *(
            pytest.param("cuda", replayed, marks=[pytest.mark.gpu, pytest.mark.skipif(NO_CUDA, reason=NEEDS_CUDA)])
            for replayed in (False, True)
        ),
    ],
)
def test_a_bound_run_gives_what_a_plain_one_does(
    exported: Exported, padded: Padded, device: Literal["cpu", "cuda"], replayed: bool
) -> None:
    inputs, runner = arrays(padded(3, 5)), TorchExporter().load(exported.path, Session(device, 1))
    given: Any = runner.bound(inputs, replayed=replayed)()
    if not replayed:  # a replay leaves its outputs where they were recorded
        np.testing.assert_allclose(given.cpu().numpy(), runner(inputs)["logits"], atol=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has CUDA")
def test_without_a_gpu_no_run_is_recorded(exported: Exported, padded: Padded) -> None:
    with pytest.raises(RuntimeFailure, match="CUDA graphs need an NVIDIA GPU"):
        TorchExporter().load(exported.path, ONE).bound(arrays(padded(3, 5)), replayed=True)


def test_what_a_recorded_run_reads_lives_as_long_as_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", MagicMock())
    for name in ("CUDAGraph", "Stream", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    values = [torch.ones(2)]
    read = weakref.ref(values[0])
    replay = torch_export._recorded(lambda x: None, values)
    del values
    gc.collect()
    assert read() is not None
    replay()
    torch.cuda.CUDAGraph.return_value.replay.assert_called_once_with()  # type: ignore[attr-defined]


def test_a_program_that_wants_memory_is_no_failure_of_torch(
    exported: Exported, padded: Padded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    runner = replace(TorchExporter().load(exported.path, ONE), module=hungry)
    for run in (runner, runner.bound):
        with pytest.raises(ResourceError, match=r"input_ids \(3, 5\).*CUDA out of memory.*batch_size"):
            run(arrays(padded(3, 5)))


def test_a_precision_that_it_cannot_write_is_refused() -> None:
    with pytest.raises(ExportError, match="writes fp32, fp16 and bf16, not 'int8'"):
        TorchExporter(precision="int8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (FixedLength(), "fixed sequence_length of input_ids to 7"),
        (Branching(), "cannot trace Branching: .*Look for branches on values"),
    ],
)
def test_a_model_that_cannot_be_traced_is_told_why(
    tmp_path: Path, model: nn.Module, message: str, padded: Padded
) -> None:
    with pytest.raises(ExportError, match=f"(?s){message}"):
        TorchExporter().export(model, padded(2, 7), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


def test_the_measuring_child_lets_torch_be_the_runtime(
    exported: Exported, evaluation_of_nothing: Evaluation, padded: Padded
) -> None:
    reference: Any = None
    subject = Subject("torch", "torch-export", exported.path, evaluation_of_nothing, ONE, reference)
    stages = ask("memory", [subject], arrays(padded(1, 5)), steady_runs=1)
    assert stages["peak"] >= stages["floor"] > 100  # MiB: torch itself, which belongs to the floor


@pytest.fixture
def evaluation_of_nothing() -> Evaluation:
    """A subject needs one; the child never reads it."""
    from compressor import registry

    return Evaluation(registry.task("text-classification"), ())
