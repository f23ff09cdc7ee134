"""Redaction of personal data in texts, before other code reads them.

Ids are then hashes of redacted texts, and no file holds what was hidden. Patterns find what they
name and nothing else; look at the redacted texts before you share what was made of them.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, final

import numpy as np

from sonde.core.errors import InputError

Fits = Callable[[str, Sequence[str], str], Sequence[float]]
Writer = Callable[[str, str], Sequence[str]]


@final
@dataclass(frozen=True)
class Policy:
    """Replaces matches of patterns in texts by pseudonyms, or by false names that fit the context.

    A false name is the best of a few candidates by ``fits``, such as a language model's
    log-probability of each after the text before. Inside of one text a name keeps its false name.

    Parameters
    ----------
    patterns : tuple of str
        Regular expressions of what must not be written.
    key : bytes
        Secret key of the pseudonyms: a text has the same pseudonym under one key and different
        pseudonyms under different keys.
    candidates : tuple of str or callable, default=()
        False names, or a function that writes them, such as a language model: it takes the text
        before and the text after, without any name, and returns a list of false names. A name is
        never replaced by itself. Without candidates, pseudonyms are written.
    fits : callable, optional
        Takes the text before, candidates, and the text after; returns a score for each candidate,
        higher = fits better. Without it the key chooses.
    tried : int, default=8
        Candidates that are scored for each name. The key draws which, so that the context alone
        does not decide the false name.

    Examples
    --------
    >>> policy = Policy((r"Ada|Grace", r"[0-9]{4,}"), key=b"0" * 16)
    >>> told = policy.redacted("Ada called Ada, 5551234")
    >>> told.count(policy.redacted("Ada")), "5551234" in told
    (2, False)
    """

    patterns: tuple[str, ...]
    key: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)

    candidates: tuple[str, ...] | Writer = ()
    fits: Fits | None = None
    tried: int = 8

    def __post_init__(self) -> None:
        if not self.patterns or not all(self.patterns):
            raise InputError(
                "Policy: expected regular expressions for the text to hide, got none or an "
                "empty one."
            )
        if self.tried < 1 or (self.fits is not None and not self.candidates):
            raise InputError(
                "Policy: expected candidates for fits to choose from, and to try at least one, got "
                f"{self.candidates} and tried={self.tried}."
            )

    def redacted(self, value: Any) -> Any:
        """Return a text, or the texts of a mapping, list, tuple, set or array, with pseudonyms.

        Parameters
        ----------
        value : object
            Numbers, bytes and the keys of mappings stay as they are.
        """
        if isinstance(value, str):
            return self._replaced(value)
        if isinstance(value, Mapping):
            return {name: self.redacted(x) for name, x in value.items()}
        if isinstance(value, np.ndarray) and value.dtype.kind in ("O", "T", "U"):
            values = [self.redacted(x) for x in value.reshape(-1).tolist()]
            return np.fromiter(values, dtype=object, count=len(values)).reshape(value.shape)
        if isinstance(value, list | tuple | set | frozenset):
            values = [self.redacted(x) for x in value]
            named = isinstance(value, tuple) and type(value) is not tuple
            return type(value)(*values) if named else type(value)(values)
        return value

    def rows(self, rows: Iterable[Any]) -> Iterator[Any]:
        """Yield the rows of a table, redacted."""
        return map(self.redacted, rows)

    def _replaced(self, text: str) -> str:
        """Return a text without the names; later false names are chosen behind earlier ones."""
        if not self.candidates:
            return self._pattern.sub(lambda found: self._pseudonym(found[0]), text)
        chosen, written, end = dict[str, str](), "", 0
        for match in self._pattern.finditer(text):
            written, end = written + text[end : match.start()], match.end()
            if match[0] not in chosen:
                chosen[match[0]] = self._false_name(written, match[0], text[end:])
            written += chosen[match[0]]
        return written + text[end:]

    def _false_name(self, before: str, name: str, after: str) -> str:
        """Return the best of the candidates that the key draws for a name."""
        after = self._pattern.sub("", after)
        given = self.candidates(before, after) if callable(self.candidates) else self.candidates
        others = [other for other in given if other and not self._pattern.search(other)]
        if not others:
            return self._pseudonym(name)
        drawn = sorted(others, key=lambda other: self._hash(f"{name}\0{other}"))[: self.tried]
        if self.fits is None:
            return drawn[0]
        scores = list(self.fits(before, drawn, after))
        if len(scores) != len(drawn):
            raise InputError(
                f"Policy: expected {len(drawn)} scores from fits, one for each candidate, got "
                f"{len(scores)}."
            )
        return drawn[max(range(len(drawn)), key=scores.__getitem__)]

    def _pseudonym(self, text: str) -> str:
        return f"[{self._hash(text)}]"

    def _hash(self, text: str) -> str:
        return blake2b(text.encode(), digest_size=6, key=self.key).hexdigest()

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{pattern})" for pattern in self.patterns))
