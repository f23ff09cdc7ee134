"""Hooks that stay behind where their module is copied."""

from collections.abc import Callable
from functools import partial
from typing import Any


class Hook(partial[Any]):
    """A function with its first arguments; a copy of it, as of a copied module, does nothing."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing


def _nothing(*args: Any) -> None:
    """Stand for the hook of a session in a copy of the module, which the session does not see."""
