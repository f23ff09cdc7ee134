"""Low-rank adapters of peft on the linear layers of a model, and back into its weights."""

from importlib import import_module
from typing import Any

import torch
from torch import nn

from sonde.core.errors import InputError
from sonde.layers import inserted_layers
from sonde.weights._kinds import is_linear

PREFIX = "low-rank"


def rank_in(scope: str) -> int:
    """Return the rank that a scope asks for, as 8 of ``low-rank:8+norms``; 0 if it asks for none.

    Raises
    ------
    InputError
        If a rank is no number of at least 1, or there are two.
    """
    asked = [word for word in scope.split("+") if word.partition(":")[0] == PREFIX]
    ranks = [int(number) for _, _, number in (w.partition(":") for w in asked) if number.isdigit()]
    if len(asked) > 1 or len(ranks) != len(asked) or 0 in ranks:
        raise InputError(f"--scope: expected low-rank:N with N of at least 1, got {scope!r}.")
    return ranks[0] if ranks else 0


def with_adapters(module: nn.Module, rank: int, seed: int) -> None:
    """Put an adapter of a rank beside each linear layer; it changes no answer at the start.

    Left out are layers whose weight is that of another module too, as a head that is tied to the
    embedding: merged, an adapter there would change both; parts of inserted layers; and the layers
    inside torch's own attention, which reads their weights without running them.

    Raises
    ------
    InputError
        If peft is missing, or no linear layer is left.
    """
    peft = _peft()
    names = _linear(module)
    if not names:
        raise InputError(
            f"--scope {PREFIX}:{rank}: {type(module).__name__} has no linear layer that an "
            "adapter can stand beside. Choose another scope."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names)
        peft.inject_adapter_in_model(config, module)


def adapter_parameters(module: nn.Module) -> set[str]:
    """Return the names of the parameters of all adapters."""
    return {name for name, _ in module.named_parameters() if ".lora_" in f".{name}"}


def merge_adapters(module: nn.Module) -> None:
    """Add each adapter to the weight beside which it stands, and take it away."""
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
    except ImportError:
        raise InputError(
            f"--scope {PREFIX}:N needs the package peft, which is not installed. Run: "
            "pip install 'sonde[train]'."
        ) from None
