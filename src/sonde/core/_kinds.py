"""Type checks for containers whose contents are then typed as ``Any``.

A plain ``isinstance(value, dict)`` leaves the types of keys and values unknown.
"""

from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np


def is_tuple(value: object) -> TypeGuard[tuple[Any, ...]]:
    """Return whether ``value`` is a tuple."""
    return isinstance(value, tuple)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Return whether ``value`` is a list."""
    return isinstance(value, list)


def is_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    """Return whether ``value`` is a dict."""
    return isinstance(value, dict)


def is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Return whether ``value`` is a mapping."""
    return isinstance(value, Mapping)


def is_array(value: object) -> TypeGuard["np.ndarray[Any, np.dtype[Any]]"]:
    """Return whether ``value`` is a NumPy array."""
    return isinstance(value, np.ndarray)
