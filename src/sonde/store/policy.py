"""Redaction of personal data in texts, before other code reads them.

Ids are then hashes of redacted texts, and no file holds what was hidden. Patterns find what they
name and nothing else; look at the redacted texts before you share what was made of them.
"""

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, final

import numpy as np

from sonde.core.errors import InputError


@final
@dataclass(frozen=True)
class Policy:
    """Replaces matches of patterns in texts by pseudonyms.

    Parameters
    ----------
    patterns : tuple of str
        Regular expressions of what must not be written.
    key : bytes
        Secret key of the pseudonyms: a text has the same pseudonym under one key and different
        pseudonyms under different keys.

    Examples
    --------
    >>> policy = Policy((r"Ada|Grace", r"[0-9]{4,}"), key=b"0" * 16)
    >>> told = policy.redacted("Ada called Ada, 5551234")
    >>> told.count(policy.redacted("Ada")), "5551234" in told
    (2, False)
    """

    patterns: tuple[str, ...]
    key: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)

    def __post_init__(self) -> None:
        if not self.patterns or not all(self.patterns):
            raise InputError(
                "Policy: expected regular expressions for the text to hide, got none or an "
                "empty one."
            )

    def redacted(self, value: Any) -> Any:
        """Return a text, or the texts of a mapping, list, tuple, set or array, with pseudonyms.

        Parameters
        ----------
        value : object
            Numbers, bytes and the keys of mappings stay as they are.
        """
        if isinstance(value, str):
            return self._pattern.sub(lambda found: self._pseudonym(found[0]), value)
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

    def _pseudonym(self, text: str) -> str:
        return f"[{blake2b(text.encode(), digest_size=6, key=self.key).hexdigest()}]"

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{pattern})" for pattern in self.patterns))
