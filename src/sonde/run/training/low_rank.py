"""Low-rank adapters of peft beside a model's linear layers, merged into their weights later."""

from importlib import import_module
from typing import Any, TypeGuard

import torch
from torch import nn

from sonde.core.errors import InputError, failed_import
from sonde.core.wording import install_extra
from sonde.layers import inserted_layers
from sonde.weights._kinds import is_linear

PREFIX = "low-rank"


def rank_in(scope: str) -> int:
    """Return the rank in a scope, e.g. 8 in ``low-rank:8+norms``; 0 without ``low-rank``.

    Raises
    ------
    InputError
        If the rank is no number of at least 1, or the scope has two ranks.
    """
    asked = [word for word in scope.split("+") if word.partition(":")[0] == PREFIX]
    ranks = [int(number) for _, _, number in (w.partition(":") for w in asked) if number.isdigit()]
    if len(asked) > 1 or len(ranks) != len(asked) or 0 in ranks:
        raise InputError(f"--scope: expected low-rank:N with N of at least 1, got {scope!r}.")
    return ranks[0] if ranks else 0


def check_rank(module: nn.Module, rank: int) -> None:
    """Raise if no linear layer is wide enough for an adapter of this rank.

    Raises
    ------
    InputError
        Names the largest rank.
    """
    parts = (module.get_submodule(name) for name in _linear(module))
    most = max((min(part.weight.shape) for part in parts if _has_matrix(part)), default=rank)
    if rank > most:
        raise InputError(
            f"--scope: expected {PREFIX}:1 to {PREFIX}:{most} for the linear layers of "
            f"{type(module).__name__}, got {PREFIX}:{rank}."
        )


def _has_matrix(part: nn.Module) -> TypeGuard[nn.Linear]:
    return isinstance(getattr(part, "weight", None), torch.Tensor)


def with_adapters(module: nn.Module, rank: int, seed: int) -> None:
    """Add an adapter of a rank to each linear layer; at the start it changes no answer.

    Three kinds of layers are left out. A layer that shares its weight with another module, such as
    a head tied to the embedding: the merged adapter would change both. Parts of inserted layers.
    Layers inside torch's own attention, which reads their weights without running them.

    Raises
    ------
    InputError
        If peft is missing, or no linear layer is left.
    """
    peft = _peft()
    names = _linear(module)
    if not names:
        raise InputError(
            f"--scope {PREFIX}:{rank}: {type(module).__name__} has no linear "
            "layer for an adapter. Choose another scope."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names)
        peft.inject_adapter_in_model(config, module)


def adapter_parameters(module: nn.Module) -> set[str]:
    """Return the names of all adapter parameters."""
    return {name for name, _ in module.named_parameters() if ".lora_" in f".{name}"}


def merge_adapters(module: nn.Module) -> None:
    """Add each adapter to the weight of its layer, and remove the adapter."""
    base = import_module("peft.tuners.tuners_utils").BaseTunerLayer
    for path, part in [*module.named_modules()]:
        if isinstance(part, base):
            adapter: Any = part
            adapter.merge()
            above, _, name = path.rpartition(".")
            setattr(module.get_submodule(above), name, adapter.get_base_layer())


def _linear(module: nn.Module) -> list[str]:
    parts = dict(module.named_modules(remove_duplicate=False))
    holders: dict[int, int] = {}
    for part in parts.values():
        for own in part._parameters.values():
            holders[id(own)] = holders.get(id(own), 0) + 1
    inside = {id(p) for layer in inserted_layers(module).values() for p in layer.modules()}
    return [
        path
        for path, part in parts.items()
        if path
        and is_linear(part)
        and id(part) not in inside
        and holders[id(part.weight)] == 1
        and not isinstance(parts[path.rpartition(".")[0]], nn.MultiheadAttention)
    ]


def _peft() -> Any:
    try:
        return import_module("peft")
    except ImportError as error:
        raise InputError(
            f"--scope {PREFIX}:N needs {failed_import('peft', error)}. Run: "
            f"{install_extra('train')}"
        ) from None
