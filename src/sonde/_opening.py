"""Register packed models with transformers once it is imported.

transformers has a registry of packed forms but no entry points, so a package must be imported to
be known. ``import sonde`` must not import transformers, which takes seconds; and whoever opens a
packed model by ``from_pretrained`` imports sonde and transformers in any order.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

WATCHED = "transformers.quantizers"
FOLLOWER = "sonde._packed_models"
"""What is imported behind the watched module."""


class _Following(Loader):
    """Loads a module with its original loader, then imports sonde's module."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module(FOLLOWER)


class _Watcher(MetaPathFinder):
    """Import hook that finds the watched module and follows its import."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != WATCHED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            spec.loader = _Following(spec.loader)
        return spec


def watch() -> None:
    """Register now if transformers is already imported, else when it is imported."""
    if WATCHED in sys.modules:
        importlib.import_module(FOLLOWER)
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())
