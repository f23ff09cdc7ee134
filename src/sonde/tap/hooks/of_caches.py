"""Values stored per key-value cache, as long as the cache lives."""

import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")
MOST_PLAIN = 32
"""Caches that are plain tuples, which nothing can watch, of so many values are kept."""


class OfCaches(Generic[Value]):
    """A value for each living cache, by identity."""

    def __init__(self) -> None:
        self._kept: list[tuple[Callable[[], Any], Value, bool]] = []
        self._lock = threading.Lock()

    def get(self, cache: Any) -> Value | None:
        """Return the value of a cache, or None for an unknown cache."""
        return next((value for ref, value, _ in self._kept if ref() is cache), None)

    def put(self, cache: Any, value: Value) -> None:
        """Store a value for a cache; without a cache do nothing."""
        with self._lock:
            kept = [one for one in self._kept if one[0]() is not None and one[0]() is not cache]
            if cache is not None:
                try:
                    kept.append((weakref.ref(cache), value, True))
                except TypeError:  # a plain tuple: the last one of a value is kept
                    plain = [one for one in kept if not one[2] and one[1] is not value]
                    weak = [one for one in kept if one[2]]
                    kept = [*weak, *plain[1 - MOST_PLAIN :], (lambda: cache, value, False)]
            self._kept = kept

    def clear(self) -> None:
        """Drop all caches."""
        with self._lock:
            self._kept = []
