"""Random rows with every column that a statistic can request, and their smallest parts."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonde.core.columns import COLUMNS, Column
from sonde.core.hashing import base_hashes, draws

Columns = dict[str, Any]


def make_columns(
    n: int,
    dim: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    length: int | None = None,
) -> Columns:
    """Return ``n`` random rows of width ``dim`` with all columns, as ``{column name: values}``.

    Each example has ``length`` rows (default: one to three), each group two examples. Unit 0 is
    constant. Some examples have no label (-1); with more than 40 examples, contents repeat.
    """
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    while sum(lengths) < n:
        lengths.append(min(length or int(rng.integers(1, 4)), n - sum(lengths)))
    example = np.repeat(np.arange(len(lengths)), lengths)
    position = np.concatenate([np.arange(k) for k in lengths]) if lengths else np.zeros(0, int)
    content = [f"{i % 40}".encode().ljust(16) for i in range(len(lengths))]
    occurrence = np.arange(len(lengths)) // 40
    group = [f"g{i // 2}".encode() for i in range(len(lengths))]
    words = np.frombuffer(b"".join(content), dtype="<i8").reshape(-1, 2)
    zero = np.zeros(len(lengths), dtype=np.uint64)
    x = torch.randn(n, dim, generator=generator) + 2
    x[:, 0] = 1.5
    base = base_hashes(content, "sample", 0)
    labels = torch.randint(-1, 3, (len(lengths),), generator=generator)
    per_row = torch.from_numpy(example)
    columns: Columns = {
        "x": x.to(dtype),
        "y": (0.5 * x + torch.randn(n, dim, generator=generator)).to(dtype),
        "grad": torch.randn(n, dim, generator=generator).to(dtype),
        "logits": torch.randn(n, 3, generator=generator),
        "label": labels[per_row],
        "ids": torch.from_numpy(words.copy())[per_row],
        "group": torch.from_numpy(base_hashes(group, "split", 9).view(np.int64))[per_row],
        "group_draw": draws(base_hashes(group, "sample", 0), zero, zero)[per_row],
        "draw": draws(base[example], position, occurrence[example]),
        "position": torch.from_numpy(position),
        "occurrence": torch.from_numpy(occurrence)[per_row],
        "order": per_row,
        "example": per_row,
        "pair": per_row // 2,
        "side": per_row % 2,
        "length": torch.tensor(lengths)[per_row],
        "grid": torch.stack([torch.from_numpy(position), torch.zeros(n, dtype=torch.int64)], 1),
        "special": torch.from_numpy(position) == 0,
        "head": (torch.ones(3, dim), torch.zeros(3)),
    }
    return {**{k: _entries(c, per_row) for k, c in COLUMNS.items()}, **columns}


def _entries(column: Column, per_row: torch.Tensor) -> Any:
    """Return artificial values of a column; integers lie between its default and 2."""
    if column.kind == "int":
        return per_row % (3 - column.default) + column.default
    return column.made_up(len(per_row), 3)


def take(columns: Columns, rows: Tensor) -> Columns:
    """Return every column at the given row indices, in their order."""
    return {k: v if k == "head" else v[rows] for k, v in columns.items()}


def atoms(columns: Columns, kind: str) -> list[Tensor]:
    """Return the row indices of each smallest part that a split may make (an "atom").

    ``kind`` is ``row``, ``example``, ``group``, or digits: the number of successive examples in a
    part.
    """
    order = columns["order"]
    keys = {
        "row": torch.arange(len(order)),
        "example": order,
        "group": columns["group"],
    }
    key = keys[kind] if kind in keys else order // int(kind)
    distinct, member = torch.unique(key, return_inverse=True)
    return [torch.nonzero(member == i).flatten() for i in range(len(distinct))]
