"""Results that several rules share, computed once for each evidence."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


def once(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """Cache a function of the evidence for as long as the evidence lives."""
    kept: WeakKeyDictionary[Any, T] = WeakKeyDictionary()

    @wraps(function)
    def remembered(evidence: Any) -> T:
        if evidence not in kept:
            kept[evidence] = function(evidence)
        return kept[evidence]

    return remembered
