"""predict.py: in an environment without torch and rankfold it says what the tasks themselves say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, ConvNextImageProcessorPil, ViTImageProcessorPil

from compressor import data, registry
from compressor.packaging import predict, rehearsal
from compressor.packaging.archive import unpack
from compressor.packaging.inputs import Texts
from compressor.tasks.image import samples
from exporters.base import Session
from exporters.generate import text
from exporters.onnx.runtime import load

BLOCKED = """
FORBIDDEN = {"torch", "transformers", "datasets", "onnx", "compressor", "exporters", "validators"}
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ONE_THREAD = Session(threads=1)


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", 6), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1)]
)
def test_threads_are_what_affinity_and_container_allow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, cores: int
) -> None:
    monkeypatch.setattr(predict.os, "sched_getaffinity", lambda _: set(range(6)))
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert predict.cores(tmp_path) == cores
    assert predict.cores(tmp_path / "absent") == 6
    (tmp_path / "v1" / "cpu").mkdir(parents=True)
    granted, period = limit.replace("max", "-1").split()
    (tmp_path / "v1" / "cpu" / "cpu.cfs_quota_us").write_text(f"{granted}\n")
    (tmp_path / "v1" / "cpu" / "cpu.cfs_period_us").write_text(f"{period}\n")
    assert predict.cores(tmp_path / "v1") == cores


@pytest.mark.parametrize(("trained", "length"), [(64, 64), (1024, 510)])
def test_texts_are_not_cut_behind_what_model_and_tokenizer_take(tmp_path: Path, trained: int, length: int) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 510}))
    recipe = {"model": {"max_length": trained}, "data": {"train": {}}}
    assert Texts().facts(recipe, tmp_path)["max_length"] == length
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    assert Texts().facts(recipe, tmp_path)["max_length"] == min(trained, 512)


@pytest.fixture
def unpacked(packaged: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """task -> the folder of its package."""
    return lambda task: unpack(packaged(task), tmp_path / task)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", BLOCKED, str(folder / "predict.py"), *words]
    return subprocess.run(command, capture_output=True, check=False, cwd=folder.parent)


def answer(folder: Path, *words: str) -> dict[str, Any]:
    done = run(folder, *words)
    assert done.returncode == 0, done.stderr.decode()
    (line,) = done.stdout.decode("utf-8").splitlines()
    return dict(json.loads(line))


def proven(folder: Path, task_name: str, columns: dict[str, Any]) -> Any:
    """What the project's own task and runner say about rows."""
    task = registry.task(task_name)
    processor = task.processor(str(folder / "model"))
    facts = json.loads((folder / "package.json").read_text())
    rows = task.encode(datasets.Dataset.from_dict(columns), processor, facts["labels"], 12, "data.evaluation")
    found = [task.pose([row], processor) for row in rows]
    runner = load(folder / "model", ONE_THREAD)
    return [task.outcomes(runner(data.arrays(batch))["logits"], data.arrays(batch)) for batch in found]


def softmax(logits: np.ndarray) -> np.ndarray:
    scores = np.exp(logits.astype(np.float64))
    return scores / scores.sum()


def test_a_text_has_the_label_and_probabilities_that_the_task_gives_it(unpacked: Callable[[str], Path]) -> None:
    folder = unpacked("text-classification")
    texts = ["one two red", "three " * 40, "unheard four"]
    labels = json.loads((folder / "package.json").read_text())["labels"]
    expected = proven(folder, "text-classification", {"text": texts, "label": labels})
    for given, outcome in zip(texts, expected, strict=True):
        found = answer(folder, given)
        assert found["label"] == labels[outcome.predictions[0]]
        assert list(found["probabilities"].values()) == sorted(found["probabilities"].values(), reverse=True)
        np.testing.assert_allclose(
            [found["probabilities"][label] for label in labels], softmax(outcome.values[0]), atol=1e-5
        )


def test_a_service_that_gives_many_texts_at_once_is_told_so(unpacked: Callable[[str], Path]) -> None:
    model = predict.Model(unpacked("text-classification"))
    for texts in (["one", "two"], "one", []):
        with pytest.raises(ValueError, match="reads one text at a time, in a list"):
            predict.classify_text(model, texts)
    first, second = (predict.classify_text(model, ["one two red"]) for _ in range(2))
    assert first == second
    assert model.tokenizer is model.tokenizer  # read once


@pytest.mark.parametrize("mode", ["I", "F"])
def test_an_image_whose_range_is_not_known_is_refused(
    unpacked: Callable[[str], Path], tmp_path: Path, mode: str
) -> None:
    from PIL import Image

    Image.new(mode, (8, 8), 1).save(tmp_path / "image.tiff")
    done = run(unpacked("image-classification"), str(tmp_path / "image.tiff"))
    assert done.returncode == 1
    assert f"no known range (mode {mode})" in done.stderr.decode()


def test_a_pair_of_texts_is_read_as_the_task_reads_it(unpacked: Callable[[str], Path]) -> None:
    folder = unpacked("text-classification")
    facts = json.loads((folder / "package.json").read_text())
    (folder / "package.json").write_text(json.dumps(facts | {"pair": True}))
    pairs = {"text": ["one two", "red " * 9], "text_pair": ["three four blue", "two " * 7]}
    expected = proven(folder, "text-classification", pairs | {"label": facts["labels"][:2]})
    for first, second, outcome in zip(*pairs.values(), expected, strict=True):
        shares = answer(folder, first, second)["probabilities"]
        np.testing.assert_allclose([shares[one] for one in facts["labels"]], softmax(outcome.values[0]), atol=1e-5)
    assert b"give TEXT TEXT" in run(folder, "one").stderr
    rehearsal.rehearse(folder)


def test_an_image_has_the_label_and_probabilities_that_the_task_gives_it(
    unpacked: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = unpacked("image-classification")
    labels = json.loads((folder / "package.json").read_text())["labels"]
    upright = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 33, 4), dtype=np.uint8), "RGBA")
    upright.save(tmp_path / "alpha.png")
    turned = samples()[0]
    exif = turned.getexif()
    exif[0x0112] = 6  # turned by a quarter
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 32).save(tmp_path / "deep.png")
    paths = [str(tmp_path / name) for name in ("alpha.png", "turned.jpg", "deep.png")]
    cells = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
    expected = proven(folder, "image-classification", {"image": cells, "label": labels[:3]})
    for path, outcome in zip(paths, expected, strict=True):
        found = answer(folder, path)
        assert found["label"] == labels[outcome.predictions[0]]
        np.testing.assert_allclose(
            [found["probabilities"][label] for label in labels], softmax(outcome.values[0]), atol=1e-5
        )


def test_a_choice_is_the_one_that_the_task_finds_likeliest(unpacked: Callable[[str], Path]) -> None:
    folder = unpacked("multiple-choice")
    choices = ["red", "blue blue four", " two"]
    for question in ("one two", "three " * 30):
        (outcome,) = proven(folder, "multiple-choice", {"text": [question], "choices": [choices], "label": [0]})
        found = answer(folder, question, *choices)
        assert found["index"] == outcome.predictions[0]
        assert found["choice"] == choices[found["index"]]
        np.testing.assert_allclose(found["scores"], outcome.values[0], atol=1e-5)


def test_a_text_is_continued_as_our_own_loop_continues_it(unpacked: Callable[[str], Path]) -> None:
    folder = unpacked("text-generation")
    for prompt in ("one two", "red", "four three two one"):
        done = run(folder, prompt, "--new-tokens", "8")
        expected = prompt + "".join(text(folder / "model", prompt, new_tokens=8, session=ONE_THREAD)) + "\n"
        assert (done.returncode, done.stdout.decode()) == (0, expected)


def test_a_text_is_not_continued_beyond_the_models_length(unpacked: Callable[[str], Path]) -> None:
    model = predict.Model(unpacked("text-generation"))
    model.facts["stop"] = []
    assert len(list(predict.continuation(model, [0, 4, 5], 100))) == 32 - 3 + 1  # the last token is said, not read
    with pytest.raises(SystemExit, match="The prompt has 33 tokens; 1 to 32 are allowed"):
        next(predict.continuation(model, [4] * 33, 1))


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessorPil(size={"height": 24, "width": 20}),
        BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 24, "width": 28}),
        CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 25, "width": 31}),  # zeros around it
        BitImageProcessorPil(do_resize=False, crop_size={"height": 63, "width": 40}),
        ViTImageProcessorPil(size={"height": 24, "width": 24}, do_normalize=False, resample=3),
        ViTImageProcessorPil(size={"height": 24, "width": 24}, do_rescale=False, resample=0),
        ConvNextImageProcessorPil(size={"shortest_edge": 32}),
        ConvNextImageProcessorPil(size={"shortest_edge": 384}, crop_pct=0.9),
    ],
    ids=[
        "stretched",
        "cropped",
        "padded",
        "not-resized",
        "not-normalized",
        "not-rescaled",
        "convnext",
        "convnext-large",
    ],
)
def test_pixels_are_those_of_transformers_processor(processor: Any, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    settings = predict.read(tmp_path / "preprocessor_config.json")
    noise = np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8)
    for image in [*samples(), Image.fromarray(noise), Image.fromarray(noise.swapaxes(0, 1))]:
        expected = processor([image], return_tensors="np")["pixel_values"][0]
        found = predict.pixels(image, settings)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("task", "words", "said"),
    [
        ("text-classification", [], "the following arguments are required: TEXT"),
        ("text-classification", ["one", "two"], "give TEXT"),
        ("text-classification", [" "], "an empty text has no answer"),
        ("multiple-choice", ["question", "one choice"], "give QUESTION CHOICE CHOICE"),
        ("multiple-choice", ["question", "red", "one " * 20], "leaves no room for the question in 12 tokens"),
        ("image-classification", ["nothing.png"], "nothing.png is no image that can be read: "),
    ],
)
def test_what_cannot_be_answered_is_a_sentence(
    unpacked: Callable[[str], Path], task: str, words: list[str], said: str
) -> None:
    done = run(unpacked(task), *words)
    assert done.returncode != 0
    assert said in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert done.stdout == b""


def test_a_number_that_is_not_finite_is_no_answer() -> None:
    with pytest.raises(SystemExit, match="no finite numbers"):
        predict.labeled(np.array([1.0, np.nan]), ["calm", "glad"])


def test_help_names_what_is_to_be_given(unpacked: Callable[[str], Path]) -> None:
    done = run(unpacked("multiple-choice"), "--help")
    assert done.returncode == 0
    assert b"QUESTION CHOICE CHOICE" in done.stdout
