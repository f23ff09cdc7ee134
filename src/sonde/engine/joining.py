"""Joins small batches, so that a call's fixed cost is shared by many rows."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sonde.core.batch import Batch

BUFFER_ROWS = 2048
BUFFER_ROWS_WIDE = 512
WIDE = 256


def joined_batches(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the rows of ``batches`` in order, in sufficiently large batches.

    A batch is handed on when one of its kinds of rows would fill a row buffer. Batches that bring
    different columns are never joined.
    """
    waiting: list[Batch] = []
    columns: tuple[Any, ...] = ()
    enough: dict[str, int] = {}
    n_rows: Counter[str] = Counter()
    for batch in batches:
        own = columns_of(batch)
        if waiting and own != columns:
            yield join(waiting)
            waiting, n_rows = [], Counter()
        if not waiting:
            columns = own
            enough = {key: rows_enough(x.shape[1]) for key, x in batch.rows.items()}
        waiting.append(batch)
        is_full = False
        for key, x in batch.rows.items():
            n_rows[key] += x.shape[0]
            is_full |= n_rows[key] >= enough[key]
        if is_full:
            yield join(waiting)
            waiting, n_rows = [], Counter()
    if waiting:
        yield join(waiting)


def rows_enough(dim: int) -> int:
    """Return the number of rows of width ``dim`` to buffer before statistics observe them."""
    return BUFFER_ROWS_WIDE if dim > WIDE else BUFFER_ROWS


def columns_of(batch: Batch) -> tuple[Any, ...]:
    """Return which columns a batch brings; ``join`` takes batches that bring the same."""
    layouts: dict[tuple[int, int], int] = {}
    shared = [
        layouts.setdefault((id(batch.example[key]), id(batch.position[key])), len(layouts))
        for key in batch.rows
    ]
    absent = [x is None for x in (batch.logits, batch.pair, batch.side, batch.length)]
    named = [
        tuple(d)
        for d in (batch.rows, batch.grad, batch.grid, batch.special, batch.sink, batch.extra)
    ]
    return shared, absent, named, batch.seed


def join(batches: Sequence[Batch]) -> Batch:
    """Return the concatenation of batches with equal columns."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    starts = np.cumsum([0, *(len(b) for b in batches[:-1])]).tolist()
    example: dict[str, Tensor] = {}
    position: dict[str, Tensor] = {}
    layouts: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for key in first.rows:
        layout = id(first.example[key]), id(first.position[key])
        if layout not in layouts:
            shifted = [b.example[key] + start for b, start in zip(batches, starts, strict=True)]
            layouts[layout] = torch.cat(shifted), torch.cat([b.position[key] for b in batches])
        example[key], position[key] = layouts[layout]
    return Batch(
        rows=_by_key([b.rows for b in batches]),
        ids=[i for b in batches for i in b.ids],
        keys=[k for b in batches for k in b.keys],
        order=torch.cat([b.order for b in batches]),
        occurrence=np.concatenate([np.asarray(b.occurrence) for b in batches]).tolist(),
        example=example,
        position=position,
        group_keys=[k for b in batches for k in b.group_keys],
        label=torch.cat([b.label for b in batches]),
        logits=_if_any([b.logits for b in batches]),
        grad=_by_key([b.grad for b in batches]),
        grid=_by_key([b.grid for b in batches]),
        special=_by_key([b.special for b in batches]),
        sink=_by_key([b.sink for b in batches]),
        pair=_if_any([b.pair for b in batches]),
        side=_if_any([b.side for b in batches]),
        length=_if_any([b.length for b in batches]),
        head=first.head,
        seed=first.seed,
        extra=_by_key([b.extra for b in batches]),
        scattered=first.scattered,
    )


def _by_key(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _if_any(parts: list[Tensor | None]) -> Tensor | None:
    return None if parts[0] is None else torch.cat(cast("list[Tensor]", parts))
