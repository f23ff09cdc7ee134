"""Hooks that do nothing in copies of their module."""

from collections.abc import Callable
from functools import partial
from typing import Any


class Hook(partial[Any]):
    """A function with its first arguments; a copy, as in a copied module, does nothing."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing


def _nothing(*args: Any) -> None:
    """Do nothing: replaces a session's hook in a copy of the module."""
