"""Which modules are attentions whose ports can be read, and which of them a path means."""

import functools
import inspect
from types import FunctionType

from torch import nn

from sonde.core.errors import SiteError
from sonde.tap.hooks.names import Names

INTERFACE = "get_interface"


def is_attention(module: nn.Module) -> bool:
    """Return whether the ports of a module can be read."""
    return isinstance(module, nn.MultiheadAttention) or _asks_interface(type(module))


@functools.cache
def _asks_interface(cls: type[nn.Module]) -> bool:
    """Return whether a class gets its kernel from the interface of transformers."""
    for owner in cls.__mro__:
        for member in vars(owner).values():
            if isinstance(member, FunctionType) and INTERFACE in _names_in(member):
                return True
    return False


def _names_in(function: FunctionType) -> tuple[str, ...]:
    return inspect.unwrap(function).__code__.co_names


def attentions_at(path: str, names: Names) -> list[str]:
    """Return the attentions that a path may mean: itself, or those inside, in order."""
    if is_attention(names.modules[path]):
        return [path]
    inside = f"{path}." if path else ""
    return [name for name, m in names.primary() if name.startswith(inside) and is_attention(m)]


def attention_at(path: str, port: str, names: Names) -> str:
    """Return the attention that a path means: itself, or the only one inside.

    Raises
    ------
    SiteError
        If there is none, or several.
    """
    found = attentions_at(path, names)
    if len(found) == 1:
        return found[0]
    kind = type(names.modules[path]).__name__
    if found:
        raise SiteError(
            f"Site: {path!r} ({kind}) holds {len(found)} attentions: {', '.join(found[:8])}. "
            f"Name one of them, as in {found[0]}:{port}."
        )
    raise SiteError(
        f"Site: expected an attention for the port {port}, got {path!r} ({kind}): neither it nor a "
        "module in it is nn.MultiheadAttention or takes its kernel from the AttentionInterface of "
        "transformers. Name a block with such an attention."
    )
