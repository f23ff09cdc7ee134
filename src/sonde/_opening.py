"""Register changed models with transformers and ``sonde.load`` once these are imported.

``import sonde`` must not import transformers, which takes seconds; and whoever opens a packed model
by ``from_pretrained`` imports sonde and transformers in any order.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

FOLLOWERS = {
    "transformers.quantizers": "sonde._packed_models",
    "sonde.data.loading": "sonde._opened_folders",
}
"""Modules that are watched, and those of ours that are imported behind them."""


class _Following(Loader):
    """Runs a module as its own loader does, then imports ours."""

    def __init__(self, loader: Any, follower: str) -> None:
        self.loader, self.follower = loader, follower

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module(self.follower)


class _Watcher(MetaPathFinder):
    """Finds the watched modules, as they are found without us."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in FOLLOWERS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            spec.loader = _Following(spec.loader, FOLLOWERS[fullname])
        return spec


def watch() -> None:
    """Import what follows on modules that are there, and on others when they are imported."""
    for watched, follower in FOLLOWERS.items():
        if watched in sys.modules:
            importlib.import_module(follower)
    if not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())
