"""Texts respelled by the words of a tokenizer: lost spaces, and lost capitals.

A vocabulary is learned from texts, the frequent words first. So it tells where words end, and
whether a word has a capital, without another list of words.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

SPACES: Final = ("Ġ", "▁")
"""Signs by which byte-level and SentencePiece tokenizers write the space before a word."""
LETTERS: Final = re.compile(r"[A-Za-z]+")
JOINED: Final = re.compile(r"[A-Za-z]{16,}")
"""Letters without a space that are longer than nearly all words."""
FEWEST: Final = 100
"""Words of a vocabulary below which it tells nothing."""
LETTER_NATS: Final = 1.5
"""Cost of a letter of a word that is not in the vocabulary, beside that of the rarest word."""
SINGLE: Final = ("a", "I")
"""Words of one letter; other letters are in vocabularies as pieces."""
STARTS: Final = re.compile(r"(^|[.!?]\s+|\n\s*)([a-z])")

LOST_SPACES: Final = "with spaces between the tokenizer's words"
LOST_CAPITALS: Final = "with the capitals of the tokenizer's words"
LINES: Final[Mapping[str, str]] = {
    LOST_SPACES: "find the step that removes the spaces between words",
    LOST_CAPITALS: "find the step that changes the case of letters",
}


def vocabulary_forms(tokenizer: Any) -> dict[str, Callable[[str], str]]:
    """Return both ways to respell texts, or none if the tokenizer has too few whole words."""
    ranks = word_ranks(tokenizer)
    if len(ranks) < FEWEST:
        return {}
    return {
        LOST_SPACES: lambda text: spaced(text, ranks),
        LOST_CAPITALS: lambda text: capitalised(text, ranks),
    }


def word_ranks(tokenizer: Any) -> dict[str, int]:
    """Return the rank of each word of ASCII letters that is one token with its space."""
    vocabulary = getattr(tokenizer, "get_vocab", dict)()
    words = ((token[1:], i) for token, i in vocabulary.items() if token[:1] in SPACES)
    whole = sorted((i, word) for word, i in words if word.isascii() and word.isalpha()
                   and (len(word) > 1 or word in SINGLE))  # fmt: skip
    return {word: rank for rank, (_, word) in enumerate(whole)}


def spaced(text: str, ranks: Mapping[str, int]) -> str:
    """Return a text with spaces between words where letters are joined, and after its marks.

    Examples
    --------
    >>> spaced("thecatsatonthemat.Yes", {"the": 0, "on": 1, "cat": 2, "sat": 3, "mat": 4})
    'the cat sat on the mat. Yes'
    """
    if not JOINED.search(text):
        return text
    split = LETTERS.sub(lambda m: " ".join(_split(m[0], ranks)), text)
    return re.sub(r"([.,;:!?])(?=[A-Za-z])", r"\1 ", split)


def _split(letters: str, ranks: Mapping[str, int]) -> list[str]:
    """Return the words of joined letters with the least sum of costs, by dynamic programming.

    A word costs the logarithm of its rank, as frequencies of words fall with their rank.
    """
    longest, n = max(map(len, ranks), default=1), len(letters)
    rarest = math.log(len(ranks) + 8)
    cost, start = np.full(n + 1, np.inf), np.zeros(n + 1, dtype=int)
    cost[0] = 0.0
    for end in range(1, n + 1):
        for i in range(max(0, end - longest), end):
            word = letters[i:end]
            rank = ranks.get(word)
            own = rarest + LETTER_NATS * len(word) if rank is None else math.log(rank + 8)
            if cost[i] + own < cost[end]:
                cost[end], start[end] = cost[i] + own, i
    words: list[str] = []
    while n:
        words.append(letters[start[n] : n])
        n = int(start[n])
    return words[::-1]


def capitalised(text: str, ranks: Mapping[str, int]) -> str:
    """Return a text in lower case, with capitals at starts of sentences and in names.

    A name is a word whose form with a capital comes first in the vocabulary.

    Examples
    --------
    >>> capitalised("the house in paris. it is red.", {"the": 0, "The": 1, "Paris": 2})
    'The house in Paris. It is red.'
    """

    def named(found: re.Match[str]) -> str:
        word, name = found[0], found[0].capitalize()
        return name if ranks.get(name, math.inf) < ranks.get(word, math.inf) else word

    lower = LETTERS.sub(named, text.lower())
    return STARTS.sub(lambda m: m[1] + m[2].upper(), lower)
