"""Batches with selected rows, or with fewer or more examples, with aligned columns."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sonde.core.batch import Batch

PER_ROW = ("rows", "grad", "grid", "special", "sink")


def with_rows(batch: Batch, kept: Callable[[str], Tensor | None]) -> Batch:
    """Return a batch with the rows that ``kept`` marks, or numbers, for each kind; None keeps all.

    Kinds of rows that share a layout still share it: ``kept`` must mark the same rows in them.
    """
    index: dict[str, Tensor | None] = {}
    layouts: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor | None]] = {}
    example, position = dict(batch.example), dict(batch.position)
    for key in batch.rows:
        layout = (id(batch.example[key]), id(batch.position[key]))
        if layout not in layouts:
            rows = kept(key)
            if rows is not None and rows.dtype == torch.bool:
                rows = torch.nonzero(rows).flatten()
            pair = (batch.example[key], batch.position[key])
            chosen = pair if rows is None else (pair[0][rows], pair[1][rows])
            layouts[layout] = (*chosen, rows)
        example[key], position[key], index[key] = layouts[layout]
    columns = {name: _chosen(getattr(batch, name), index) for name in PER_ROW}
    return replace(batch, example=example, position=position, **columns)


def _chosen(values: dict[str, Tensor], index: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {k: x if (i := index[k]) is None else x[i.to(x.device)] for k, x in values.items()}


def with_examples(batch: Batch, mask: Bool[Tensor, "example"]) -> Batch:
    """Return a batch with the selected examples and their rows."""
    if bool(mask.all()):
        return batch
    index = torch.nonzero(mask).flatten()
    renumbered = torch.full((len(batch),), -1)
    renumbered[index] = torch.arange(len(index))
    subset = with_rows(batch, lambda key: mask[batch.example[key]])
    return _moved(subset, index, renumbered)


def in_planned_order(batch: Batch) -> Batch:
    """Return a batch with its examples, and their rows, in the planned order."""
    index = torch.argsort(batch.order)
    place = torch.argsort(index)
    if bool((place[1:] > place[:-1]).all()):
        return batch
    ordered = with_rows(batch, lambda key: torch.argsort(place[batch.example[key]], stable=True))
    return _moved(ordered, index, place)


def _moved(batch: Batch, index: Tensor, place: Tensor) -> Batch:
    """Return a batch of the examples ``index``; ``place`` is the new number of each."""
    moved: dict[int, Tensor] = {}
    example: dict[str, Tensor] = {}
    for key, own in batch.example.items():
        example[key] = moved.setdefault(id(own), place[own])
    return replace(_with_numbers(batch, index.tolist()), example=example)


def equal_examples(batch: Batch, by_position: bool) -> Sequence[Hashable]:
    """Return what equal examples of a batch have in common.

    Parameters
    ----------
    batch : Batch
    by_position : bool
        Whether each entry is a single row, which equals rows at its own position alone.
    """
    keys = [bytes(key) for key in batch.keys]
    if not by_position:
        return keys
    site = next(iter(batch.rows))
    position = torch.zeros(len(batch), dtype=torch.int64)
    position[batch.example[site]] = batch.position[site].long()
    return list(zip(keys, position.tolist(), strict=True))


def _with_numbers(batch: Batch, numbers: list[int]) -> Batch:
    """Return a batch with renumbered example columns and unchanged rows."""
    index = torch.tensor(numbers, dtype=torch.int64)

    def texts(values: Any) -> list[Any]:
        return [values[i] for i in numbers]

    def tensor(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[index.to(values.device)]

    return replace(
        batch,
        ids=texts(batch.ids),
        keys=texts(batch.keys),
        group_keys=texts(batch.group_keys),
        order=batch.order[index],
        occurrence=torch.as_tensor(batch.occurrence)[index],
        label=batch.label[index],
        logits=tensor(batch.logits),
        pair=tensor(batch.pair),
        side=tensor(batch.side),
        length=tensor(batch.length),
        extra={name: x[index.to(x.device)] for name, x in batch.extra.items()},
    )


def first_examples(batch: Batch, n: int) -> Batch:
    """Return a batch with its first ``n`` examples."""
    return batch if n == len(batch) else with_examples(batch, torch.arange(len(batch)) < n)


def with_copies(batch: Batch, n: int) -> Batch:
    """Return a batch with ``n`` copies of its last example, each an example of its own."""
    if n <= 0:
        return batch
    last, first = len(batch) - 1, torch.arange(n)
    layouts: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
    example, position, index = dict(batch.example), dict(batch.position), dict[str, Tensor | None]()
    for key in batch.rows:
        own, at = batch.example[key], batch.position[key]
        layout = (id(own), id(at))
        if layout not in layouts:
            rows = torch.nonzero(own == last).flatten()
            copies = (first + len(batch)).repeat_interleave(len(rows))
            repeated = rows.repeat(n)
            layouts[layout] = (
                torch.cat([own, copies]),
                torch.cat([at, at[repeated]]),
                torch.cat([torch.arange(len(own)), repeated]),
            )
        example[key], position[key], index[key] = layouts[layout]
    numbers = [*range(len(batch)), *[last] * n]
    most = int(torch.as_tensor(batch.occurrence).max())
    numbered = _with_numbers(batch, numbers)
    own = torch.as_tensor(numbered.occurrence).clone()
    own[len(batch) :] = most + 1 + first
    columns = {name: _chosen(getattr(batch, name), index) for name in PER_ROW}
    return replace(numbered, example=example, position=position, occurrence=own, **columns)
