"""Dense models: load one safely for a task; which of its layers are compressed is in compressor.targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compressor import heads, progress, structure
from compressor.artifact import MANIFEST
from compressor.errors import ModelError, RankfoldError, first_line, some
from compressor.factory import Factory
from compressor.failures import exhausted, out_of_memory
from compressor.files import read_json
from compressor.paths import HUB_ID, as_hub_id, is_factory
from compressor.positions import at_size
from compressor.run_folder import STATE
from compressor.targets import Considered, consider, head_parameters, in_block
from compressor.tasks.base import Task

REFUSALS = {  # files that say what a folder holds, if not a dense model
    MANIFEST: "is compressed already. Name the dense model that it was made of ({source}), or the adapted one "
    "that lies beside it: {path}/baseline.",
    STATE: "is an unfinished run and no model ({source} is what it compresses); go on with --resume.",
    "export.json": "is an export, whose graph cannot be trained. Name the model that it was made of.",
    "adapter_config.json": "holds an adapter, to be laid over {source}. Merge it first and name the result: "
    "`peft.AutoPeftModelFor...`, with the class of its task, has from_pretrained(folder).merge_and_unload(), and what "
    "that returns has save_pretrained(other).",
}
CLASSIFIES = {"problem_type": "single_label_classification"}  # whatever the checkpoint's own head did
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load_dense(
    path: str,
    task: Task,
    labels: Sequence[str] | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    image_size: int | None = None,
    pad_token_id: int | None = None,
) -> Any:
    """A dense transformers model in float32, with a head for `labels`, for images of a size; safetensors only.

    Args:
        path: a local folder or a hub id.
        task: what it is asked to do.
        labels: its classes, one of which each example has; None where the checkpoint knows them, or has none.
        revision: of a hub id.
        trust_remote_code: whether code that the checkpoint ships may run.
        image_size: of images (S, S); None: the checkpoint's own.
        pad_token_id: what the tokenizer pads with, by which decoders that classify find where a text ends; None: what
            the checkpoint says, or else what ends a text.

    Raises:
        ModelError: not a checkpoint, pickled, truncated, with weights that are missing or not finite, in need of
            remote code, quantized, compressed already, or an adapter.
    """
    cls = auto_class(task)
    options: dict[str, Any] = {"revision": revision} if revision else {}
    config = read_config(path, trust_remote_code=trust_remote_code, **options)
    _note_width(path, str(getattr(config, "dtype", None)).removeprefix("torch."))
    _refuse_pickle(path)
    if labels is not None:
        options |= {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
        options |= {"label2id": {label: number for number, label in enumerate(labels)}}
        options |= CLASSIFIES | pads(config, pad_token_id)
    try:
        model, loaded = cls.from_pretrained(
            path,
            use_safetensors=True,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=labels is not None,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # transformers raises many kinds; each becomes a sentence
        if exhausted(error):
            raise
        raise _explained(path, error) from error
    structure.require_plain(model)
    _require_filled(model, path, loaded)
    _require_only_head(model, path, {name: tuple(stored) for name, stored, _ in loaded["mismatched_keys"]})
    require_finite(model, path)
    if labels is not None:
        made = {*loaded["missing_keys"], *(name for name, _, _ in loaded["mismatched_keys"])}
        heads.reorder_(model, path, heads.names(config), labels, made)
    return at_size(model, image_size)


def pads(config: Any, given: int | None) -> dict[str, int]:
    """What a classifier is told to be padded with, where its config names nothing: as `given`, or what ends a text.

    Decoders find by it where a text ends. What a config names stays: some encoders count positions by it.
    """
    ends, known = getattr(config, "eos_token_id", None), getattr(config, "pad_token_id", -1)
    found = given if given is not None else ends
    asked = hasattr(config, "pad_token_id") and (known is None or known < 0)
    return {"pad_token_id": found} if asked and isinstance(found, int) else {}


def read_config(path: str, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """The config of a checkpoint that holds a dense model.

    Raises:
        ModelError: there is none, or what is there is quantized, compressed already, exported, or an adapter.
    """
    from transformers import AutoConfig

    folder = Path(path)
    if not folder.exists() and not HUB_ID.fullmatch(path):
        raise ModelError(f"{path} does not exist, and a hub id looks like `name` or `owner/name`.")
    for file, refusal in REFUSALS.items():
        whole = file in (STATE, "export.json") and any(folder.glob("model*.safetensors"))  # of somebody else's
        if (folder / file).is_file() and not whole:
            raise ModelError(f"{path} {refusal.format(path=path, **_origin(folder / file))}")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # transformers raises many kinds; each becomes a sentence
        if exhausted(error):
            raise
        raise _explained(path, error) from error
    if quantization := getattr(config, "quantization_config", None):
        facts = quantization if isinstance(quantization, dict) else vars(quantization)
        kind = str(facts.get("quant_method") or "method unknown").rpartition(".")[2]
        raise ModelError(
            f"{path} is quantized ({kind}), and factors are made of full weights. Name the checkpoint that it was made "
            "of, or `dequantize()` the model where its library is installed and save that. Exports can be quantized "
            "afterwards."
        )
    return config


def _origin(file: Path) -> dict[str, str]:
    """What the manifest of an artifact, or the config of an adapter, names as the dense model."""
    facts = dict(read_json(file))
    source = facts.get("recipe", {}).get("model", {}).get("path") or facts.get("base_model_name_or_path")
    return {"source": str(source or "a model that is not named")}


def _note_width(path: str, stored: str) -> None:
    if stored in ("bfloat16", "float16"):
        progress.note(
            f"{path} is stored in {stored}; it is read, trained and exported in float32, at twice the size.", once=True
        )


def auto_class(task: Task) -> Any:
    """The transformers auto class of a task, from optimum's task table."""
    from optimum.exporters.tasks import TasksManager

    return TasksManager.get_model_class_for_task(task.architecture, library="transformers")


def _require_filled(model: nn.Module, path: str, loaded: Mapping[str, Any]) -> None:
    """transformers leaves what it does not find at random and only logs it; nothing but a head may be new.

    What stands between the embeddings and the head, such as a last norm, some checkpoints leave to its initial value.
    """
    words = getattr(model, "get_output_embeddings", lambda: None)()
    own, vocabulary = dict(model.named_parameters()), getattr(words, "weight", None)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    missing = sorted(
        name
        for name in loaded["missing_keys"]
        if in_block(model, name) or (name in own and (own[name] is vocabulary or id(own[name]) in tables))
    )
    if missing:
        there = sorted(loaded["unexpected_keys"])
        raise ModelError(
            f"{path} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}"
            + (f"; those that it has are called {there[0]} and the like" if there else "")
            + ". Rename them, save the checkpoint again from the class that it was made with, or name its own task."
        )


def _require_only_head(model: nn.Module, path: str, mismatched: Mapping[str, tuple[int, ...]]) -> None:
    """A head for other labels is made anew; weights of other shapes elsewhere are no such head."""
    others = {name: shape for name, shape in mismatched.items() if name not in head_parameters(model)}
    if others:
        raise ModelError(
            f"Weights of {path} do not have the shapes that its config says: "
            f"{some([f'{name} {shape}' for name, shape in sorted(others.items())], 3)}. Fetch both again."
        )
    if mismatched:
        _note_new_head(path)


def _note_new_head(path: str) -> None:
    progress.note(
        f"{path} has a head for another number of labels; it is made anew for those of the training data.", once=True
    )


def _refuse_pickle(path: str) -> None:
    folder = Path(path)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{path} holds its weights as {', '.join(pickles)}, a pickle that can run code when it is read. Only "
            "safetensors are read: convert it where you trust it, with `model.save_pretrained(folder)`."
        )


def _explained(path: str, error: Exception) -> ModelError:
    text = str(error)
    if "SafetensorError" in type(error).__name__ or ("header" in text.lower() and "safetensors" in text.lower()):
        return ModelError(
            f"A safetensors file of {path} is truncated or damaged ({first_line(error)}). Fetch it again."
        )
    if "trust_remote_code" in text:
        return ModelError(
            f"{path} needs code that the checkpoint ships. If you trust it, set model.trust_remote_code: true "
            "(it is recorded)."
        )
    if "Unrecognized configuration class" in text:
        kind = text.partition("configuration_")[2].partition(".")[0] or "This"
        return ModelError(
            f"{path} is a model of another task (its architecture is {kind}): name it by model.task in a recipe, or by "
            "--task; `list tasks` has them."
        )
    return ModelError(f"{path} cannot be loaded as a model: {first_line(error)}{as_hub_id(path)}")


def require_finite(model: nn.Module, path: str) -> None:
    """Raises ModelError naming the weights that hold NaN or infinite values."""
    broken = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
    if broken:
        raise ModelError(
            f"{len(broken)} weights of {path} hold NaN or infinite values ({some(broken)}). The checkpoint is damaged: "
            "fetch or convert it again."
        )


@torch.no_grad()
def require_learnable(model: nn.Module, batch: Mapping[str, Tensor], labels: Sequence[str] | None = None) -> None:
    """Run a model once on a batch with labels, in evaluation mode.

    Raises:
        ModelError: it does not take these inputs, gives no loss for them, or not one logit for each of `labels`.
    """
    name, shapes = type(model).__name__, ", ".join(f"{key} {tuple(value.shape)}" for key, value in batch.items())
    try:
        output = model.eval()(**batch)
    except Exception as error:  # models refuse inputs in many ways, and a module of one's own may do anything
        if isinstance(error, RankfoldError) or out_of_memory(error):
            raise
        raise ModelError(
            f"{name} cannot be trained on {shapes}: {first_line(error)} The recipe's model section says what it is "
            "given: task, max_length and image_size must fit the checkpoint."
        ) from error
    if labels is not None and output.logits.shape[-1] != len(labels):
        raise ModelError(
            f"{name} gives {output.logits.shape[-1]} logits, but the training data has {len(labels)} labels: a factory "
            "makes the head for the labels that it is called with."
        )
    if getattr(output, "loss", None) is None:
        raise ModelError(f"{name} gives no loss for {shapes}, so it cannot be trained: name another task or model.")


def describe(
    path: str,
    task: Task,
    targets: Literal["auto"] | Sequence[str] = "auto",
    exclude: Sequence[str] = (),
    *,
    trust_remote_code: bool = False,
) -> tuple[Considered, ...]:
    """Every linear layer of a checkpoint and whether it is a target, from the config alone, no weights read.

    Where `path` names a factory, its code is run, without labels; it is looked for in the current folder first. What a
    checkpoint ships is run where `trust_remote_code` says so.

    Raises:
        ModelError: no config of a dense model, a factory that fails, or a glob that matches nothing.
    """
    if is_factory(path):
        return consider(Factory.given(path).build(task, None), targets, exclude)
    return consider(outline(path, task, trust_remote_code=trust_remote_code), targets, exclude)


def outline(path: str, task: Task, *, trust_remote_code: bool = False) -> Any:
    """A checkpoint's model without weights (on the meta device), from its config alone.

    Raises:
        ModelError: no config of a dense model.
    """
    config = read_config(path, trust_remote_code=trust_remote_code)
    try:
        with torch.device("meta"):
            return auto_class(task).from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as error:
        raise _explained(path, error) from error


def quiet_libraries() -> None:
    """Keep transformers' progress bars and load reports off stderr: the line has its own."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
