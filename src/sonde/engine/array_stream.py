"""Plain arrays as a stream of examples, identified by ids, row numbers or content."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sonde.core._kinds import is_mapping
from sonde.core.batch import Batch, Head, SiteSchema
from sonde.core.columns import Columns
from sonde.core.errors import InputError, ShapeError, near
from sonde.core.hashing import tensor_key
from sonde.core.site import Reducer, Site
from sonde.core.stream import Stream
from sonde.core.tensors import as_tensor
from sonde.core.wording import plural
from sonde.engine._array_columns import entries, integers, labels, matrix, matrix_of_rows, sequence
from sonde.engine._row_identity import (
    LazySlice,
    RowIdentity,
    identity_of,
    joined_hash,
    text_bytes,
    text_hashes,
)
from sonde.engine.copies import copied_rows

ARRAY_BATCH = 2048
NAMING = frozenset(("ids", "keys", "group", "pair", "position"))
"""Columns that say which rows belong together."""
OWN_FIELD = frozenset(
    ("group", "ids", "keys", "position", "pair", "side", "grad", "logits", "head")
)
"""Columns that have a field in ``Batch``; all others are carried in ``extra``."""


@dataclass(frozen=True, eq=False)
class ArrayStream(Stream):
    """Plain arrays as a stream; each row is one example."""

    rows: dict[str, Tensor]
    who: RowIdentity
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
    numbers: np.ndarray | None = None
    sample_of: int | None = None
    n_copies: int = 0

    @property
    def schema(self) -> tuple[SiteSchema, ...]:
        """A kind of rows for each array."""
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
        return LazySlice(lambda: self.who.keys, 0, len(self))

    @property
    def grouped(self) -> bool:
        """True if groups were given, or rows at several positions are one example."""
        return self.groups is not None or self.who.has_examples_of_rows

    @property
    def examples_of_rows(self) -> Sequence[Hashable] | None:
        """The key and occurrence of each row if an example has several rows, else None."""
        if not self.who.has_examples_of_rows:
            return None
        return list(zip(self.who.keys, self.who.occurrence.numpy().tolist(), strict=True))

    @property
    def source_rows(self) -> np.ndarray:
        """The number of each row in its array."""
        return np.arange(len(self)) if self.numbers is None else self.numbers

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
        keys = LazySlice(lambda: self.who.keys, start, stop)
        return Batch(
            rows={k: x[part] for k, x in self.rows.items()},
            ids=LazySlice(lambda: self.who.ids, start, stop),
            keys=keys,
            order=torch.arange(start, stop),
            occurrence=LazySlice(lambda: self.who.occurrence.numpy().tolist(), start, stop),
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
        """Return hashes that identify arrays, columns and head, with their shapes and dtypes."""
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
            | {name: joined_hash(t) for name, t in texts.items() if t is not None},
            "seed": self.seed,
            **({} if self.head is None else {"head": _head_key(self.head)}),
        }


def array_stream(
    x: Any, given: Columns, label: Any = None, seed: int = 0, numbered: bool = False
) -> ArrayStream:
    """Return a stream of plain arrays; see ``Stream.of`` for the arguments.

    Rows without ids and keys are known by their number if ``numbered``, else by their content.
    Numbered rows that copy another row form a group with it, and lie beside it in the stream.
    """
    columns: dict[str, Any] = {name: values for name, values in given.items() if values is not None}
    if unknown := sorted(columns.keys() - Columns.__annotations__.keys()):
        hint = near(unknown[0], Columns.__annotations__)
        raise InputError(f"Stream.of: no column is called {unknown[0]!r}.{hint}")
    rows = {str(k): matrix(v, str(k)) for k, v in x.items()} if is_mapping(x) else None
    sites = rows if rows is not None else {"x": matrix(x, "x")}
    if not sites:
        raise InputError("Stream.of: expected at least one array, got none.")
    n = len(next(iter(sites.values())))
    uneven = {k: len(v) for k, v in sites.items() if len(v) != n}
    if uneven:
        raise ShapeError(f"Stream.of: expected {plural(n, 'row')} at every site, got {uneven}.")
    position = integers(columns.get("position"), n, "position")
    who = identity_of(columns.get("ids"), columns.get("keys"), sites, position, numbered)
    pair, side = columns.get("pair"), columns.get("side")
    sides = None if side is None else integers(side, n, "side")
    logits = columns.get("logits")
    stream = ArrayStream(
        rows=sites,
        who=who,
        label=labels(label, n),
        groups=_groups(columns.get("group"), n) or _pairs_as_groups(pair, sides, who),
        positions=position,
        grad=_gradients(columns.get("grad"), sites),
        logits=None if logits is None else matrix_of_rows(logits, n, "logits"),
        extra={name: entries(columns[name], n, name) for name in columns if name not in OWN_FIELD},
        pair=None if pair is None else text_hashes(sequence(pair, n, "pair")),
        side=sides,
        head=_head(columns.get("head")),
        seed=seed,
    )
    first = None if not numbered or NAMING & columns.keys() else copied_rows([*sites.values()])
    return stream if first is None else _beside_copies(stream, first)


def _beside_copies(stream: ArrayStream, first: Tensor) -> ArrayStream:
    """Return the rows sorted by their first copy, and grouped by it."""
    order = first.argsort(stable=True)

    def moved(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: moved(v) for k, v in cast("dict[str, Any]", x).items()}
        return x[order.to(x.device)] if isinstance(x, Tensor) else x

    named = tuple(b"%d" % i for i in order.numpy().tolist())
    columns = ("rows", "label", "positions", "grad", "logits", "side", "extra")
    return replace(
        stream,
        **{name: moved(getattr(stream, name)) for name in columns},
        who=RowIdentity(named, None, {}, stream.positions),
        groups=tuple(b"%d" % i for i in first[order].numpy().tolist()),
        numbers=order.numpy(),
        n_copies=len(first) - len(first.unique()),
    )


def _head(given: Any) -> Head | None:
    """Return weight and bias of a head: a linear layer, a pair of arrays, or a weight."""
    if given is None:
        return None
    if isinstance(given, torch.nn.Linear):
        given = given.weight, given.bias
    weight, bias = given if isinstance(given, tuple | list) and len(given) == 2 else (given, None)
    matrix = as_tensor("Stream.of", weight, "head", ShapeError)
    if matrix.ndim != 2:
        raise ShapeError(
            "Stream.of: expected the head as a linear layer, as its weight (class, dim), or as a "
            f"pair of weight and bias, got a weight of shape {tuple(matrix.shape)}."
        )
    return matrix.detach(), None if bias is None else as_tensor(
        "Stream.of", bias, "bias of the head", ShapeError
    ).detach()


def _gradients(grad: Any, sites: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients by site; a single array belongs to the first site."""
    given = grad if is_mapping(grad) else ({} if grad is None else {next(iter(sites)): grad})
    if unknown := [str(k) for k in given if str(k) not in sites]:
        raise ShapeError(f"Stream.of: expected gradients of {', '.join(sites)}, got {unknown}.")
    return {str(k): matrix_of_rows(v, len(sites[str(k)]), f"grad of {k}") for k, v in given.items()}


def _groups(group: Any, n: int) -> tuple[bytes, ...] | None:
    return None if group is None else tuple(text_bytes(g) for g in sequence(group, n, "group"))


def _pairs_as_groups(pair: Any, side: Tensor | None, who: RowIdentity) -> tuple[bytes, ...] | None:
    """Return each row's pair as its group, or the row's key if it has no side."""
    if pair is None or side is None:
        return None
    pairs = map(text_bytes, sequence(pair, len(side), "pair"))
    sided = zip(side.numpy().tolist(), pairs, who.keys, strict=True)
    return tuple(named if which >= 0 else own for which, named, own in sided)


def _array_site(name: str, order: int) -> Site:
    """Return the site of an array; a name with a colon is parsed as a site."""
    return replace(Site.parse(name), order=order) if ":" in name else Site(name, order=order)


def _named(x: Tensor) -> list[Any]:
    return [list(x.shape), str(x.dtype), tensor_key(x).hex()]


def _head_key(head: Head) -> str:
    weight, bias = head
    return joined_hash([tensor_key(weight), b"" if bias is None else tensor_key(bias)])
