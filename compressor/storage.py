"""Tensors in and out of safetensors files, and a folded model from its artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressor import factory as factories
from compressor import registry
from compressor.artifact import MANIFEST, Artifact
from compressor.errors import ArtifactError, first_line, some
from compressor.factorize import restructure_
from compressor.factory import RECORD, Factory, Function
from compressor.failures import exhausted
from compressor.files import file_digest, write_json
from compressor.models import auto_class
from compressor.tasks.base import Task

GENERATION = "generation_config.json"
PART = 64_000_000  # bytes of a file that are mapped into memory at once


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's tensors by name, those that are tied once."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            kept[name] = tensor
    return kept


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, note: tuple[str, str] = ("format", "pt")) -> None:
    """Write as safetensors, with one note in its header: two would stand there in any order."""
    from safetensors.torch import save_file

    found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(found, path, metadata=dict([note]))


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


def load_tensors_(model: nn.Module, path: Path, *, strict: bool = True) -> nn.Module:
    """Fill a model from a safetensors file.

    Raises:
        ArtifactError: the file is missing or damaged, or its tensors are not the model's.
    """
    from safetensors import SafetensorError

    found, unexpected = set[str](), list[str]()
    try:
        for part in _parts(path):
            unexpected += model.load_state_dict(part, strict=False).unexpected_keys
            found |= part.keys()
    except (OSError, SafetensorError, RuntimeError) as error:
        if exhausted(error):
            raise
        raise ArtifactError(
            f"{path} cannot be read: {first_line(error)}. It is missing, truncated or damaged."
        ) from error
    lost = _lost(model, found) if strict else []
    if unexpected or lost:
        less, more = (some(names) or "nothing" for names in (lost, unexpected))
        raise ArtifactError(f"{path} does not fit the model: it lacks {less} and has {more} too many.")
    return model


def _lost(model: nn.Module, found: Collection[str]) -> list[str]:
    """The tensors that a file has by none of their names; those that are tied have several."""
    state = model.state_dict()
    filled = {tensor.data_ptr() for name, tensor in state.items() if name in found and tensor.numel()}
    return [name for name, tensor in state.items() if name not in found and tensor.data_ptr() not in filled]


def _parts(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """A file's tensors, some at a time: each part is mapped anew, so that what was copied is let go."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    while names:
        part: dict[str, torch.Tensor] = {}
        with safe_open(path, framework="pt") as file:
            while names and sum(tensor.nbytes for tensor in part.values()) < PART:
                name = names.pop(0)
                part[name] = file.get_tensor(name)
        yield part


def stored_parameters(path: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (not a dict)


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
