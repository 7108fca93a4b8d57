"""A model to and from its folder: a checkpoint as transformers has it, or an artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor import factory as factories
from compressor import registry
from compressor.artifact import MANIFEST, Artifact
from compressor.factorize import restructure_
from compressor.factory import RECORD, Factory, Function
from compressor.files import file_digest, write_json
from compressor.models import auto_class
from compressor.tasks.base import Task
from compressor.tensors import load_tensors_, save_tensors, state_of

GENERATION = "generation_config.json"


def save_model(model: Any, processor: Any, folder: Path, record: Mapping[str, Any] | None = None) -> None:
    """Weights, config and the tokenizer's or image processor's files, as a checkpoint folder has them.

    In the place of a config the `record` of the factory that made the model, where one did.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(state_of(model), folder / "model.safetensors")
    if record is None:
        model.config.architectures = [type(model).__name__]  # not those of the checkpoint that it was made from
        _save_code(model, folder)
        _save_generation(model, processor, folder)
        model.config.save_pretrained(folder)
    else:
        write_json(folder / RECORD, record)
    processor.save_pretrained(folder)


def _save_code(model: Any, folder: Path) -> None:
    """The code that a trusted checkpoint ships, by which its model is made again; the config names it."""
    from transformers.dynamic_module_utils import custom_object_save

    if getattr(model, "_auto_class", None) is not None:
        custom_object_save(model, folder, config=model.config)


def _save_generation(model: Any, processor: Any, folder: Path) -> None:
    """How a model generates, where it does; runtimes read one config, which then names every token that ends a text.

    The generation's config may name more of them (the end of a turn), and trained on were texts that end as the
    tokenizer says.
    """
    config = getattr(model, "generation_config", None)
    if config is None or not model.can_generate():
        return
    if not getattr(model.config, "is_encoder_decoder", False):  # those start by such a token, and compare it
        named = [getattr(one, "eos_token_id", None) for one in (model.config, config, processor)]
        ends = [end for one in named if one is not None for end in (one if isinstance(one, list) else [one])]
        model.config.eos_token_id = list(dict.fromkeys(ends)) if len(set(ends)) > 1 else model.config.eos_token_id
    config.to_json_file(folder / GENERATION)  # as it is: what a checkpoint has may be no valid one to save


def checkpoint_digest(path: str) -> str | None:
    """sha256 over the safetensors files of a local checkpoint; None for a hub id."""
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []
    return hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest() if files else None


def weights_digest(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of a model's tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load(
    path: Path | str,
    task: str | None = None,
    *,
    factory: Factory | str | Function | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """A folded model from its artifact folder: plain linear pairs in the dense structure, in evaluation mode.

    Args:
        path: the artifact's folder, or a plain dense checkpoint beside it (its `baseline`).
        task: of a plain checkpoint; an artifact knows its own.
        factory: the code that makes the dense structure, where one did: "package.module:function", looked for in the
            current folder first, or the function. No artifact's code is run that is not named here.
        trust_remote_code: run the code that lies beside the weights, where the checkpoint shipped some.

    Raises:
        ArtifactError: not an artifact, its files are missing or damaged, its factory is not the given one, or that
            one's source has been changed since, or it has code of its own that is not trusted.
        ModelError: the factory fails.
    """
    folder = Path(path)
    given = None if factory is None else Factory.given(factory)
    if task is not None and not (folder / MANIFEST).is_file():
        model = _dense(folder, registry.task(task), given, trust_remote_code)
    else:
        artifact = Artifact.open(folder)
        dense = _dense(folder, registry.task(artifact.manifest["task"]), given, trust_remote_code)
        model = restructure_(dense, artifact.plan)
    return _as_it_generates(load_tensors_(model, folder / "model.safetensors"), folder).eval()


def _as_it_generates(model: Any, folder: Path) -> Any:
    """The model with the config of its generation, where one was saved."""
    from transformers import GenerationConfig

    if (folder / GENERATION).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _dense(folder: Path, task: Task, factory: Factory | None, trusted: bool) -> Any:
    """The dense structure, with any weights."""
    from transformers import AutoConfig

    if (folder / RECORD).is_file():
        return factories.rebuild(folder, task, factory)
    factories.require_given("a checkpoint", folder, factory)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
        return auto_class(task).from_config(config, trust_remote_code=trusted)
    except ValueError as error:
        if trusted or "trust_remote_code" not in str(error):
            raise
        raise factories.unasked_code(folder) from error
