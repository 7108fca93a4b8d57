"""ONNX Runtime's own format: what it computes in every precision, what lies beside it, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, ResNetConfig, ResNetForImageClassification

from compressor import registry
from compressor.errors import ArtifactError, DependencyError, ExportError, InputError, RuntimeFailure
from compressor.factorize import factorize_, fold_, plan
from compressor.methods.spectral import Spectral
from exporters.base import Exported, Session
from exporters.generate import continuation
from exporters.onnx import OnnxExporter
from exporters.onnx import runtime as onnx_runtime
from exporters.ort import OrtExporter
from exporters.ort import file as ort_file
from exporters.record import EXPORT_FILE

Arrays = Mapping[str, np.ndarray]
KINDS = ("text", "image", "decoder")
ONE = Session(threads=1)


def folded(model: Any) -> Any:
    """The model with its layers as two factors each."""
    method = Spectral()
    return fold_(factorize_(model, method, {}, plan(model, method, {}, keep=0.6, multiple_of=1))).eval()


def image(_: Any) -> tuple[Any, list[Arrays]]:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    noise = np.random.default_rng(0)
    return ResNetForImageClassification(config).eval(), [
        {"pixel_values": noise.normal(size=(4, 3, 32, 32)).astype(np.float32)} for _ in range(3)
    ]


def decoder(_: Any) -> tuple[Any, list[Arrays]]:
    sizes = {"hidden_size": 96, "intermediate_size": 72, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=50, num_key_value_heads=2, initializer_range=0.2, **sizes)
    return folded(
        LlamaForCausalLM(config)
    ), tokens()  # 96: three blocks of int4 to a row, so that one byte is half full


def text(tiny_bert: Callable[..., Any]) -> tuple[Any, list[Arrays]]:
    return folded(tiny_bert()), tokens()


def tokens() -> list[Arrays]:
    source = np.random.default_rng(0)
    mask = (np.arange(7) < np.array([7, 5, 6, 7])[:, None]).astype(np.int64)
    return [{"input_ids": source.integers(1, 50, (4, 7)), "attention_mask": mask} for _ in range(3)]


def example(batches: list[Arrays]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array[:2]) for name, array in batches[0].items()}


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Callable[..., Any]
) -> Callable[[str], tuple[Any, list[Arrays], Path]]:
    """A kind of model -> the model, batches of its inputs, and the folder with its `onnx-fp32`."""
    done: dict[str, tuple[Any, list[Arrays], Path]] = {}

    def make(kind: str) -> tuple[Any, list[Arrays], Path]:
        if kind not in done:
            torch.manual_seed(0)
            model, batches = {"text": text, "image": image, "decoder": decoder}[kind](tiny_bert)
            folder = tmp_path_factory.mktemp(kind)
            OnnxExporter().export(model, example(batches), folder / "onnx-fp32")
            done[kind] = model, batches, folder
        return done[kind]

    return make


@pytest.fixture(scope="module")
def exported(made: Callable[..., Any]) -> Callable[..., Exported]:
    """(kind, runtime, precision) -> its export, made once beside the fp32 ONNX one."""
    done: dict[tuple[str, ...], Exported] = {}

    def make(kind: str, runtime: str, precision: str) -> Exported:
        if (kind, runtime, precision) not in done:
            model, batches, folder = made(kind)
            exporter, path = registry.exporter(runtime, precision), folder / f"{runtime}-{precision}-again"
            done[kind, runtime, precision] = exporter.export(model, example(batches), path, batches)
        return done[kind, runtime, precision]

    return make


def run(path: Path, inputs: Arrays) -> np.ndarray:
    return onnx_runtime.load(path, ONE)(inputs)["logits"]


def onnx_graph(*nodes: Any, weights: list[Any]) -> onnx.ModelProto:
    """A graph from `x (2, 4)` int64 or float to `logits`, as its nodes say."""
    taken = helper.make_tensor_value_info("x", TensorProto.INT64, [2])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "graph", [taken], [given], weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    )


# ---- what it computes ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", OrtExporter.precisions)
def test_every_precision_computes_what_its_onnx_export_computes(
    made: Callable[..., Any], exported: Callable[..., Exported], kind: str, precision: str
) -> None:
    batches = made(kind)[1]
    ours, theirs = (exported(kind, runtime, precision).path for runtime in ("ort", "onnx"))
    assert {path.name for path in ours.glob("model*")} == {"model.ort"}
    found, expected = run(ours, batches[1]), run(theirs, batches[1])
    real = batches[1]["attention_mask"].astype(bool) if kind == "decoder" else np.ones(len(expected), bool)
    # fp16 on the CPU is computed in float32 between casts, which stand in other places; int8 of a picture after
    # another order of sums may round to the next step
    bound = {"fp32": 1e-5, "int4": 1e-5}.get(precision, 0.03)
    assert np.abs(found - expected)[real].max() <= bound * np.abs(expected[real]).max()


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_is_held_against_torch_as_the_onnx_export_is(made: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    model, batches, _ = made(kind)
    facts = OrtExporter().export(model, example(batches), tmp_path / "ort-fp32").facts
    assert not facts["reused_fp32_graph"]
    for name in ("parity", "parity_fp32"):
        assert len(facts[name]) == (4 if kind == "decoder" else 3)  # and what a decoder continues from its cache
        assert max(one["max_difference"] for one in facts[name]) < 1e-4


def test_a_conversion_that_changes_the_numbers_is_refused(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches, folder = made("text")
    real = ort_file.convert

    def wrong(source: Path, target: Path, level: Any) -> None:
        graph = onnx.load(source)
        for weight in graph.graph.initializer:
            if weight.data_type == TensorProto.FLOAT and len(weight.dims) == 2:
                weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
        onnx.save(graph, target.with_name("wrong.onnx"))
        real(target.with_name("wrong.onnx"), target, level)

    monkeypatch.setattr(ort_file, "convert", wrong)
    with pytest.raises(ExportError, match=r"differs from the model by .* more than the 1e-03 allowed"):
        OrtExporter().export(model, example(batches), folder / "wrong")
    assert not (folder / "wrong").exists()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_decoder_continues_as_its_onnx_export_does(exported: Callable[..., Exported], precision: str) -> None:
    said = [
        list(continuation(onnx_runtime.load(exported("decoder", one, precision).path, ONE), [3, 1, 4, 1], new_tokens=9))
        for one in ("onnx", "ort")
    ]
    assert said[0] == said[1]


# ---- what lies there ----


def test_the_folder_says_what_it_is_and_lists_the_operators_that_a_build_needs(
    exported: Callable[..., Exported],
) -> None:
    export = exported("text", "ort", "int8")
    facts = json.loads((export.path / EXPORT_FILE).read_text())
    assert facts == export.facts
    assert (facts["runtime"], facts["precision"], facts["level"]) == ("ort", "int8", "extended")
    assert facts["file_bytes"] == {"model.ort": (export.path / "model.ort").stat().st_size}
    assert [value["name"] for value in facts["inputs"]] == ["input_ids", "attention_mask"]
    listed = (export.path / "required_operators.config").read_text()
    named = {name for line in listed.splitlines() if ";" in line for name in line.split(";")[2].split(",")}
    assert named == set(facts["nodes"])
    assert "DynamicQuantizeMatMul" in named
    typed = (export.path / "required_operators_and_types.config").read_text()
    assert '{"inputs": {"0": ["float"]}}' in typed
    assert str(export.path.parent) not in listed + typed  # the comment names the file alone
    assert "# - model.ort\n" in listed


@pytest.mark.parametrize("kind", KINDS)
def test_no_operator_is_bound_to_the_vector_width_of_a_cpu(exported: Callable[..., Exported], kind: str) -> None:
    listed = (exported(kind, "ort", "fp32").path / "required_operators.config").read_text()
    assert {line.split(";")[0] for line in listed.splitlines() if ";" in line} <= {"ai.onnx", "com.microsoft"}


def test_the_basic_level_keeps_to_operators_of_onnx(made: Callable[..., Any]) -> None:
    model, batches, folder = made("text")
    export = OrtExporter(level="basic").export(model, example(batches), folder / "basic")
    assert "com.microsoft" not in (export.path / "required_operators.config").read_text()
    assert "com.microsoft" in (
        OrtExporter().export(model, example(batches), folder / "extended").path / "required_operators.config"
    ).read_text(encoding="utf-8")


def test_the_same_graph_gives_the_same_but_for_the_order_of_one_table(made: Callable[..., Any], tmp_path: Path) -> None:
    source = made("text")[2] / "onnx-fp32" / "model.onnx"
    for name in ("one.ort", "two.ort"):
        ort_file.convert(source, tmp_path / name, "extended")
    one, two = ((tmp_path / name).read_bytes() for name in ("one.ort", "two.ort"))
    assert len(one) == pytest.approx(len(two), abs=64)  # in another order the table can need other padding
    same = min(len(one), len(two)) - 4000  # at the front lie the kernels' types, in the order of a hash table
    assert one[-same:] == two[-same:]


def test_a_large_table_that_a_head_shares_is_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = numpy_helper.from_array(np.ones((500, 40), np.float32), "table")
    lookup, turn = helper.make_node("Gather", ["table", "x"], ["row"]), helper.make_node("Transpose", ["table"], ["t"])
    model = onnx_graph(lookup, turn, helper.make_node("MatMul", ["row", "t"], ["logits"]), weights=[table])
    onnx.save(model, tmp_path / "model.onnx")
    sizes = []
    for limit in (10_000_000, 10_000):
        monkeypatch.setattr(ort_file, "TABLE", limit)
        ort_file.convert(tmp_path / "model.onnx", tmp_path / "model.ort", "extended")
        sizes.append((tmp_path / "model.ort").stat().st_size)
    assert sizes[0] > 2 * 80_000 > sizes[1] > 80_000


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc, which tells what a process has mapped")
def test_weights_stay_in_the_mapped_file(exported: Callable[..., Exported]) -> None:
    path = exported("text", "ort", "fp32").path
    runner = onnx_runtime.load(path, ONE)
    assert str(path / "model.ort") in Path("/proc/self/maps").read_text()
    assert runner.providers == ("CPUExecutionProvider",)


def test_loading_and_running_imports_neither_torch_nor_onnx(exported: Callable[..., Exported]) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np; from compressor import registry;"
        f"runner = registry.load('exporters', 'ort')().load(Path({str(exported('text', 'ort', 'fp32').path)!r}));"
        "print(runner({'input_ids': np.ones((1, 3)), 'attention_mask': np.ones((1, 3))})['logits'].shape,"
        "sorted({'torch', 'onnx', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 3) []\n"


# ---- four bits ----


def test_tables_of_four_bits_are_stored_in_bytes(exported: Callable[..., Exported]) -> None:
    small, wide = (exported("decoder", "ort", precision).path / "model.ort" for precision in ("int4", "fp32"))
    assert ort_file.nodes(small)["GatherBlockQuantized"] == 1
    assert small.stat().st_size < wide.stat().st_size


def test_two_numbers_share_a_byte_and_the_first_lies_low() -> None:
    numbers = np.array([[1, 2, 3], [15, 0, 9]], np.uint8)
    tensor = helper.make_tensor("weight", TensorProto.UINT4, (2, 3), numbers.ravel())
    assert ort_file._pairs(tensor).tolist() == [[0x21, 0x03], [0x0F, 0x09]]


def test_four_bits_that_no_lookup_reads_are_refused_by_name(tmp_path: Path) -> None:
    weight = helper.make_tensor("weight", TensorProto.UINT4, (2, 4), [1] * 8)
    scale = numpy_helper.from_array(np.float32(0.5), "scale")
    node = helper.make_node("DequantizeLinear", ["weight", "scale"], ["table"])
    model = onnx_graph(node, helper.make_node("Gather", ["table", "x"], ["logits"]), weights=[weight, scale])
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(
        ExportError, match=r"no type of four bits, and weight cannot be stored.*int8, or in int4 to onnx"
    ):
        ort_file.convert(tmp_path / "model.onnx", tmp_path / "model.ort", "extended")


# ---- what is refused ----


def test_more_than_the_format_holds_is_refused(
    made: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_file, "LIMIT", 1000)
    with pytest.raises(ExportError, match=r"holds at most 2 GB in one file, and these weights take .*int8, int4"):
        ort_file.convert(made("text")[2] / "onnx-fp32" / "model.onnx", tmp_path / "model.ort", "extended")


def test_a_graph_that_the_runtime_refuses_is_told(tmp_path: Path) -> None:
    model = onnx_graph(helper.make_node("NoSuch", ["x"], ["logits"], domain="com.microsoft"), weights=[])
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"cannot convert this graph to its own format: .*NoSuch"):
        ort_file.convert(tmp_path / "model.onnx", tmp_path / "model.ort", "extended")


def test_what_it_does_not_write_is_refused_with_what_it_does() -> None:
    with pytest.raises(InputError, match=r"The ort exporter writes fp32, .* int8-weights and int4, not 'fp32-f"):
        registry.exporter("ort", "fp32-fused")
    with pytest.raises(ExportError, match="level basic or extended, not 'all'"):
        OrtExporter(level="all")  # type: ignore[arg-type]


def test_it_runs_on_the_cpu_only(tmp_path: Path) -> None:
    assert OrtExporter().devices == ("cpu",)
    with pytest.raises(DependencyError, match=r"export of ort runs on the cpu, not on cuda: .* or export another"):
        OrtExporter().load(tmp_path, Session("cuda"))


@pytest.mark.parametrize("content", [b"", b"\0" * 3000])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.ort").write_bytes(content)
    with pytest.raises(RuntimeFailure, match=r"ONNX Runtime refuses .*model\.ort .*restore it or export"):
        OrtExporter().load(tmp_path)


def test_a_file_that_was_cut_off_is_refused(exported: Callable[..., Exported], tmp_path: Path) -> None:
    whole = (exported("text", "ort", "fp32").path / "model.ort").read_bytes()
    (tmp_path / "model.ort").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RuntimeFailure, match=r"ONNX Runtime refuses .*model\.ort"):
        OrtExporter().load(tmp_path)


def test_a_folder_without_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"does not exist, so .* is no ONNX export"):
        OrtExporter().load(tmp_path)
