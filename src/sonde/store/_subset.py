"""Batches with fewer rows or fewer examples, all columns still aligned."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sonde.core.batch import Batch

PER_ROW = ("rows", "grad", "grid", "special")


def with_rows(batch: Batch, kept: Callable[[str], Bool[Tensor, "_row"] | None]) -> Batch:
    """Return a batch with the rows that ``kept`` marks for each kind; None keeps all rows.

    Kinds of rows that share a layout still share it: ``kept`` must mark the same rows in them.
    """
    index: dict[str, Tensor | None] = {}
    layouts: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor | None]] = {}
    example, position = dict(batch.example), dict(batch.position)
    for key in batch.rows:
        layout = (id(batch.example[key]), id(batch.position[key]))
        if layout not in layouts:
            mask = kept(key)
            rows = None if mask is None else torch.nonzero(mask).flatten()
            pair = (batch.example[key], batch.position[key])
            chosen = pair if rows is None else (pair[0][rows], pair[1][rows])
            layouts[layout] = (*chosen, rows)
        example[key], position[key], index[key] = layouts[layout]
    columns = {name: _chosen(getattr(batch, name), index) for name in PER_ROW}
    return replace(batch, example=example, position=position, **columns)


def _chosen(values: dict[str, Tensor], index: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {k: x if (i := index[k]) is None else x[i.to(x.device)] for k, x in values.items()}


def with_examples(batch: Batch, mask: Bool[Tensor, "example"]) -> Batch:
    """Return a batch with the examples of a mask and their rows."""
    if bool(mask.all()):
        return batch
    index = torch.nonzero(mask).flatten()
    renumbered = torch.full((len(batch),), -1)
    renumbered[index] = torch.arange(len(index))
    found = with_rows(batch, lambda key: mask[batch.example[key]])
    moved: dict[int, Tensor] = {}
    example: dict[str, Tensor] = {}
    for key, own in found.example.items():
        example[key] = moved.setdefault(id(own), renumbered[own])
    numbers = index.tolist()

    def texts(values: Any) -> list[Any]:
        return [values[i] for i in numbers]

    def tensor(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[index.to(values.device)]

    return replace(
        found,
        example=example,
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
