"""Results that several rules share, computed once for each evidence."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Final, TypeVar

T = TypeVar("T")
KEPT: Final = "_results_once"


def once(function: Callable[[Any], T]) -> Callable[[Any], T]:
    """Cache a function of the evidence for as long as the evidence lives.

    The evidence itself holds the result: a weak dictionary keeps both for ever if the result holds
    the evidence.
    """

    @wraps(function)
    def remembered(evidence: Any) -> T:
        kept: dict[Any, T] = vars(evidence).setdefault(KEPT, {})
        if function not in kept:
            kept[function] = function(evidence)
        return kept[function]

    return remembered
