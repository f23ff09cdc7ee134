"""Print what copies of rows do to every figure.

Rows in which nothing tells of anything else, each of them four times in random order, without ids
and without groups. ``z`` is the mean over draws of (value - null) / se: a figure that says nothing
false has a small one, or the flag ``copies``. The same without copies stands beside it.
"""

import statistics
from functools import partial

import torch
from tools.figures._measured import FIGURES, Figure, World, doubled, is_one, scalar, unrelated
from tools.figures._table import Row, Table, Words, chosen, head


def line(figure: Figure, worlds: list[World]) -> tuple[float, float, float, str]:
    """Return means of value, null and of their gap in errors, and the flags."""
    results = [figure(w) for w in worlds]
    values = [(scalar(r.value), scalar(r.null), scalar(r.se)) for r in results]
    one = all(is_one(r.value) for r in results)
    gaps = [(v - n) / s for v, n, s in values if s > 0] if one else []
    z = statistics.mean(gaps) if gaps else float("nan")
    flags = sorted({f for r in results for f in r.flags})
    means = [statistics.mean(column) for column in zip(*values, strict=True)]
    return means[0], means[1], z, f"n={results[0].n} " + " ".join(flags)


def table(words: Words = (), *, draws: int = 5, rows: int = 300) -> Table:
    """Print the table.

    Parameters
    ----------
    words
        Figures whose names hold one of these words.
    draws
        Draws of the world.
    rows
        Number of rows.
    """
    yield head("figure", "value", "null", "z", "each row four times: value", "null", "z", "")
    for name, figure in chosen(FIGURES, words):
        yield Row((name,), partial(_cells, figure, draws, rows))


def _cells(figure: Figure, draws: int, rows: int) -> list[str]:
    worlds = [unrelated(rows, seed) for seed in range(draws)]
    try:
        plain = line(figure, worlds)
        torch.manual_seed(0)
        copied = line(figure, [doubled(w, 4) for w in worlds])
    except Exception as error:
        return [f"{type(error).__name__}: {str(error)[:120]}"]
    loud = abs(copied[2]) > 5 and "copies" not in copied[3]
    shown = [f"{v:.3f}" for v in (*plain[:3], *copied[:3])]
    return [*shown, f"{copied[3]}{' <-- silent' if loud else ''}"]
