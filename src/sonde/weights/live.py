"""Tensors of a live model, identified by hash and replaced in a copy."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sonde.core.errors import InputError
from sonde.core.finite import all_finite
from sonde.core.hashing import tensor_key
from sonde.core.inputs import Model
from sonde.core.repacking import in_own_form
from sonde.data import task_of
from sonde.tap import is_plain, kind_of
from sonde.tap import tensor_hash as hash_of_parts
from sonde.tap.hooks.sharding import require_own

DYNAMIC = "torch.ao.nn.quantized.dynamic.modules.linear"
"""Where the linear layers of ``quantize_dynamic`` are defined."""
TIED = "tie_word_embeddings"
"""What a configuration calls one matrix for the embedding and the output."""


def tensor_hash(x: Tensor) -> str:
    """Return the hash by which a plan recognises its tensor.

    Parameters
    ----------
    x : Tensor
        Tensor to hash.
    """
    return tensor_key(x.detach().cpu()).hex() if is_plain(x) else hash_of_parts(x)


def module_of(model: Model | nn.Module) -> nn.Module:
    """Return the live module of a model.

    Parameters
    ----------
    model : Model | Module
        Model or module.
    """
    return model.module if isinstance(model, Model) else model


def require_in_memory(owner: str, module: nn.Module) -> None:
    """Raise if the weights of a model are not plain tensors in memory.

    Raises
    ------
    InputError
        Naming the first tensor on the device ``meta``, or offloaded to the disk, or of another
        kind: a tensor subclass, a sparse or quantised tensor, a packed weight.
    SiteError
        If ranks hold parts of the weights.
    """
    require_values(owner, module)
    for name, kind in _of_other_kinds(module):
        raise InputError(
            f"{owner}: expected weights that are plain tensors, got {name} as {kind}. Pass the "
            "model before it was converted, or sonde.weights.dequantised(model), which turns such "
            "weights into plain ones where the library says how."
        )


def require_values(owner: str, module: nn.Module) -> None:
    """Raise if weights of a model have no values: lazy ones, and those on the device ``meta``.

    Raises
    ------
    InputError
        Naming the first of them.
    SiteError
        If ranks hold parts of the weights.
    """
    require_own(owner, module)
    for name, x in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(x):
            raise InputError(
                f"{owner}: expected weights with a shape, got {name} of a lazy layer that has "
                "never run. Run the model once: model(x)."
            )
        if x.is_meta:
            raise InputError(
                f"{owner}: expected a model with its weights in memory, got {name} on the device "
                "'meta': it was never loaded, or is offloaded to the disk. Load the model whole: "
                "sonde.load(MODEL, device='cpu')."
            )


def _of_other_kinds(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield each tensor that is not plain, and each packed weight, with its kind."""
    for name, x in (*module.named_parameters(), *module.named_buffers()):
        if not is_plain(x):
            yield name, kind_of(x)
    for name, part in module.named_modules():
        for leaf, value in vars(part).items():
            if isinstance(value, torch.ScriptObject):
                yield f"{name}.{leaf}".lstrip("."), "packed weights"


def dequantised(model: Model | nn.Module) -> Model:
    """Return a copy of a model whose converted weights are plain floating-point tensors.

    All other tensors share their storage with ``model``. Sparse tensors become dense. Quantised
    tensors, and subclasses with a method ``dequantize`` (those of torchao), become what it returns;
    layers of ``quantize_dynamic`` become linear layers.

    Parameters
    ----------
    model : Model or nn.Module
        Model with converted weights; it is not changed.

    Raises
    ------
    InputError
        If a weight does not say how it becomes a plain tensor.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> layer.weight = nn.Parameter(torch.eye(2).to_sparse())
    >>> dequantised(layer).module.weight.layout
    torch.strided
    """
    live = as_model(model)
    require_values("dequantised", live.module)
    new = with_tensors(live.module, {})
    if type(new).__module__ == DYNAMIC:
        return replace(live, module=_plain_layer(new))
    for name, part in list(new.named_modules()):
        if name and type(part).__module__ == DYNAMIC:
            new.set_submodule(name, _plain_layer(part))
    named = [*new.named_parameters(), *new.named_buffers()]
    put_tensors(new, {name: plain_tensor(x) for name, x in named if not is_plain(x)})
    for name, kind in _of_other_kinds(new):
        raise InputError(
            f"dequantised: expected weights that say how they become plain tensors, got {name} as "
            f"{kind}. Pass the model before it was converted."
        )
    return replace(live, module=new)


def _plain_layer(part: Any) -> nn.Linear:
    """Return a linear layer with the weights of a layer of ``quantize_dynamic``."""
    weight, bias = part.weight().dequantize(), part.bias()
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer.train(part.training)


def plain_tensor(x: Tensor) -> Tensor:
    """Return a converted tensor as a plain one without a gradient, or itself if it cannot say how.

    Parameters
    ----------
    x : Tensor
        Plain, sparse or quantised tensor, or a subclass with a method ``dequantize``.
    """
    if x.layout is not torch.strided:
        return x.detach().to_dense()
    says = getattr(type(x), "dequantize", None)
    if x.is_quantized or says not in (None, Tensor.dequantize):
        return x.detach().dequantize()
    return x.detach()


def require_finite(owner: str, module: nn.Module) -> None:
    """Raise if a weight of a model is not finite, or no plain tensor in memory.

    Raises
    ------
    InputError
        Naming the first such weight.
    """
    require_in_memory(owner, module)
    named = [(n, p.detach()) for n, p in module.named_parameters() if p.is_floating_point()]
    finite = all_finite([p for _, p in named])
    for (name, _), is_finite in zip(named, finite, strict=True):
        if not is_finite:
            raise InputError(
                f"{owner}: expected finite weights, got NaN or infinity in {name}. Load the model "
                "in float32, or use another checkpoint."
            )


def as_model(model: Model | nn.Module) -> Model:
    """Return a model or a module that a user passed, as a ``Model``.

    Parameters
    ----------
    model : Model | Module
        Model or module.
    """
    if isinstance(model, Model):
        return model
    return Model(model, config=model.__dict__.get("config"), task=task_of(model))


def with_tensors(module: nn.Module, changed: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a module with some tensors replaced; all others share their storage.

    Parameters
    ----------
    module : Module
        Module to copy.
    changed : Mapping[str, torch.Tensor]
        New tensors by name.
    """
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
        vars(owner).pop(leaf, None)  # a bias that is None may be no parameter
        before = owner._parameters.get(leaf)
        trains = before is None or before.requires_grad
        owner._parameters[leaf] = nn.Parameter(value, trains and value.is_floating_point())
