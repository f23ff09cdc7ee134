"""Print how often value +- 1.96 se holds the mean of fresh draws: ``python -m tools.coverage``.

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
import sys
from collections.abc import Iterable
from functools import partial

from tools.kept_lines import KeptLines, TimeOver
from tools.measured import (
    STUDENT,
    Figure,
    World,
    chosen,
    found,
    is_one,
    options,
    related,
    related_in_groups,
    scalar,
)

from sonde.core.few_groups import student_factor
from sonde.core.result import Result

LOW, LEAST = 0.92, 0.85


def main() -> int:
    """Print the table."""
    asked = options(__doc__ or "", draws=40, rows=[200], groups=True)
    kept = KeptLines(asked.into, asked.seconds)
    what, more = ("groups", "without") if asked.groups else ("rows", "ratio")
    print(
        f"| figure | law | {what} | mean | spread | mean error | {more} | coverage | flagged "
        "| unflagged | |\n" + "|---" * 11 + "|"
    )
    for name, figure in chosen(asked.words):
        for law, n, n_groups in itertools.product(asked.laws, asked.rows, asked.groups or [0]):
            how = {"share": asked.share, "largest": asked.largest}
            draw = (
                partial(related_in_groups, n, n_groups, **how)
                if n_groups
                else partial(related, n, law=law)
            )
            worlds = map(draw, range(1000, 1000 + asked.draws))
            key = f"{name}, {law}, {n}, {n_groups}, {how}, {asked.draws}"
            try:
                cells = kept.line(key, partial(_line, figure, worlds, n_groups))
            except TimeOver:
                return 3
            print(f"| {name} | {law} | {n_groups or n} | {' | '.join(cells)} |", flush=True)
    return 0


def _line(figure: Figure, worlds: Iterable[World], n_groups: int) -> list[str]:
    """Return the rest of a row of the table: one figure over all draws."""
    results = list[Result]()
    for world in worlds:
        try:
            result = found(figure, world)
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


if __name__ == "__main__":
    sys.exit(main())
