"""Plain arrays as a stream: every row an example, named by its content or by given ids."""

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sonde.core._kinds import is_array, is_mapping
from sonde.core.batch import Batch, Head, SiteSchema
from sonde.core.errors import InputError, ShapeError, SondeWarning
from sonde.core.hashing import tensor_key
from sonde.core.site import Reducer, Site
from sonde.core.stream import Stream
from sonde.core.tensors import as_tensor

ARRAY_BATCH = 2048


@dataclass(frozen=True, eq=False)
class ArrayStream(Stream):
    """Plain arrays as a stream; each row is one example."""

    rows: dict[str, Tensor]
    who: "_Identity"
    label: Tensor
    groups: tuple[bytes, ...] | None
    positions: Tensor
    grad: dict[str, Tensor]
    logits: Tensor | None
    pair: Tensor | None
    side: Tensor | None
    head: Head | None
    seed: int = 0
    extra: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def schema(self) -> tuple[SiteSchema, ...]:
        """One kind of rows per array."""
        return tuple(
            SiteSchema(
                key,
                _array_site(key, i),
                Reducer("flat"),
                x.shape[1],
                str(x.dtype).removeprefix("torch."),
            )
            for i, (key, x) in enumerate(self.rows.items())
        )

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The groups, or each row's own key."""
        if self.groups is not None:
            return self.groups
        return _Later(lambda: self.who.keys, 0, len(self))

    @property
    def grouped(self) -> bool:
        """Whether groups were given, or rows at several positions are one example."""
        return self.groups is not None or self.who.has_examples_of_rows

    @property
    def examples_of_rows(self) -> Sequence[Hashable] | None:
        """The id and occurrence of each row where examples have several; None else."""
        if not self.who.has_examples_of_rows:
            return None
        return list(zip(self.who.keys, self.who.occurrence.numpy().tolist(), strict=True))

    @property
    def source_rows(self) -> np.ndarray:
        """The number of each row in its array."""
        return np.arange(len(self))

    def __len__(self) -> int:
        return len(self.label)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield slices of at most ``ARRAY_BATCH`` rows."""
        for first in range(start, stop, ARRAY_BATCH):
            yield self._slice(first, min(first + ARRAY_BATCH, stop))

    def _slice(self, start: int, stop: int) -> Batch:
        part = slice(start, stop)
        index = torch.arange(stop - start)
        position = self.positions[part]
        keys = _Later(lambda: self.who.keys, start, stop)
        return Batch(
            rows={k: x[part] for k, x in self.rows.items()},
            ids=_Later(lambda: self.who.ids, start, stop),
            keys=keys,
            order=torch.arange(start, stop),
            occurrence=_Later(lambda: self.who.occurrence.numpy().tolist(), start, stop),
            example=dict.fromkeys(self.rows, index),
            position=dict.fromkeys(self.rows, position),
            group_keys=keys if self.groups is None else self.groups[part],
            label=self.label[part],
            logits=None if self.logits is None else self.logits[part],
            grad={k: g[part] for k, g in self.grad.items()},
            pair=None if self.pair is None else self.pair[part],
            side=None if self.side is None else self.side[part],
            head=self.head,
            seed=self.seed,
            extra={name: values[part] for name, values in self.extra.items()},
            scattered=True,
        )

    def identity(self) -> dict[str, Any]:
        """Name arrays and columns by shape, type and a hash of their bytes; a head by its hash."""
        columns = {
            "label": self.label,
            "position": self.positions,
            "logits": self.logits,
            **self.extra,
            "pair": self.pair,
            "side": self.side,
            **{f"grad of {key}": grad for key, grad in self.grad.items()},
        }
        texts = {"ids": self.who.given, "keys": self.who.keys_given, "group": self.groups}
        return {
            "arrays": {key: _named(x) for key, x in self.rows.items()},
            "columns": {name: _named(x) for name, x in columns.items() if x is not None}
            | {name: _joined(t) for name, t in texts.items() if t is not None},
            "seed": self.seed,
            **({} if self.head is None else {"head": _head_key(self.head)}),
        }


def array_stream(
    x: Any,
    *,
    label: Any = None,
    grad: Any = None,
    logits: Any = None,
    perturbed_logits: Any = None,
    ids: Any = None,
    keys: Any = None,
    group: Any = None,
    position: Any = None,
    pair: Any = None,
    side: Any = None,
    first_error: Any = None,
    head: Head | None = None,
    seed: int = 0,
) -> ArrayStream:
    """Return a stream of plain arrays; the arguments are those of ``Stream.of``."""
    rows = {str(k): _matrix(v, str(k)) for k, v in x.items()} if is_mapping(x) else None
    sites = rows if rows is not None else {"x": _matrix(x, "x")}
    if not sites:
        raise InputError("Stream.of: expected at least one array, got none.")
    n = len(next(iter(sites.values())))
    uneven = {k: len(v) for k, v in sites.items() if len(v) != n}
    if uneven:
        raise ShapeError(f"Stream.of: expected {n} rows at every site, got {uneven}.")
    given = grad if is_mapping(grad) else ({} if grad is None else {next(iter(sites)): grad})
    if unknown := [str(k) for k in given if str(k) not in sites]:
        raise ShapeError(f"Stream.of: expected gradients of {', '.join(sites)}, got {unknown}.")
    positions = _integers(position, n, "position", 0)
    who = _who(ids, keys, sites, positions)
    sides = None if side is None else _integers(side, n, "side", 0)
    return ArrayStream(
        rows=sites,
        who=who,
        label=_labels(label, n),
        groups=_groups(group, n) or _pairs_as_groups(pair, sides, who),
        positions=positions,
        grad={str(k): _beside(v, n, f"grad of {k}") for k, v in given.items()},
        logits=None if logits is None else _beside(logits, n, "logits"),
        extra=_extra(n, perturbed_logits, first_error),
        pair=None if pair is None else _hashes(_sequence(pair, n, "pair")),
        side=sides,
        head=head,
        seed=seed,
    )


def _groups(group: Any, n: int) -> tuple[bytes, ...] | None:
    return None if group is None else tuple(_text(g) for g in _sequence(group, n, "group"))


def _pairs_as_groups(pair: Any, side: Tensor | None, who: "_Identity") -> tuple[bytes, ...] | None:
    """Return the pair of each row that is a side of one, and the key of every other row."""
    if pair is None or side is None:
        return None
    pairs = map(_text, _sequence(pair, len(side), "pair"))
    sided = zip(side.numpy().tolist(), pairs, who.keys, strict=True)
    return tuple(named if which >= 0 else own for which, named, own in sided)


def _array_site(name: str, order: int) -> Site:
    """Return the site of an array; a name with a colon is the text of one."""
    return replace(Site.parse(name), order=order) if ":" in name else Site(name, order=order)


def _named(x: Tensor) -> list[Any]:
    return [list(x.shape), str(x.dtype), tensor_key(x).hex()]


def _head_key(head: Head) -> str:
    weight, bias = head
    return _joined([tensor_key(weight), b"" if bias is None else tensor_key(bias)])


def _joined(texts: Sequence[bytes]) -> str:
    """Return one hash of texts, each with its length."""
    found = blake2b(digest_size=16)
    for text in texts:
        found.update(len(text).to_bytes(8, "little") + text)
    return found.hexdigest()


class _Identity:
    """Keys and occurrences of array rows, hashed only when something asks for them."""

    def __init__(
        self,
        ids: tuple[bytes, ...] | None,
        keys: tuple[bytes, ...] | None,
        x: Tensor,
        positions: Tensor,
    ) -> None:
        self._ids, self._keys, self._x, self._positions = ids, keys, x, positions

    @property
    def given(self) -> tuple[bytes, ...] | None:
        return self._ids

    @property
    def keys_given(self) -> tuple[bytes, ...] | None:
        return self._keys

    @cached_property
    def keys(self) -> tuple[bytes, ...]:
        if self._keys is not None:
            return self._keys
        return row_keys(self._x) if self._ids is None else self._ids

    @cached_property
    def ids(self) -> tuple[str, ...]:
        if self._ids is None:
            return tuple(key.hex() for key in self.keys)
        return tuple(key.decode("utf-8", "replace") for key in self._ids)

    @cached_property
    def has_examples_of_rows(self) -> bool:
        """Whether some example that was given a name has rows at several positions."""
        named = self._ids is not None or self._keys is not None
        if not named or bool((self._positions == 0).all()):
            return False
        places = set(zip(self.keys, self._positions.numpy().tolist(), strict=True))
        return len(places) > len(set(self.keys))

    @cached_property
    def occurrence(self) -> Tensor:
        """Count equal rows: rows of one id at different positions are one example."""
        return occurrences(list(zip(self.keys, self._positions.numpy().tolist(), strict=True)))


class _Later(Sequence[Any]):
    """A slice of a sequence that is made on first use."""

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
    """Return the content key of each row: ``tensor_key`` of every row, without a call per row."""
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
    """Return 0, 1, ... for equal keys, in order."""
    seen: Counter[Hashable] = Counter()
    out = torch.zeros(len(keys), dtype=torch.int64)
    if len(set(keys)) == len(keys):
        return out
    for i, key in enumerate(keys):
        out[i] = seen[key]
        seen[key] += 1
    return out


def _matrix(x: Any, name: str) -> Tensor:
    tensor = as_tensor("Stream.of", x, name, ShapeError)
    if tensor.ndim == 1:
        tensor = tensor[:, None]
    if tensor.ndim != 2:
        raise ShapeError(
            f"Stream.of: expected {name} as a (row, dim) array, got shape {tuple(tensor.shape)}."
        )
    if not tensor.is_floating_point():
        tensor = tensor.double()
    return tensor.detach()


def _beside(x: Any, n: int, name: str) -> Tensor:
    """Return a matrix with one line for each row."""
    found = _matrix(x, name)
    if len(found) != n:
        raise ShapeError(f"Stream.of: expected {n} rows of {name}, got {len(found)}.")
    return found


def _sequence(values: Any, n: int, name: str) -> Sequence[Any]:
    array = isinstance(values, Tensor | np.ndarray)
    listed = cast("list[Any]", values.tolist() if array else list(values))  # pyright: ignore[reportUnknownMemberType]
    if len(listed) != n:
        raise ShapeError(f"Stream.of: expected {n} entries of {name}, got {len(listed)}.")
    return listed


def _integers(values: Any, n: int, name: str, default: int) -> Tensor:
    if values is None:
        return torch.full((n,), default, dtype=torch.int64)
    tensor = _numbers(values, n, name)
    if tensor.shape != (n,):
        raise ShapeError(
            f"Stream.of: expected {n} entries of {name}, got shape {tuple(tensor.shape)}."
        )
    if tensor.is_floating_point() and not bool((tensor == tensor.round()).all()):
        raise ShapeError(f"Stream.of: expected whole numbers as {name}, got {tensor.dtype}.")
    return tensor.detach().to("cpu", torch.int64)


def _labels(values: Any, n: int) -> Tensor:
    """Return class numbers, and warn of two classes that are written as -1 and 1."""
    label = _integers(values, n, "label", -1)
    missing = int((label == -1).sum())
    if 0 < missing < n and bool((label.abs() == 1).all()):
        warnings.warn(
            f"Stream.of: {missing:,} of {n:,} labels are -1, which means 'none', and all others "
            "are 1, so that one class is left. Number the classes 0 and 1, unless the rest have no "
            "label.",
            SondeWarning,
            stacklevel=4,
        )
    return label


def _numbers(values: Any, n: int, name: str) -> Tensor:
    """Return a column as a tensor, without a Python object for each entry where it is an array."""
    if isinstance(values, Tensor):
        return values
    if is_array(values) and values.dtype.kind in "iufb":
        return torch.from_numpy(values.copy())  # pyright: ignore[reportUnknownMemberType]
    listed = _sequence(values, n, name)
    try:
        return torch.as_tensor(listed)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(
            f"Stream.of: expected whole numbers as {name}, got entries like {listed[:1]}. "
            "Number the classes, such as with scikit-learn's LabelEncoder."
        ) from error


def _extra(n: int, perturbed_logits: Any, first_error: Any) -> dict[str, Tensor]:
    """Return the columns that few methods read, where they are given."""
    found: dict[str, Tensor] = {}
    if perturbed_logits is not None:
        found["perturbed_logits"] = _beside(perturbed_logits, n, "perturbed_logits")
    if first_error is not None:
        found["first_error"] = _integers(first_error, n, "first_error", -3)
    return found


def _text(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _hashes(values: Sequence[Any]) -> Tensor:
    words = [blake2b(_text(v), digest_size=8).digest() for v in values]
    return torch.tensor(
        [int.from_bytes(w, "little", signed=True) for w in words], dtype=torch.int64
    )


def _who(ids: Any, keys: Any, sites: dict[str, Tensor], positions: Tensor) -> _Identity:
    first = next(iter(sites.values()))
    own = None if keys is None else tuple(_text(k) for k in _sequence(keys, len(first), "keys"))
    if ids is None:
        joined = (
            first if len(sites) == 1 else torch.cat([x.double() for x in sites.values()], dim=1)
        )
        return _Identity(None, own, joined, positions)
    texts = tuple(_text(i) for i in _sequence(ids, len(first), "ids"))
    return _Identity(texts, own, first, positions)
