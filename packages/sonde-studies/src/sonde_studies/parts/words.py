"""Words of texts, without a model: their users, and texts without some words."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

WORD = re.compile(r"\w+")


def users_of(texts: Sequence[str], user: Any) -> dict[str, set[str]]:
    """Return the users of each word."""
    users: dict[str, set[str]] = defaultdict(set)
    for text, name in zip(texts, user, strict=True):
        for word in set(WORD.findall(text)):
            users[word].add(str(name))
    return users


def masked(texts: Sequence[str], author: Any, common: float = 0.8) -> list[str]:
    """Return texts with rare words, used by few writers, replaced by a line."""
    users, least = users_of(texts, author), common * len(set(author))
    return [WORD.sub(lambda m: m[0] if len(users[m[0]]) >= least else "_", t) for t in texts]


def private_words(texts: Sequence[str], user: Any) -> dict[str, str]:
    """Return the words that only one user uses, with their user."""
    return {word: next(iter(own)) for word, own in users_of(texts, user).items() if len(own) == 1}
