"""The code of a user's own forward methods, which may call ``relu`` or ``tanh``.

Neither weights nor the classes of modules say it. A rewritten forward may compute the same numbers,
so another hash is a reason to warn, not to refuse.
"""

import dis
import hashlib
import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from sonde.tap.hooks.names import ModuleNames, own_class

LIBRARIES = frozenset({"torch", "transformers"})
"""Packages whose forwards are known by their version and configuration."""


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
        for name in code.co_names:
            called = [inspect.getattr_static(kind, name, function.__globals__.get(name))]
            if "super" in code.co_names:
                called = [vars(base).get(name) for base in kind.__mro__] + called
            own = [f for f in called if isinstance(f, FunctionType)]
            waiting += [f for f in own if package(f) == package(function)]


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
