"""How a model is put together, as far as factorizing cares: its layers, and what stands in the way of each.

A layer that is one object under several names is one layer, replaced at all of them. A weight that several layers share
(tied), or that is not a plain parameter (quantized, adapted, parametrized, factorized already), is left alone and said.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Container, Iterator, Sequence
from functools import cache
from math import prod
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter

from compressor.errors import ModelError, some
from compressor.forms import GEOMETRY, is_convolution, is_dense, objection
from compressor.layers import Factors
from compressor.transposed import is_transposed

PACKED = ("qweight", "W_q", "_packed_params")  # where GPTQ and AWQ, HQQ, and torch.ao keep a quantized weight
QUANTIZERS = ("bitsandbytes", "torchao")

ANSWERED = ("weight.dtype", "weight.device", "in_features", "out_features", *GEOMETRY)  # by factors as by dense layers
BARE = nn.Module()

IS_FACTORIZED = "factorized already"
IS_ADAPTED = "carries an adapter"
IS_QUANTIZED = "quantized"
MERGE = "merge it into the weights with `model = model.merge_and_unload()` and compress the result."


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer and convolution by every name; what is inside one (its factors, its adapter) is no other."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not _inside(name, found) and (is_dense(module) or is_convolution(module) or _state(module)):
            found[name] = module
    return found


def _inside(name: str, found: Container[str]) -> bool:
    """Whether a module lies in one of those found."""
    return any(name[:end] in found for end, letter in enumerate(name) if letter == ".")


def packed(model: nn.Module, found: Container[str]) -> dict[str, tuple[int, int, int]]:
    """Parameters outside the layers found that hold several matrices (count, rows, columns), by name.

    They are the experts of a mixture, as a rule.
    """
    return {
        f"{name}.{key}".lstrip("."): (one.shape[0], one.shape[1], one.shape[2])
        for name, module in model.named_modules()
        if name not in found and not _inside(name, found)
        for key, one in module.named_parameters(recurse=False)
        if one.ndim == 3 and min(one.shape) > 1
    }


def shape(layer: nn.Module) -> tuple[int, int]:
    """`(out_features, in_features)`, of a convolution those of its patches; zeros where a layer does not say."""
    whole: Any = layer
    if is_convolution(layer):
        return int(whole.out_channels), int(whole.in_channels // whole.groups * prod(whole.kernel_size))
    if is_transposed(layer):
        return int(whole.weight.shape[1]), int(whole.weight.shape[0])
    if hasattr(layer, "out_features"):
        return int(whole.out_features), int(whole.in_features)
    return int(getattr(layer, "outfeatures", 0)), int(getattr(layer, "infeatures", 0))


def first_names(found: dict[str, nn.Module]) -> dict[str, str]:
    """For every name of a layer the first one that it has."""
    leaders: dict[int, str] = {}
    return {name: leaders.setdefault(id(module), name) for name, module in found.items()}


def obstacles(model: nn.Module, found: dict[str, nn.Module]) -> dict[str, str]:
    """Why layers cannot be factorized wherever they are; those that can be are left out."""
    tied = tied_weights(model)
    reasons = {name: _state(module) or objection(module) or _weight(module) for name, module in found.items()}
    reasons |= {name: f"its weight is tied to {tied[name]}" for name in found if name in tied and not reasons[name]}
    reasons |= {name: _read_directly(model, name) for name in found if not reasons[name]}
    return {name: reason for name, reason in reasons.items() if reason}


def tied_weights(model: nn.Module) -> dict[str, str]:
    """By name, modules whose weight another module has too, under whatever name, and the name of that one."""
    owners: dict[int, dict[int, list[str]]] = {}
    weights = dict[str, int]()
    for name, module in model.named_modules(remove_duplicate=False):
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), {}).setdefault(id(module), []).append(name)
                weights |= {name: id(parameter)} if key == "weight" else {}
    return {
        name: others[0] or "a parameter of the model itself"
        for name, weight in weights.items()
        if (others := [names[0] for names in owners[weight].values() if name not in names])
    }


def _state(module: nn.Module) -> str:
    """What has been done to a layer already: factors, an adapter, quantization; empty where nothing."""
    if isinstance(module, Factors):
        return IS_FACTORIZED
    if hasattr(module, "lora_A") or isinstance(getattr(module, "base_layer", None), nn.Module):
        return f"{IS_ADAPTED} ({type(module).__name__})"
    if _quantized(module):
        return f"{IS_QUANTIZED} ({type(module).__name__})"
    return ""


def _quantized(module: nn.Module) -> bool:
    if any(hasattr(module, name) for name in PACKED):
        return any(hasattr(module, name) for name in ("in_features", "infeatures"))
    weight = module._parameters.get("weight")
    if not isinstance(module, nn.Linear) or weight is None:
        return False
    origin = {type(module).__module__.partition(".")[0], type(weight).__module__.partition(".")[0]}
    packed = not weight.is_floating_point() or weight.element_size() == 1  # float8 is floating point
    return bool(origin & set(QUANTIZERS)) or packed


def _weight(module: nn.Module) -> str:
    """Why the weight of a linear layer cannot be replaced by factors; empty where it can."""
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed by a parametrization; remove that first"
    if isinstance(weight, UninitializedParameter):
        return "not initialized yet; run the model once on a batch"
    return ""


def _read_directly(model: nn.Module, name: str) -> str:
    """What a module around the layer reads of it that factors could not answer with."""
    parts = name.split(".")
    for end in range(len(parts)):
        owner: Any = type(model.get_submodule(".".join(parts[:end])))
        forward = getattr(owner, "forward", None)
        if forward is nn.TransformerEncoderLayer.forward:  # leave_fast_paths_ makes it call its layers
            continue
        for attribute in _attributes(_source(owner), f"self.{'.'.join(parts[end:])}."):
            if attribute not in ANSWERED and not hasattr(BARE, attribute):
                return f"the forward of {owner.__name__} reads its {attribute.partition('.')[0]} directly"
    return ""


def _attributes(source: str, layer: str) -> list[str]:
    return re.findall(rf"{re.escape(layer)}(weight\.\w+|\w+)", source) if layer in source else []


@cache
def _source(owner: Any) -> str:
    try:
        return inspect.getsource(owner.forward)
    except (OSError, TypeError):  # built without source
        return ""


def has_own_forward(layer: nn.Module) -> bool:
    """Whether a subclass of nn.Linear computes something of its own, which factors would replace."""
    return isinstance(layer, nn.Linear) and type(layer).forward is not nn.Linear.forward


def require_unwrapped(model: nn.Module) -> None:
    """Refuse wrappers: layers are replaced, and seen, in the module itself.

    Raises:
        ModelError: the model is compiled, parallel or a PeftModel; it says what to give instead.
    """
    name = type(model).__name__
    if isinstance(model, DataParallel | DistributedDataParallel) or name == "FullyShardedDataParallel":
        raise ModelError(
            f"The model is wrapped in {name}: give what it wraps, `model.module`, and wrap it again after."
        )
    if any(hasattr(module, "_orig_mod") or _compiled(module) for module in model.modules()):
        raise ModelError(
            "The model is compiled, and a compiled graph neither sees calibration nor new layers: give the module that "
            "was compiled (`model._orig_mod`, or the one before `.compile()`), and compile after fold_."
        )
    if any(cls.__name__ == "PeftModel" for cls in type(model).__mro__):
        raise ModelError(f"{name} carries an adapter: {MERGE}")


def _compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def require_plain(model: nn.Module) -> None:
    """Refuse what would have to be undone first, as well as wrappers.

    Raises:
        ModelError: layers are quantized or carry adapters, or the model is wrapped; it says what to do.
    """
    require_unwrapped(model)
    states = {name: _state(module) for name, module in layers(model).items()}
    adapted = [name for name, state in states.items() if state.startswith(IS_ADAPTED)]
    if adapted:
        raise ModelError(f"{_some(adapted)} of {type(model).__name__} carry an adapter: {MERGE}")
    quantized = [name for name, state in states.items() if state.startswith(IS_QUANTIZED)]
    if quantized:
        raise ModelError(
            f"{_some(quantized)} of {type(model).__name__} are quantized, and factors are made of full weights: take "
            "the checkpoint in full precision, or `model.dequantize()` it. Exports can be quantized afterwards."
        )


def require_loaded(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse weights that are elsewhere: on disk, or on another device while nothing runs.

    Raises:
        ModelError: layers are on the meta device; it names them.
    """
    away = [name for name in names if model.get_submodule(name).get_parameter("weight").is_meta]
    if away:
        raise ModelError(
            f"{_some(away)} of {type(model).__name__} have no weights in memory (offloaded, or on the meta device): "
            "load the model whole, on one device, without a device_map that offloads."
        )


def _some(names: list[str]) -> str:
    return f"{len(names)} layers ({some(names, 3)})"


def places(model: nn.Module, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every parent of a module and the name that it has there."""
    for parent in model.modules():
        for child, found in parent._modules.items():
            if found is module:
                yield parent, child


def leave_fast_paths_(model: nn.Module) -> None:
    """Make torch's encoder layers call their linear layers: their fused path reads dense weights instead."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
