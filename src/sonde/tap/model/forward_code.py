"""The code of a user's own forward methods, which may call ``relu`` or ``tanh``.

Neither weights nor the classes of modules say it. A rewritten forward may compute the same numbers,
so another hash is a reason to warn, not to refuse.
"""

import dis
import hashlib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from torch import nn

from sonde.tap.hooks.names import ModuleNames, own_class

LIBRARIES = frozenset({"torch", "transformers"})
"""Packages whose forwards are known by their version and configuration."""
GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})


def forward_code(module: nn.Module) -> str:
    """Return a hash of a model's compiled forward methods and their functions.

    Comments, docstrings, annotations and the names of variables do not count, nor do modules of
    torch and transformers. The hash begins with the version of Python: each compiles otherwise.

    Parameters
    ----------
    module : Module
        Module whose code is hashed.

    Examples
    --------
    >>> class Squared(nn.Module):
    ...     def forward(self, x):
    ...         return x * x
    >>> class Doubled(nn.Module):
    ...     def forward(self, x):
    ...         return x + x
    >>> forward_code(Squared()) == forward_code(Doubled())
    False
    """
    kinds = dict.fromkeys(own_class(part) for part in ModuleNames(module).modules.values())
    own = [kind for kind in kinds if package(kind) not in LIBRARIES]
    parts = {
        "\n".join(instructions(code) for code in forward_functions(kind, LIBRARIES)) for kind in own
    }
    digest = hashlib.sha256("\n\n".join(sorted(parts)).encode()).hexdigest()
    return f"{sys.version_info.major}.{sys.version_info.minor}:{digest}"


def forward_functions(
    kind: type[nn.Module], without: frozenset[str] = frozenset()
) -> Iterator[CodeType]:
    """Yield the code of a class's forward and of its own package's functions, each once.

    Parameters
    ----------
    kind : type
    without : frozenset of str, default=frozenset()
        Packages whose functions are passed over.
    """
    waiting: list[Any] = [kind.forward]
    seen: set[CodeType] = set()
    while waiting:
        function = inspect.unwrap(waiting.pop())
        code = getattr(function, "__code__", None)
        if code is None or code in seen or package(function) in without:
            continue
        seen.add(code)
        yield code
        names = used_names(code)
        called = [function.__globals__.get(name) for name in names.of_globals]
        called += [inspect.getattr_static(kind, name, None) for name in names.of_attributes]
        if "super" in names.of_globals:
            called += [vars(base).get(n) for base in kind.__mro__ for n in names.of_attributes]
        own = [f for f in called if isinstance(f, FunctionType)]
        waiting += [f for f in own if package(f) == package(function)]


class UsedNames(NamedTuple):
    """Names that code reads as globals, and names of attributes."""

    of_globals: tuple[str, ...]
    of_attributes: tuple[str, ...]


@cache
def used_names(code: CodeType) -> UsedNames:
    """Return the names that code uses, apart: ``self.norm`` is no use of a function ``norm``.

    Parameters
    ----------
    code : CodeType
    """
    steps = [step for step in dis.get_instructions(code) if step.opcode in dis.hasname]
    is_global = {step.argval: None for step in steps if step.opname in GLOBAL}
    others = {step.argval: None for step in steps if step.opname not in GLOBAL}
    return UsedNames(tuple(is_global), tuple(others))


def instructions(code: CodeType) -> str:
    """Return the instructions with their names and constants; variables by index."""
    steps = dis.get_instructions(code)
    return " ".join(f"{step.opname}({_argument(step)})" for step in steps)


def _argument(step: dis.Instruction) -> str:
    if step.opcode in dis.hasname:
        return str(step.argval)
    if step.opcode not in dis.hasconst:
        return str(step.arg)
    value = step.argval
    if isinstance(value, CodeType):
        return instructions(value)
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def package(thing: Any) -> str:
    """Return the package that a class or function belongs to."""
    return str(thing.__module__).partition(".")[0]
