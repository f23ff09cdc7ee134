"""Check that every public parameter has a sentence that stands by itself.

    python tools/check_parameters.py

Two rules, for the exports of all packages of sonde (functions, and classes that are called):

- a parameter has a text in the ``Parameters`` section, or in the ``Attributes`` section of a class;
  entries of several names (``mean, std : Tensor``) count for each;
- the text does not begin with ``Of`` or with a pronoun, and is more than a bare type.

Results and states, which nobody creates by hand, parameters that start with ``_``, aliases of types
and what a class without a constructor of its own passes on to ``nn.Module`` are left out.
"""

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from typing import Any

import sonde
from sonde.core.errors import SondeError
from sonde.core.result import Result
from sonde.core.state import State

FORM = re.compile(r"^(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: :.*)?$")
NOT_ALONE = re.compile(r"^(?:Of|Its|Their|It|They|Those|These|That|This|Such|One|As)\b")
"""First words of a text that needs another sentence to be understood."""


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the lines of each section of a numpy docstring."""
    parts = re.split(r"(?m)^(\w[\w ]*)\n-{3,}\n", text)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def described(text: str) -> dict[str, str]:
    r"""Return the text of each parameter in a docstring.

    Examples
    --------
    >>> described("Do.\n\nParameters\n----------\na, b : int\n    Sizes.\nc : int\n")
    {'a': 'Sizes.', 'b': 'Sizes.', 'c': ''}
    """
    found: dict[str, str] = {}
    for name, body in sections(text):
        if name not in ("Parameters", "Attributes"):
            continue
        names: list[str] = []
        for line in body.splitlines():
            form = FORM.match(line)
            if form:
                names = [word.lstrip("*") for word in form["names"].split(", ")]
                found |= dict.fromkeys(names, "")
            elif line.strip():
                for word in names:
                    found[word] = f"{found[word]} {line.strip()}".strip()
    return found


def exports() -> dict[str, Any]:
    """Return every public callable by its shortest name."""
    rooms = [m.name for m in pkgutil.iter_modules(sonde.__path__) if not m.name.startswith("_")]
    packages = [sonde, *(importlib.import_module(f"sonde.{room}") for room in rooms)]
    found: dict[int, tuple[str, Any]] = {}
    for package in packages:
        for name in getattr(package, "__all__", ()):
            value = getattr(package, name)
            is_called = isinstance(value, type) or inspect.isroutine(value)
            if is_called and not _is_base(value) and not _is_made(value):
                found.setdefault(id(value), (f"{package.__name__}.{name}", value))
    return dict(found.values())


def _is_base(value: Any) -> bool:
    """Return whether a class is abstract or a protocol, so that nobody calls it."""
    return inspect.isabstract(value) or getattr(value, "_is_protocol", False)


def _is_made(value: Any) -> bool:
    """Return whether a class is a result, a state or an error: sonde alone creates these."""
    kinds = (Result, State, SondeError, Warning)
    return isinstance(value, type) and issubclass(value, kinds)


def faults(name: str, value: Any) -> Iterator[str]:
    """Yield what is wrong with the parameters of an export."""
    try:
        parameters = inspect.signature(value).parameters.values()
        if isinstance(value, type) and value.__init__.__module__.startswith("torch."):
            return
    except (ValueError, TypeError):
        return
    texts = described(inspect.getdoc(value) or "")
    if isinstance(value, type):
        texts = described(inspect.getdoc(value.__init__) or "") | texts
    for parameter in parameters:
        if parameter.name.startswith("_") or parameter.name == "self":
            continue
        text = texts.get(parameter.name, "")
        if not text:
            yield f"{name}: {parameter.name} has no sentence"
        elif NOT_ALONE.match(text):
            yield f"{name}: {parameter.name} does not stand by itself: {text[:60]!r}"


def main() -> int:
    """Print every parameter without a sentence of its own, and return the exit code."""
    wrong = [fault for name, value in exports().items() for fault in faults(name, value)]
    print(*wrong, f"{len(wrong)} parameters have no sentence of their own", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
