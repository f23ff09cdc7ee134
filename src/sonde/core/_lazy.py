"""Packages whose names are imported when they are first used."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy(package: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__all__``, ``__getattr__`` and ``__dir__`` of a package.

    The names stand once, in the ``__init__.pyi`` beside the package's file, where type checkers and
    editors look too: a line ``from home import name as name`` for each.

    Parameters
    ----------
    package : str
        Its ``__name__``.
    """
    module = sys.modules[package]
    text = Path(str(module.__file__)).with_suffix(".pyi").read_text(encoding="utf-8")
    words = (line.split() for line in text.splitlines() if line.startswith("from "))
    homes = {name: (home, own) for _, home, _, own, _, name, *_ in words}

    def found(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, own = homes[name]
        if home == package:
            return importlib.import_module(f"{package}.{own}")
        value = getattr(importlib.import_module(home), own)
        setattr(module, name, value)
        return value

    return sorted(homes), found, lambda: sorted(homes)
