"""Identity of the rows of plain arrays: keys, ids and occurrences, computed on first use."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from sonde.engine._array_columns import sequence


class RowIdentity:
    """Keys and occurrences of array rows, hashed on first use."""

    def __init__(
        self,
        ids: tuple[bytes, ...] | None,
        keys: tuple[bytes, ...] | None,
        sites: dict[str, Tensor],
        positions: Tensor,
        numbered: bool = False,
    ) -> None:
        self._ids, self._keys, self._sites, self._positions = ids, keys, sites, positions
        self._numbered = numbered and ids is None and keys is None

    @property
    def given(self) -> tuple[bytes, ...] | None:
        """Ids of the rows, if they were given."""
        return self._ids

    @property
    def keys_given(self) -> tuple[bytes, ...] | None:
        """Keys of the rows, if they were given."""
        return self._keys

    @cached_property
    def keys(self) -> tuple[bytes, ...]:
        """The key of each row."""
        return self.contents if self._keys is not None or self._ids is None else self._ids

    @cached_property
    def contents(self) -> tuple[bytes, ...]:
        """Keys that distinguish rows: given keys, else row numbers, else hashes of all sites."""
        if self._keys is not None:
            return self._keys
        if self._numbered:
            return tuple(b"%d" % i for i in range(len(self._positions)))
        own = list(self._sites.values())
        return row_keys(own[0] if len(own) == 1 else torch.cat([x.double() for x in own], dim=1))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The id of each row as text."""
        if self._ids is None and not self._numbered:
            return tuple(key.hex() for key in self.keys)
        return tuple(key.decode("utf-8", "replace") for key in self._ids or self.keys)

    @cached_property
    def has_examples_of_rows(self) -> bool:
        """True if an example with a given id or key has rows at several positions."""
        named = self._ids is not None or self._keys is not None
        if not named or bool((self._positions == 0).all()):
            return False
        places = set(zip(self.keys, self._positions.numpy().tolist(), strict=True))
        return len(places) > len(set(self.keys))

    @cached_property
    def occurrence(self) -> Tensor:
        """Return the counts 0, 1, ... of rows with equal key and position, in order."""
        return occurrences(list(zip(self.keys, self._positions.numpy().tolist(), strict=True)))


class LazySlice(Sequence[Any]):
    """A slice of a sequence that is computed on first use."""

    def __init__(self, make: Callable[[], Any], start: int, stop: int) -> None:
        self._make, self._start, self._stop = make, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    @cached_property
    def _items(self) -> Any:
        return self._make()[self._start : self._stop]

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


def row_keys(x: Tensor) -> tuple[bytes, ...]:
    """Return the content key of each row, equal to the ``tensor_key`` of the row."""
    x = x.detach().cpu().contiguous()
    head = f"{str(x.dtype).removeprefix('torch.')}|{tuple(x.shape[1:])}|".encode()
    begun = blake2b(head, digest_size=16)
    width = x.shape[1] * x.element_size()
    raw = x.reshape(-1).view(torch.uint8).numpy().data if x.numel() else memoryview(b"")
    return tuple(_digest(begun, raw[i * width : (i + 1) * width]) for i in range(len(x)))


def _digest(begun: Any, content: memoryview) -> bytes:
    own = begun.copy()
    own.update(content)
    return own.digest()


def occurrences(keys: Sequence[Hashable]) -> Tensor:
    """Return the counts 0, 1, ... of equal keys, in order."""
    seen: Counter[Hashable] = Counter()
    out = torch.zeros(len(keys), dtype=torch.int64)
    if len(set(keys)) == len(keys):
        return out
    for i, key in enumerate(keys):
        out[i] = seen[key]
        seen[key] += 1
    return out


def identity_of(
    ids: Any, keys: Any, sites: dict[str, Tensor], positions: Tensor, numbered: bool = False
) -> RowIdentity:
    """Return the identity of rows: ids, else keys, else numbers, or a hash of their values."""
    first = next(iter(sites.values()))
    own = None if keys is None else tuple(text_bytes(k) for k in sequence(keys, len(first), "keys"))
    texts = None if ids is None else tuple(map(text_bytes, sequence(ids, len(first), "ids")))
    return RowIdentity(texts, own, sites, positions, numbered)


def text_bytes(value: Any) -> bytes:
    """Return a name as bytes."""
    return value if isinstance(value, bytes) else str(value).encode()


def text_hashes(values: Sequence[Any]) -> Tensor:
    """Return an integer for each name, equal for equal names."""
    words = [blake2b(text_bytes(v), digest_size=8).digest() for v in values]
    return torch.tensor(
        [int.from_bytes(w, "little", signed=True) for w in words], dtype=torch.int64
    )


def joined_hash(texts: Sequence[bytes]) -> str:
    """Return one hash of texts, including their lengths."""
    digest = blake2b(digest_size=16)
    for text in texts:
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()
