"""Multiple choice and running text scored by EleutherAI's LM Evaluation Harness and by us: the same numbers.

Needs the package lm-eval; the rows, the tokenizer and the model are made here.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from compressor import data
from compressor.tasks.multiple_choice import PROMPT, MultipleChoice
from compressor.tasks.text_generation import TextGeneration

QUESTIONS: dict[str, list[Any]] = {
    "text": [
        "Which of these melts in the sun?",
        "What do bees make?",
        " Is ice colder than steam? ",
        "Naïve café owners sell what?",
    ],
    "choices": [
        ["ice", "a stone", "the sea"],
        ["honey", "wax and honey"],
        ["yes", " no", "both "],
        ["coffee", "tea é"],
    ],
    "label": [0, 1, 0, 1],
}
LENGTH = 128
TASK_YAML = {
    "task": "ours",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": PROMPT.format(question="{{text}}"),
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


@pytest.fixture
def harness() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        return pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'rankfold[lm-eval]'")


@pytest.fixture(params=[False, True], ids=["plain", "opens"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Byte pairs learned from the rows, with or without a token that opens each text; 300 tokens."""
    told = Tokenizer(BPE())
    told.pre_tokenizer, told.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    told.train_from_iterator([*QUESTIONS["text"], *(" ".join(row) for row in QUESTIONS["choices"])], trainer)
    if request.param:
        told.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=told, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        initializer_range=0.3,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def judged(harness: Any, model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the harness says about QUESTIONS: results and samples."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_dict(QUESTIONS).to_json(tmp_path / "rows.jsonl")
    config = TASK_YAML | {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(config))
    return harness.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=2, max_length=LENGTH),
        tasks=["ours"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )


@pytest.mark.filterwarnings("ignore")
def test_choices_are_scored_and_taken_as_the_harness_does(judged: dict[str, Any], model: Any, tokenizer: Any) -> None:
    task = MultipleChoice()
    rows = task.encode(datasets.Dataset.from_dict(QUESTIONS), tokenizer, None, LENGTH, "data.evaluation")
    ours = data.outcomes(model, task, [task.pose([row], tokenizer) for row in rows])
    theirs = sorted(judged["samples"]["ours"], key=lambda sample: sample["doc_id"])
    sizes = np.array(rows["sizes"])  # (4, 3) characters, 0 where there is no choice
    sums = np.where(sizes > 0, ours.values * sizes, -np.inf)
    for said, prediction, size, sample in zip(sums, ours.predictions, sizes, theirs, strict=True):
        likelihoods = np.array([response[0] for response in sample["filtered_resps"]])
        assert said[size > 0] == pytest.approx(likelihoods, abs=1e-3)
        assert prediction == np.argmax(likelihoods / size[size > 0])
    assert np.mean(ours.predictions == ours.labels) == judged["results"]["ours"]["acc_norm,none"]
    assert np.mean(sums.argmax(axis=1) == ours.labels) == judged["results"]["ours"]["acc,none"]


@pytest.mark.filterwarnings("ignore")
def test_blocks_of_text_are_as_likely_as_the_harness_finds_them(harness: Any, model: Any, tokenizer: Any) -> None:
    """After their first token, which nothing predicts."""
    from lm_eval.models.huggingface import HFLM

    task = TextGeneration()
    rows = task.encode(datasets.Dataset.from_dict({"text": QUESTIONS["text"]}), tokenizer, None, 16, "data.evaluation")
    ours = data.outcomes(model, task, [task.pose([row], tokenizer) for row in rows])
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=2, max_length=LENGTH)
    requests = [(("", str(number)), ids[:1], ids[1:]) for number, ids in enumerate(rows["input_ids"])]
    theirs = wrapped._loglikelihood_tokens(requests, disable_tqdm=True)
    bounds = np.cumsum([len(ids) - 1 for ids in rows["input_ids"]])[:-1]
    assert [part.sum() for part in np.split(ours.values[:, 0], bounds)] == pytest.approx(
        [likelihood for likelihood, _ in theirs], abs=1e-3
    )


def test_the_prompt_is_that_of_the_harness_own_task(harness: Any) -> None:
    theirs = yaml.safe_load((Path(harness.__file__).parent / "tasks/arc/arc_easy.yaml").read_text())
    assert PROMPT.format(question="{{question}}") == theirs["doc_to_text"]
    assert theirs.get("target_delimiter", " ") == " "
