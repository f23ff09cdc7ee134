"""Words shared at the beginning or end of texts, and the order of words."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

SHUFFLES: Final = 20
FEWEST_WORDS: Final = 12
"""Words of a text that counts for the order of words."""
PUNCTUATION: Final = (".", ",", ";", ":", "?", "!", "。", "，", "？", "！", "।", "؟", "،")
MOST_WORDS: Final = 40_000
"""Words of all texts whose order is looked at, half a second of work; texts are drawn."""
SIDES: Final = ("begin", "end")


@dataclass(frozen=True)
class SharedWords:
    """Words that texts begin or end with.

    Parameters
    ----------
    side : str
        ``begin`` or ``end``.
    words : tuple of str
    holders : tuple of int
        The texts that have them.
    share : float
        Mean fraction of the characters of all texts that these words are.
    """

    side: str
    words: tuple[str, ...]
    holders: tuple[int, ...]
    share: float


@dataclass(frozen=True)
class WordOrder:
    """Number of pairs of neighbouring words that also occur in another text.

    Parameters
    ----------
    found : int
        In the texts as given.
    mean, spread : float
        Mean and standard deviation with the words of each text in random order.
    sentences : float
        Fraction of the texts that have what sentences have: a word twice, and punctuation.
    n : int
        Texts that were long enough.
    """

    found: int
    mean: float
    spread: float
    sentences: float
    n: int

    @property
    def ratio(self) -> float:
        """Number of repeated pairs in given order, divided by that in random order."""
        return self.found / self.mean if self.mean else float("nan")

    @property
    def error(self) -> float:
        """Standard deviation of the ratio under random order."""
        return self.spread / self.mean if self.mean else float("inf")


def shared_words(texts: Sequence[str], side: str, most: float = 0.9) -> SharedWords:
    """Return the longest beginning or ending that this fraction of the texts shares.

    Examples
    --------
    >>> shared_words(["A b c", "A b d", "A b"], "begin").words
    ('A', 'b')
    """
    step = 1 if side == "begin" else -1
    split = [text.split()[::step] for text in texts]
    left, words = list(range(len(texts))), []
    while True:
        depth = len(words)
        here = Counter(split[i][depth] for i in left if len(split[i]) > depth)
        word, count = here.most_common(1)[0] if here else ("", 0)
        if count < max(2.0, most * len(texts)):
            break
        left = [i for i in left if len(split[i]) > depth and split[i][depth] == word]
        words.append(word)
    size = len(" ".join(words))
    parts = [size / max(len(" ".join(split[i])), 1) for i in left] if words else []
    return SharedWords(side, tuple(words[::step]), tuple(left), sum(parts) / max(len(texts), 1))


def word_order(texts: Sequence[str], seed: int) -> WordOrder:
    """Count the pairs of neighbouring words that texts share, as given and in random order."""
    split = [words for text in texts if len(words := text.lower().split()) >= FEWEST_WORDS]
    draw = random.Random(seed)
    split = _drawn(split, draw)
    shared = _shared_pairs(split)
    counts = []
    for _ in range(SHUFFLES if split else 0):
        counts.append(_shared_pairs([draw.sample(words, len(words)) for words in split]))
    mean, spread = (float(np.mean(counts)), float(np.std(counts, ddof=1))) if counts else (0.0, 0.0)
    sentences = sum(map(_has_sentences, split)) / max(len(split), 1)
    return WordOrder(shared, mean, spread, sentences, len(split))


def _has_sentences(words: Sequence[str]) -> bool:
    """Return whether a text looks like sentences: a repeated word and punctuation."""
    return len(set(words)) < len(words) and any(word.endswith(PUNCTUATION) for word in words)


def _drawn(texts: list[list[str]], draw: random.Random) -> list[list[str]]:
    """Return all texts, or a random subset with at most ``MOST_WORDS`` words."""
    if sum(map(len, texts)) <= MOST_WORDS:
        return texts
    texts = draw.sample(texts, len(texts))
    so_far = itertools.accumulate(map(len, texts))
    return [words for words, n in zip(texts, so_far, strict=True) if n <= MOST_WORDS]


def _shared_pairs(texts: Sequence[Sequence[str]]) -> int:
    """Return how many pairs of neighbouring words also occur in another text."""
    counts = Counter(pair for words in texts for pair in set(itertools.pairwise(words)))
    return sum(n for n in counts.values() if n > 1)
