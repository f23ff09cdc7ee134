"""Facts beside a model's weights: the classes of its modules and their settings.

A twin with Tanh in the place of ReLU, or a norm with another ``eps``, has the same weights, and so
has one whose forward reads another ``self.how``.
"""

import dis
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from types import CodeType
from typing import Any

from torch import nn

from sonde.tap.hooks.names import ModuleNames, own_class
from sonde.tap.model.forward_code import forward_functions

PLACED = re.compile(r"\b(?:device|dtype)=[^,)]*|0x[0-9a-fA-F]+")
CONFIGURED = "transformers."
DEVICE = re.compile(r"(?:cpu|cuda|mps|xpu|meta)(?::\d+)?")
HOW_IT_RUNS = frozenset(
    {"training", "gradient_checkpointing", "grad_checkpointing", "fused_attn", "device"}
)
"""Attributes that say how a model runs and not what it computes."""


def structure(module: nn.Module) -> str:
    """Return a hash of each module: class, ``extra_repr``, plain attributes, unsaved buffers.

    An attribute counts if it is a string, a number, a bool, a tuple or a dataclass of these, and if
    a forward of the model reads its name and none assigns it: counters and caches do not count, nor
    do names that begin with ``_``. Wrappers, hooks, device and number type do not count. Of modules
    that transformers wrote only their place counts: the configuration says what they are, and
    versions rename them.

    Parameters
    ----------
    module : nn.Module
        Module whose parts are hashed.

    Examples
    --------
    >>> structure(nn.Sequential(nn.ReLU())) == structure(nn.Sequential(nn.Tanh()))
    False
    >>> structure(nn.LayerNorm(3)) == structure(nn.LayerNorm(3, eps=0.1))
    False
    >>> structure(nn.MultiheadAttention(8, 2)) == structure(nn.MultiheadAttention(8, 4))
    False
    """
    return _hash([*_classes(module), *_attributes(module)])


def known_structure(module: nn.Module, known: str | None) -> str:
    """Return the hash of the modules, or ``known`` if an earlier version hashed them so.

    Earlier versions did not hash attributes.

    Parameters
    ----------
    module : Module
        Module whose structure is hashed.
    known : str | None
        Hash that a file contains; None if it contains none.
    """
    before = _hash([*_classes(module)])
    return before if known == before else structure(module)


def _hash(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _classes(module: nn.Module) -> Iterator[str]:
    for path, part in ModuleNames(module).modules.items():
        kind = own_class(part)
        is_known = _is_known(kind)
        described = "" if is_known else f"{kind.__name__}({settings(part)})"
        unsaved = sorted(n for n in part._non_persistent_buffers_set if n in part._buffers)
        yield f"{path}|{described}|{'' if is_known else ' '.join(unsaved)}"


def _attributes(module: nn.Module) -> Iterator[str]:
    parts = ModuleNames(module).modules
    kinds = dict.fromkeys(own_class(part) for part in parts.values())
    uses = [_names(kind) for kind in kinds if not _is_known(kind)]
    read = frozenset[str]().union(*(names for names, _ in uses))
    counted = read.difference(HOW_IT_RUNS, *(assigned for _, assigned in uses))
    for path, part in parts.items():
        if not _is_known(own_class(part)):
            yield from (f"{path}|{text}" for text in _plain(vars(part), counted))


def _is_known(kind: type[nn.Module]) -> bool:
    return kind.__module__.startswith(CONFIGURED)


def settings(part: nn.Module) -> str:
    """Return a module's ``extra_repr`` without device, type and addresses; empty if it fails."""
    try:
        return " ".join(PLACED.sub("", part.extra_repr()).split())
    except Exception:  # a user's own text may fail at any time
        return ""


def _plain(values: Mapping[str, Any], counted: frozenset[str]) -> Iterator[str]:
    """Yield the name and value of each attribute that consists of plain values."""
    for name, value in values.items():
        if name.startswith("_") or name not in counted:
            continue
        if is_dataclass(value) and not isinstance(value, type):
            fields = {n: getattr(value, n, None) for n in value.__dataclass_fields__}
            yield from (f"{name}.{text}" for text in _plain(fields, counted))
        elif _is_plain(value):
            yield f"{name}={value!r}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return DEVICE.fullmatch(value) is None
    return isinstance(value, bool | int | float | complex)


@cache
def _names(kind: type[nn.Module]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that a class's forward may read, and the attributes that it assigns."""
    read, assigned = set[str](), set[str]()
    waiting = list(forward_functions(kind))
    while waiting:
        code = waiting.pop()
        texts = [c for c in code.co_consts if isinstance(c, str)]  # of ``getattr(self, "how")``
        read |= {*code.co_names, *texts}
        steps = dis.get_instructions(code)
        assigned |= {step.argval for step in steps if step.opname == "STORE_ATTR"}
        waiting += [c for c in code.co_consts if isinstance(c, CodeType)]
    return frozenset(read), frozenset(assigned)
