"""Tensors of a live model, identified by hash and replaced in a copy."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.finite import all_finite
from sonde.core.hashing import tensor_key
from sonde.core.inputs import Model
from sonde.core.repacking import in_own_form

TIED = "tie_word_embeddings"
"""What a configuration calls one matrix for the embedding and the output."""


def tensor_hash(x: Tensor) -> str:
    """Return the hash by which a plan recognises its tensor."""
    return tensor_key(x.detach().cpu()).hex()


def module_of(model: Model | nn.Module) -> nn.Module:
    """Return the live module of a model."""
    return model.module if isinstance(model, Model) else model


def require_in_memory(owner: str, module: nn.Module) -> None:
    """Raise if the weights of a model are not in memory.

    Raises
    ------
    InputError
        Naming the first tensor on the device ``meta``, or offloaded to the disk.
    """
    for name, x in (*module.named_parameters(), *module.named_buffers()):
        if x.is_meta:
            raise InputError(
                f"{owner}: expected a model with its weights in memory, got {name} on the device "
                "'meta': it was never loaded, or is offloaded to the disk. Load the model whole: "
                "sonde.load(MODEL, device='cpu')."
            )


def require_finite(owner: str, module: nn.Module) -> None:
    """Raise if a weight of a model is not finite.

    Raises
    ------
    InputError
        Naming the first such weight.
    """
    named = [(n, p.detach()) for n, p in module.named_parameters() if p.is_floating_point()]
    finite = all_finite([p for _, p in named])
    for (name, _), is_finite in zip(named, finite, strict=True):
        if not is_finite:
            raise InputError(
                f"{owner}: expected finite weights, got NaN or infinity in {name}. Load the model "
                "in float32, or use another checkpoint."
            )


def as_model(model: Model | nn.Module) -> Model:
    """Return a model or a module that a user passed, as a ``Model``."""
    if isinstance(model, Model):
        return model
    return Model(model, config=model.__dict__.get("config"))


def with_tensors(module: nn.Module, changed: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a module with some tensors replaced; all others share their storage."""
    in_own_form(module)
    kept = {id(p): p for p in [*module.parameters(), *module.buffers()]}
    memo: dict[int, Any] = {}
    for key, old in kept.items():
        same = old.detach()
        memo[key] = nn.Parameter(same, old.requires_grad) if isinstance(old, nn.Parameter) else same
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # as weight_norm leaves one behind
                memo[id(value)] = value.detach()
    new = copy.deepcopy(module, memo)
    put_tensors(new, changed)
    return new


def put_tensors(new: nn.Module, changed: Mapping[str, Tensor]) -> None:
    """Replace tensors of a module by name."""
    for name, value in changed.items():
        path, _, leaf = name.rpartition(".")
        owner = new.get_submodule(path)
        if leaf in owner._buffers:
            owner._buffers[leaf] = value
            continue
        before = owner._parameters.get(leaf)
        trains = before is None or before.requires_grad
        owner._parameters[leaf] = nn.Parameter(value, trains and value.is_floating_point())
