"""An empty stand-in for torchvision, which pytorch-ood imports but its detectors never use."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "torchvision"


class StandIn(ModuleType):
    """A module in which every name is an empty class."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


class Finder:
    """Finds the stand-in and all of its submodules."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return a spec for torchvision and what is below it."""
        if name == NAME or name.startswith(f"{NAME}."):
            return ModuleSpec(name, Finder, is_package=True)
        return None

    @staticmethod
    def create_module(spec: ModuleSpec) -> StandIn:
        """Return an empty module."""
        return StandIn(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Do nothing."""


def register() -> None:
    """Let this process alone import the stand-in."""
    if NAME not in sys.modules:
        sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]  # a class with static methods
