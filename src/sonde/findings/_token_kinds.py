"""Kinds of tokens by how they are written: capital letters, line breaks, single signs."""

import string
from collections.abc import Callable, Mapping
from typing import Final

KINDS: Final[Mapping[str, Callable[[str], bool]]] = {
    "capital letters": lambda w: any(c.isupper() for c in w),
    "small letters": lambda w: any(c.islower() for c in w),
    "digits": lambda w: any(c.isdigit() for c in w),
    "line breaks": lambda w: "\n" in w,
    "carriage returns": lambda w: "\r" in w,
    "tabs": lambda w: "\t" in w,
    "blanks": lambda w: " " in w,
    "several blanks": lambda w: "  " in w,
    "letters beyond ASCII": lambda w: any(ord(c) > 127 and c.isalpha() for c in w),
    "signs or bytes beyond ASCII": lambda w: any(ord(c) > 127 and not c.isalpha() for c in w),
    "punctuation": lambda w: any(c in string.punctuation for c in w),
}


def kinds_of(word: str) -> list[str]:
    """Return the kinds of a token; a sign of punctuation is a kind of its own.

    Examples
    --------
    >>> kinds_of(" The"), kinds_of("&")
    (['capital letters', 'small letters', 'blanks'], ['punctuation', 'signs &'])
    """
    found = [name for name, is_kind in KINDS.items() if is_kind(word)]
    return found + [f"signs {c}" for c in string.punctuation if c in word]
