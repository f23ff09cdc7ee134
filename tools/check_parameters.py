"""Check that every public parameter has a sentence that stands by itself.

    python tools/check_parameters.py [--list]

Two rules, for the exports of all packages of sonde (functions, and classes that are called):

- a parameter has a text in the ``Parameters`` section, or in the ``Attributes`` section of a class;
  entries of several names (``mean, std : Tensor``) count for each;
- the text does not begin with ``Of`` or with a pronoun, and is more than a bare type.

Results and states, which nobody creates by hand, and parameters that start with ``_`` are left out.
``ROOMS_TO_DO`` lists the rooms where parameters are still missing, and how many: a number may fall,
and must be lowered here when it does.
"""

import importlib
import inspect
import pkgutil
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import sonde
from sonde.core.errors import SondeError
from sonde.core.result import Result
from sonde.core.state import State

ROOMS_TO_DO: Final[dict[str, int]] = {
    "compress": 23,
    "edit": 8,
    "explain": 160,
    "layers": 123,
    "measure": 9,
    "stats": 106,
}
"""Parameters without a sentence, by room; rooms that are not named have none."""

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
            if callable(value) and not _is_base(value) and not _is_made(value):
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
    """Print every fault, or with ``--list`` also those of rooms to do; return the exit code."""
    every = [(name, fault) for name, value in exports().items() for fault in faults(name, value)]
    rooms = Counter(".".join(name.split(".")[1:-1]) or "sonde" for name, _ in every)
    wrong = {room for room, n in rooms.items() if n > ROOMS_TO_DO.get(room, 0)}
    for name, fault in every:
        if "--list" in sys.argv or (".".join(name.split(".")[1:-1]) or "sonde") in wrong:
            print(fault)
    stale = [room for room, n in ROOMS_TO_DO.items() if rooms[room] < n]
    for room in stale:
        print(
            f"{room}: {rooms[room]} parameters are left; lower ROOMS_TO_DO from {ROOMS_TO_DO[room]}"
        )
    print(f"{len(every)} parameters have no sentence of their own: {dict(rooms)}")
    return 1 if wrong or stale else 0


if __name__ == "__main__":
    sys.exit(main())
