"""Detect duplicate rows of plain arrays, except for rows that are equal by chance."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.engine._row_identity import row_keys

FINE_VALUES = 10
FINE_SHARE = 0.1
BY_CHANCE = 0.01
GRID = 10_000.0
COMMON, COMMON_TIMES = 20, 10
"""How often a row comes at least, alone and against the usual row, that is no copy but common."""
FEW_UNITS, SOME_UNITS, SOME_ROWS = 32, 64, 4096


def copied_rows(sites: list[Float[Tensor, "row _dim"]]) -> Int[Tensor, "row"] | None:
    """Return, for each row, the index of the first equal row; None without duplicates.

    None if no two rows are equal, or if rows are equal by chance: rows of symbols, of counts, and
    of few units that often are 0. Rows are measured if some unit takes ten values or more, for a
    tenth of the distinct rows, that lie on no grid. They are copies if units as these, unrelated to
    each other, would make fewer than 0.01 equal pairs. A row that comes far more often
    than others do is a state of its own, as where all units are off, and no copy.
    """
    sites = [x.detach().cpu() for x in sites]
    if any(not _repeats(_sketch(x)) for x in sites):
        return None
    seen: dict[tuple[bytes, ...], int] = {}
    keys = zip(*map(row_keys, sites), strict=True)
    first = torch.tensor([seen.setdefault(key, i) for i, key in enumerate(keys)])
    if len(seen) == len(first):
        return None
    units = torch.cat([x[:, _some_units(x.shape[1])] for x in sites], dim=1).double()
    distinct = torch.tensor([*seen.values()])[:SOME_ROWS]
    if not _is_measured(units[distinct], len(seen)):
        return None
    count = torch.bincount(first, minlength=len(first))
    usual = count[count > 0].double().median()
    is_common = count[first] >= max(COMMON, COMMON_TIMES * float(usual))
    first = torch.where(is_common, torch.arange(len(first)), first)
    return None if len(first.unique()) == len(first) else first


def n_copies(first: Int[Tensor, "row"] | None) -> int:
    """Return the number of duplicate rows, from the result of ``copied_rows``.

    Examples
    --------
    >>> n_copies(torch.tensor([0, 1, 0])), n_copies(None)
    (1, 0)
    """
    return 0 if first is None else len(first) - len(first.unique())


def _sketch(x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
    """Return a cheap hash of each row, equal for equal rows."""
    sketch = torch.zeros(len(x), dtype=torch.float64)
    for i, j in enumerate(torch.arange(0, x.shape[1], max(1, x.shape[1] // FEW_UNITS)).tolist()):
        sketch += x[:, j].double() * math.sqrt(i + 2)
    return sketch


def _repeats(values: Float[Tensor, "row"]) -> bool:
    """Return whether a value occurs more than once; NaN is unequal to every value."""
    ordered = values.sort().values
    return bool((ordered[1:] == ordered[:-1]).any())


def _some_units(dim: int) -> Int[Tensor, "unit"]:
    """Return the indices of all units, or of ``SOME_UNITS`` units."""
    return torch.arange(0, dim, max(1, dim // SOME_UNITS))


def _is_measured(rows: Float[Tensor, "row dim"], n_distinct: int) -> bool:
    """Return whether distinct rows look measured, so that few are equal by chance."""
    n, log_chance, is_fine = len(rows), 0.0, False
    for values in rows.T:
        distinct, count = torch.unique(values, return_counts=True)
        equal = float((count * (count - 1)).sum()) / max(n * (n - 1), 1)
        log_chance += float(torch.tensor(equal).log())
        enough = len(distinct) >= max(FINE_VALUES, FINE_SHARE * n)
        is_fine = is_fine or (enough and not _on_grid(distinct))
    expected = n_distinct * (n_distinct - 1) / 2 * float(torch.tensor(log_chance).exp())
    return is_fine and expected < BY_CHANCE


def _on_grid(distinct: Float[Tensor, "value"]) -> bool:
    """Return whether the values are multiples of the smallest difference between two values."""
    gaps = distinct.diff()
    steps = (distinct - distinct[0]) / gaps.min()
    return bool(steps[-1] < GRID) and bool(((steps - steps.round()).abs() < 1e-3).all())
