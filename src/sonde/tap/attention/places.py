"""Find the attention layers with readable ports, and the ones that a path names."""

import functools
import inspect
from collections.abc import Iterable
from types import FunctionType

from torch import nn

from sonde.core.errors import SiteError
from sonde.core.site import ATTENTION_PORTS, Site
from sonde.tap.hooks.names import ModuleNames

INTERFACE = "get_interface"
FUNCTIONS = frozenset({"scaled_dot_product_attention", "softmax"})


def is_attention(module: nn.Module) -> bool:
    """Return whether every port of a module can be read."""
    return isinstance(module, nn.MultiheadAttention) or asks_interface(type(module))


def asks_interface(cls: type[nn.Module]) -> bool:
    """Return whether a class gets its kernel from the attention interface of transformers."""
    return bool(_names_in(cls) & {INTERFACE})


def calls_functions(module: nn.Module) -> bool:
    """Return whether a module may be an attention layer written with torch's functions."""
    return bool(_names_in(type(module)) & FUNCTIONS) and not is_attention(module)


@functools.cache
def _names_in(cls: type[nn.Module]) -> frozenset[str]:
    """Return the names that a class's methods use, without the methods of torch's own classes."""
    owners = [c for c in cls.__mro__ if not c.__module__.startswith("torch.")]
    members = [inspect.unwrap(m) for c in owners for m in vars(c).values() if callable(m)]
    functions = [m for m in members if isinstance(m, FunctionType)]
    return frozenset(name for f in functions for name in f.__code__.co_names)


def attentions_at(path: str, names: ModuleNames) -> list[str]:
    """Return the attention layers that a path names: its module, or those inside it, in order.

    If no module is a known attention, the innermost modules that call torch's functions count.
    """
    if is_attention(names.modules[path]):
        return [path]
    inside = f"{path}." if path else ""
    parts = [(n, m) for n, m in names.primary() if n == path or n.startswith(inside)]
    if attentions := [name for name, module in parts if is_attention(module)]:
        return attentions
    may = [name for name, module in parts if calls_functions(module)]
    return [a for a in may if not any(b.startswith(f"{a}." if a else "") for b in may if b != a)]


def attention_at(path: str, port: str, names: ModuleNames) -> str:
    """Return the attention layer that a path names: itself, or the only one inside.

    Raises
    ------
    SiteError
        If there is none, or several.
    """
    attentions = attentions_at(path, names)
    if len(attentions) == 1:
        return attentions[0]
    kind = type(names.modules[path]).__name__
    if attentions:
        raise SiteError(
            f"Site: {path!r} ({kind}) holds {len(attentions)} attention layers: "
            f"{', '.join(attentions[:8])}. Name one of them, as in {attentions[0]}:{port}."
        )
    raise SiteError(
        f"Site: expected an attention layer for the port {port}, got {path!r} ({kind}): neither "
        "this module nor a module inside it is nn.MultiheadAttention, takes its kernel from the "
        "AttentionInterface of transformers, or calls softmax. Name a block with an attention "
        "layer."
    )


def what_runs(sites: Iterable[Site]) -> str:
    """Return advice for an error: what to name instead of sites that never ran."""
    if any(site.port in ATTENTION_PORTS for site in sites):
        return (
            "a module that runs, with a port that its kernel shows (a plain softmax shows "
            "only probs)"
        )
    return "a module that runs"
