"""Packages whose names are imported when they are first used."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from sonde.core.wording import install_extra

_LINE = re.compile(r"from (\S+) import \(?\s*(\w+) as (\w+)")


class _Package(ModuleType):
    """A package where a function may have the name of its file, such as ``measure.two_nn``."""

    def __setattr__(self, name: str, value: Any) -> None:
        # An import sets a file as an attribute of its package; that would hide the function.
        if not isinstance(value, ModuleType) or name not in self.__all__:
            super().__setattr__(name, value)


def homes_of(file: Path) -> dict[str, tuple[str, str]]:
    """Return the module and name of every export that a package's ``__init__.pyi`` lists."""
    text = file.with_suffix(".pyi").read_text(encoding="utf-8")
    return {name: (home, own) for home, own, name in _LINE.findall(text)}


def lazy(
    package: str, extra: str | None = None
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__all__``, ``__getattr__`` and ``__dir__`` of a package.

    The names are listed only in the ``__init__.pyi`` beside the package's file, where type checkers
    and editors look too. Each name has a line ``from home import name as name``. ``__all__`` has
    constants and acronyms first, then classes, then functions: lists of methods keep that order.

    Parameters
    ----------
    package : str
        Its ``__name__``.
    extra : str or None, default=None
        The extra that installs what the package needs.
    """
    module = sys.modules[package]
    homes = homes_of(Path(str(module.__file__)))
    if any(home == f"{package}.{name}" for name, (home, _) in homes.items()):
        module.__class__ = _Package

    def found(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, own = homes[name]
        if home == package:
            return importlib.import_module(f"{package}.{own}")
        value = getattr(_imported(home, package, extra), own)
        setattr(module, name, value)
        return value

    names = sorted(homes, key=lambda name: (not name.isupper(), name[0].islower(), name))
    return names, found, lambda: sorted(homes)


def _imported(home: str, package: str, extra: str | None) -> ModuleType:
    try:
        return importlib.import_module(home)
    except ModuleNotFoundError as error:
        if extra is None or error.name is None or error.name.partition(".")[0] == "sonde":
            raise
        raise ImportError(
            f"{package}: expected the package {error.name}, which is not installed. Run: "
            f"{install_extra(extra)}"
        ) from None
