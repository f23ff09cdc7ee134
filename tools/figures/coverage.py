"""Print how often value +- 1.96 se holds the mean of fresh draws.

Related rows, classes and factors. ``coverage`` is how often the interval holds the mean of the
values of all draws, ``ratio`` the mean error over the spread of the values. Good is .92 to .98.
``flagged`` is the fraction of results with a flag, ``unflagged`` the coverage of the others: below
.85 the line is marked ``silent``. ``--laws normal t5 t3 --rows 60 1000`` draws normal rows and rows
of Student's law with five and three degrees of freedom.
``--groups 2 5 10`` draws rows in few groups instead: ``without`` is the coverage of the same errors
without Student's factor; ``--largest .6`` gives the first group so much of all rows, ``--share 3``
rows as much more of what is their group's.
"""

import itertools
import math
import statistics
from collections.abc import Iterable
from functools import partial

from tools.figures._measured import (
    FIGURES,
    STUDENT,
    Figure,
    Laws,
    World,
    is_one,
    related,
    related_in_groups,
    scalar,
)
from tools.figures._table import Row, Table, Words, chosen, head

from sonde.core.few_groups import student_factor
from sonde.core.result import Result

LOW, LEAST = 0.92, 0.85


def table(
    words: Words = (),
    *,
    draws: int = 40,
    rows: tuple[int, ...] = (200,),
    laws: Laws = ("normal",),
    groups: tuple[int, ...] = (),
    largest: float = 0.0,
    share: float = 0.5,
) -> Table:
    """Print the table.

    Parameters
    ----------
    words
        Figures whose names hold one of these words.
    draws
        Draws of the world.
    rows
        Numbers of rows.
    laws
        Laws of the rows: normal, or Student's with three or five degrees of freedom.
    groups
        Numbers of groups.
    largest
        Fraction of all rows that the first group has.
    share
        Size of what the rows of a group share.
    """
    what, more = ("groups", "without") if groups else ("rows", "ratio")
    yield head("figure", "law", what, "mean", "spread", "mean error", more, "coverage", "flagged",
               "unflagged", "")  # fmt: skip
    for name, figure in chosen(FIGURES, words):
        for law, n, n_groups in itertools.product(laws, rows, groups or [0]):
            draw = (
                partial(related_in_groups, n, n_groups, share=share, largest=largest)
                if n_groups
                else partial(related, n, law=law)
            )
            worlds = map(draw, range(1000, 1000 + draws))
            yield Row((name, law, n_groups or n), partial(_cells, figure, worlds, n_groups))


def _cells(figure: Figure, worlds: Iterable[World], n_groups: int) -> list[str]:
    """Return the rest of a row of the table: one figure over all draws."""
    results = list[Result]()
    for world in worlds:
        try:
            result = figure(world)
        except Exception as error:
            return [f"{type(error).__name__}: {str(error)[:100]}"]
        if result.se is None or not is_one(result.value):
            if not result.flags:
                return [f"no error: {result.conventions.get('se', 'no single number')}"]
            continue
        results.append(result)
    return _counted(results, n_groups) if len(results) > 2 else ["no error, flagged"]


def _counted(results: list[Result], n_groups: int) -> list[str]:
    values, errors = ([scalar(getattr(r, w)) for r in results] for w in ("value", "se"))
    mean, spread = statistics.mean(values), statistics.stdev(values)
    held, narrow = (
        [abs(v - mean) <= reach * e for v, e in zip(values, errors, strict=True)]
        for reach in (STUDENT, STUDENT / student_factor(n_groups))
    )
    rate, without = statistics.mean(held), statistics.mean(narrow)
    plain = [h for h, r in zip(held, results, strict=True) if not r.flags]
    of_plain = statistics.mean(plain) if plain else math.nan
    ratio = statistics.mean(errors) / spread if spread > 0 else math.nan
    is_off = rate < LOW - _noise(len(values)) or (ratio >= 1.3 and not n_groups)
    is_silent = len(plain) >= 10 and of_plain < LEAST - _noise(len(plain))
    flags = sorted({f for r in results for f in r.flags})
    return [
        f"{mean:.4f}", f"{spread:.4f}", f"{statistics.mean(errors):.4f}",
        f"{without if n_groups else ratio:.2f}", f"{rate:.2f}",
        f"{1 - len(plain) / len(held):.2f}", f"{of_plain:.2f}",
        " ".join([*flags, *["<-- off"] * is_off, *["<-- silent"] * is_silent]),
    ]  # fmt: skip


def _noise(n: int) -> float:
    """Return two standard errors of a coverage of .95 over a number of draws."""
    return 2 * (0.05 / n) ** 0.5
