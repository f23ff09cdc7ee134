"""Columns of a table that carry nothing, or what another column carries already."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from sonde.findings.input_table import InputTable

SAME: Final = 1e-9
"""Most share of a column's variance that another column leaves, for both to be called the same."""


@dataclass(frozen=True)
class IdleColumns:
    """Columns by what they lack.

    Parameters
    ----------
    constant : tuple of int
        Columns of a single value.
    copies : tuple of (int, int, bool)
        A column, an earlier column that gives it, and whether both are equal in every row; else
        one is a multiple of the other plus a constant.
    missing : tuple of (int, float)
        A column and the share of the rows in which it has no number, largest share first.
    """

    constant: tuple[int, ...]
    copies: tuple[tuple[int, int, bool], ...]
    missing: tuple[tuple[int, float], ...]


def idle_columns(table: InputTable, least_missing: float) -> IdleColumns:
    """Return the columns that are constant, copies, or often missing."""
    known = [table.known(j) for j in range(table.values.shape[1])]
    constant = [j for j, x in enumerate(known) if len(x) and x.min() == x.max()]
    shares = [(j, table.missing.get(n, 0) / table.n_read) for j, n in enumerate(table.names)]
    missing = sorted((s for s in shares if s[1] >= least_missing), key=lambda s: (-s[1], s[0]))
    return IdleColumns(tuple(constant), _copies(table, set(constant)), tuple(missing))


def _copies(table: InputTable, left_out: set[int]) -> tuple[tuple[int, int, bool], ...]:
    """Return the columns that an earlier column gives, each with the first such column.

    Columns of two values are compared for equality only: two answers to yes or no may agree.
    """
    x = table.values[np.isfinite(table.values).all(1)]
    chosen = [j for j in range(x.shape[1]) if j not in left_out]
    if len(x) < 3 or not chosen:
        return ()
    z = x[:, chosen] - x[:, chosen].mean(0)
    size = np.abs(z).max(0)
    z = z / np.where(size > 0, size, 1)
    norm = np.sqrt((z**2).sum(0))
    z = z / np.where(norm > 0, norm, 1)
    close = np.abs(z.T @ z) > 1 - 1e-6
    found: list[tuple[int, int, bool]] = []
    for b in range(len(chosen)):
        for a in np.flatnonzero(close[:b, b]).tolist():
            sign = np.sign(z[:, a] @ z[:, b])
            if float(((z[:, b] - sign * z[:, a]) ** 2).sum()) > SAME:
                continue
            first, second = chosen[a], chosen[b]
            equal = bool((x[:, first] == x[:, second]).all())
            if equal or len(np.unique(x[:, second])) > 2:
                found.append((second, first, equal))
                break
    return tuple(found)
