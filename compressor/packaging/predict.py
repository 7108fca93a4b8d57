"""Predict with the model beside this file. Needs numpy and onnxruntime, and tokenizers for texts or Pillow for images.

    pip install -r requirements.txt
    python predict.py "a text"                              text classification: label and probabilities
    python predict.py cat.png                               image classification: the same
    python predict.py "Once upon a time" --new-tokens 40    text generation: continues the text
    python predict.py "a question" "one choice" "another"   multiple choice: the likeliest choice

What the model is and how its inputs are made stands in package.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import onnxruntime
except ImportError as error:
    raise SystemExit(f"{error}: pip install -r requirements.txt") from error

# a file in ONNX Runtime's own format is mapped, and its weights are not copied
MAPPED = {"session.use_memory_mapped_ort_model": "1", "session.use_ort_model_bytes_for_initializers": "1"}
PAST, PRESENT = "past_key_values", "present"  # what the names of a language model's cache begin with
DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


def cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use, by its affinity and its container; the runtime itself does not look."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # of cgroup v2 and v1
        if all((root / name).is_file() for name in names):
            granted, period = " ".join((root / name).read_text() for name in names).split()
            return found if granted in ("max", "-1") else max(1, min(found, math.ceil(int(granted) / int(period))))
    return found


class Model:
    """The graph with its facts; call it with named arrays."""

    def __init__(self, folder: Path) -> None:
        self.facts = read(folder / "package.json")
        self.folder = folder / "model"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as it was measured
        graph = self.folder / "model.onnx"
        if not graph.is_file():
            graph = self.folder / "model.ort"
            for key, value in MAPPED.items():
                options.add_session_config_entry(key, value)
        self.session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.inputs = {node.name: node for node in self.session.get_inputs()}
        self.outputs = [node.name for node in self.session.get_outputs()]

    def __call__(self, given: dict[str, Any], wanted: Sequence[str] = ("logits",)) -> list[Any]:
        """The wanted outputs; inputs that the graph lacks are ignored, a cache that is not given is empty."""
        feed = {
            name: np.asarray(given[name] if name in given else self._empty(node, given), DTYPES[node.type])
            for name, node in self.inputs.items()
        }
        return list(self.session.run(list(wanted), feed))

    def _empty(self, node: Any, given: dict[str, Any]) -> Any:
        if not node.name.startswith(PAST):
            raise SystemExit(f"The model needs the input {node.name}, which this program does not make.")
        return np.zeros((len(given["input_ids"]), node.shape[1], 0, node.shape[3]))

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, neither cutting nor filling; read once."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise SystemExit(f"{error}: pip install -r requirements.txt") from error
        found = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        found.no_padding()
        found.no_truncation()
        return found


def read(path: Path) -> dict[str, Any]:
    """A JSON file."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


# ---- classification ----


def classify_text(model: Model, texts: Sequence[str]) -> dict[str, Any]:
    """The label of a text, or of a pair of texts."""
    encoded = encode(model, texts)
    inputs = {
        "input_ids": [encoded.ids],  # (1, T)
        "attention_mask": [encoded.attention_mask],
        "token_type_ids": [encoded.type_ids],
    }
    return labeled(model(inputs)[0][0], model.facts["labels"])


def encode(model: Model, texts: Sequence[str]) -> Any:
    """The tokens of a text or a pair, cut as they were for training."""
    wanted = 2 if model.facts.get("pair") else 1
    if isinstance(texts, str) or len(texts) != wanted:
        raise ValueError(f"The model reads {'a pair of texts' if wanted == 2 else 'one text'} at a time, in a list.")
    tokenizer = model.tokenizer
    tokenizer.enable_truncation(model.facts["max_length"], direction=model.facts["truncation_side"])
    return tokenizer.encode(*texts)


def classify_image(model: Model, path: str) -> dict[str, Any]:
    """The label of an image file."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise SystemExit(f"{error}: pip install -r requirements.txt") from error
    settings = read(model.folder / "preprocessor_config.json")
    try:
        image = ImageOps.exif_transpose(Image.open(path))
        if image.mode.startswith("I;16"):  # which Pillow would cut off
            image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError(f"its numbers have no known range (mode {image.mode}): convert it to 8 or 16 bits")
        image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SystemExit(f"{path} is no image that can be read: {error}") from error
    return labeled(model({"pixel_values": pixels(image, settings)[None]})[0][0], model.facts["labels"])


def labeled(logits: Any, labels: Sequence[str]) -> dict[str, Any]:
    """Logits (labels,) as probabilities, the likeliest first."""
    scores = np.exp(finite(logits).astype(np.float64) - logits.max())
    shares = scores / scores.sum()  # (labels,)
    order = np.argsort(-shares, kind="stable")
    return {
        "label": labels[order[0]],
        "probabilities": {labels[number]: float(shares[number]) for number in order},
    }


def finite(values: Any) -> Any:
    """The values themselves; a model that gives others has no answer."""
    if not np.isfinite(values).all():
        raise SystemExit("The model gives no finite numbers for this input, so it has no answer.")
    return values


# ---- images, as the model's image processor makes them ----


def pixels(image: Any, settings: dict[str, Any]) -> Any:
    """An RGB image as (3, H, W) float32: resized, cropped, rescaled, normalized."""
    if settings.get("do_resize"):
        image, squared = resized(image, settings)
    else:
        squared = None
    array = np.moveaxis(np.asarray(image), -1, 0)  # (3, H, W)
    crop = settings["crop_size"] if settings.get("do_center_crop") else squared
    if crop:
        array = cropped(array, crop["height"], crop["width"])
    if settings.get("do_rescale"):
        array = (array.astype(np.float64) * settings["rescale_factor"]).astype(np.float32)
    if settings.get("do_normalize"):
        array = array.astype(np.float32)
        mean, deviation = (np.array(settings[key], np.float32) for key in ("image_mean", "image_std"))
        array = ((array.T - mean) / deviation).T
    return array


def resized(image: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, int] | None]:
    """The image at its new size, and the square that ConvNeXT's processors then cut out of it."""
    size = {edge: length for edge, length in settings["size"].items() if length}
    resample = settings.get("resample")
    resample = 2 if resample is None else resample  # bilinear
    edge, squared = size.get("shortest_edge"), None
    if edge and settings.get("crop_pct"):
        squared = {"height": edge, "width": edge}
        edge = int(edge / settings["crop_pct"]) if edge < 384 else None
        size = squared
    if not edge:
        return image.resize((size["width"], size["height"]), resample=resample), squared
    short, other = min(image.size), max(image.size)
    longer = int(edge * other / short)
    upright = image.width <= image.height
    return image.resize((edge, longer) if upright else (longer, edge), resample=resample), squared


def cropped(array: Any, height: int, width: int) -> Any:
    """The center (3, height, width) of an image (3, H, W); where it is smaller, zeros stand around it."""
    rows, columns = array.shape[1:]
    whole = np.zeros((3, max(height, rows), max(width, columns)), array.dtype)
    above, before = -((rows - whole.shape[1]) // 2), -((columns - whole.shape[2]) // 2)
    whole[:, above : above + rows, before : before + columns] = array
    top, left = (rows - height) // 2 + above, (columns - width) // 2 + before
    return whole[:, top : top + height, left : left + width]


# ---- language models ----


def generate(model: Model, prompt: str, new_tokens: int) -> Iterator[str]:
    """The pieces of text that continue a prompt, most likely token first."""
    tokenizer = model.tokenizer
    ids = list(tokenizer.encode(prompt).ids)
    shown = whole = tokenizer.decode(ids)  # a continuation read alone may lose the space that it begins with
    for token in continuation(model, list(ids), new_tokens):
        ids.append(token)
        whole = tokenizer.decode(ids)
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):  # the bytes of a character may span several tokens
            yield whole[len(shown) :]
            shown = whole
    if len(whole) > len(shown):
        yield whole[len(shown) :]


def continuation(model: Model, prompt: list[int], new_tokens: int) -> Iterator[int]:
    """The tokens that follow: the prompt is read once, then each step reads one token."""
    longest = model.facts["longest"] or len(prompt) + new_tokens
    if not 0 < len(prompt) <= longest:
        raise SystemExit(f"The prompt has {len(prompt)} tokens; 1 to {longest} are allowed.")
    tokens = prompt
    cache: dict[str, Any] = {}
    for length in range(len(prompt), min(len(prompt) + new_tokens, longest + 1)):
        inputs = {
            "input_ids": [tokens],  # (1, T)
            "attention_mask": np.ones((1, length)),  # (1, P + T)
            "position_ids": np.arange(length - len(tokens), length)[None],  # (1, T)
        }
        outputs = dict(zip(model.outputs, model(inputs | cache, model.outputs), strict=True))
        token = int(finite(outputs["logits"][0, -1]).argmax())
        if token in model.facts["stop"]:
            return
        yield token
        tokens = [token]
        cache = {PAST + name[len(PRESENT) :]: value for name, value in outputs.items() if name != "logits"}


def choose(model: Model, question: str, choices: Sequence[str]) -> dict[str, Any]:
    """The likeliest choice after a question; scores are log-likelihoods per character, in the order of the choices."""
    rows, starts = completions(model, question, choices)
    longest = max(map(len, rows))
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])  # (choices, T)
    inputs = {
        "input_ids": [row + [0] * (longest - len(row)) for row in rows],
        "attention_mask": mask,
        "position_ids": (mask.cumsum(axis=1) - 1).clip(min=0),
    }
    (logits,) = model(inputs)  # (choices, T, V)
    scores = [
        likelihood(logits[number, start - 1 : len(row) - 1], row[start:]) / len(choices[number])
        for number, (row, start) in enumerate(zip(rows, starts, strict=True))
    ]
    best = int(np.argmax(scores))
    return {"choice": choices[best], "index": best, "scores": scores}


def completions(model: Model, question: str, choices: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """For each choice the tokens of question and choice, and the place where the choice begins."""
    facts, tokenizer = model.facts, model.tokenizer
    prompt = facts["prompt"].replace("{question}", question)
    length = len(facts["opening"]) + len(tokenizer.encode(prompt, add_special_tokens=False).ids)
    rows, starts = [], []
    for choice in choices:
        row = facts["opening"] + tokenizer.encode(f"{prompt} {choice}", add_special_tokens=False).ids
        less = max(0, len(row) - facts["max_length"])  # a long question loses its beginning
        rows.append(row[less:])
        starts.append(min(length, len(row) - 1) - less)
        if starts[-1] <= 0:
            raise SystemExit(
                f"The choice '{choice[:40]}' leaves no room for the question in {facts['max_length']} tokens."
            )
    return rows, starts


def likelihood(logits: Any, targets: Sequence[int]) -> float:
    """The log-probabilities of targets (n,) under logits (n, V), summed."""
    shifted = finite(logits) - logits.max(axis=1, keepdims=True)
    totals = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))  # (n,)
    return float((shifted[np.arange(len(targets)), targets] - totals).sum())


# ---- the command line ----

INPUTS = {
    "text-classification": ("TEXT",),
    "image-classification": ("IMAGE",),
    "text-generation": ("PROMPT",),
    "multiple-choice": ("QUESTION", "CHOICE", "CHOICE"),
}


def main() -> None:
    """Answer what the command line asks."""
    model = Model(Path(__file__).resolve().parent)
    asked = arguments(model.facts["task"], bool(model.facts.get("pair")))
    given = asked.inputs
    if model.facts["task"] == "text-generation":
        say(given[0])
        for piece in generate(model, given[0], asked.new_tokens):
            say(piece)
        say("\n")
        return
    answers = {
        "text-classification": lambda: classify_text(model, given),
        "image-classification": lambda: classify_image(model, given[0]),
        "multiple-choice": lambda: choose(model, given[0], given[1:]),
    }
    say(json.dumps(answers[model.facts["task"]](), ensure_ascii=False) + "\n")


def arguments(task: str, pair: bool) -> argparse.Namespace:
    """What was typed, as far as the task can use it."""
    expected = INPUTS[task] + ("TEXT",) * pair
    more = {"multiple-choice": " [CHOICE ...]", "text-generation": " [--new-tokens N]"}.get(task, "")
    parser = argparse.ArgumentParser(usage=f"predict.py {' '.join(expected)}{more}", description=task)
    parser.add_argument("inputs", nargs="+", metavar=" ".join(expected), help=argparse.SUPPRESS)
    if task == "text-generation":
        parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="at most so many tokens")
    asked = parser.parse_args()
    if len(asked.inputs) < len(expected) or (len(asked.inputs) > len(expected) and task != "multiple-choice"):
        parser.error(f"give {' '.join(expected)}")
    if not all(text.strip() for text in asked.inputs):
        parser.error("an empty text has no answer")
    return asked


def say(text: str) -> None:
    """Print at once, whatever the console's encoding."""
    sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
