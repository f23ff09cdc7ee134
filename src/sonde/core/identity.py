"""When what two streams say of their models agrees: not to know something is no difference."""

from typing import Any

UNKNOWN_TO_SOME = ("attn",)


def agree(name: str, a: Any, b: Any) -> bool:
    """Return whether two values of a fact are the same, as far as both are known.

    States and stores of earlier versions do not know the attention kernel.

    Examples
    --------
    >>> agree("attn", "sdpa", None), agree("attn", "sdpa", "eager"), agree("dtype", "int8", None)
    (True, False, False)
    """
    return a == b or (name in UNKNOWN_TO_SOME and None in (a, b))
