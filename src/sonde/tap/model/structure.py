"""What of a model its weights do not say: the classes of its modules and how they are set.

A twin with Tanh in the place of ReLU, or a norm with another ``eps``, has the same weights.
"""

import hashlib
import re
from collections.abc import Iterator

from torch import nn

from sonde.tap.hooks.names import ModuleNames

PLACED = re.compile(r"\b(?:device|dtype)=[^,)]*|0x[0-9a-fA-F]+")
CONFIGURED = "transformers."


def structure(module: nn.Module) -> str:
    """Return a hash of each module: its class, ``extra_repr`` and the names of unsaved buffers.

    Wrappers, hooks, device and number type do not count. Of modules that transformers wrote only
    their place counts: the configuration says what they are, and versions rename them.

    Parameters
    ----------
    module : nn.Module

    Examples
    --------
    >>> structure(nn.Sequential(nn.ReLU())) == structure(nn.Sequential(nn.Tanh()))
    False
    >>> structure(nn.LayerNorm(3)) == structure(nn.LayerNorm(3, eps=0.1))
    False
    """
    return hashlib.sha256("\n".join(sorted(_lines(module))).encode()).hexdigest()


def _lines(module: nn.Module) -> Iterator[str]:
    for path, part in ModuleNames(module).modules.items():
        kind = type(part)
        known = kind.__module__.startswith(CONFIGURED)
        said = "" if known else f"{kind.__name__.removeprefix('FSDP')}({_settings(part)})"
        unsaved = sorted(n for n in part._non_persistent_buffers_set if n in part._buffers)
        yield f"{path}|{said}|{'' if known else ' '.join(unsaved)}"


def _settings(part: nn.Module) -> str:
    """Return what a module says of itself, without where it is; nothing if it cannot."""
    try:
        return " ".join(PLACED.sub("", part.extra_repr()).split())
    except Exception:  # a user's own text may fail at any time
        return ""
