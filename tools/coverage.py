"""Print how often value +- 1.96 se holds the mean of fresh draws: ``python -m tools.coverage``.

Related rows, classes and factors. ``coverage`` is how often the interval holds the mean of the
values of all draws, ``ratio`` the mean error over the spread of the values. Good is .92 to .98.
``--groups 2 5 10`` draws rows in few groups instead: ``without`` is the coverage of the same errors
without Student's factor; ``--largest .6`` gives the first group so much of all rows, ``--share 3``
rows as much more of what is their group's.
"""

import statistics
from collections.abc import Iterable
from functools import partial

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

LOW, HIGH = 0.92, 0.98


def main() -> None:
    """Print the table."""
    asked = options(__doc__ or "", draws=40, rows=[200], groups=True)
    what, more = ("groups", "without") if asked.groups else ("rows", "ratio")
    print(
        f"| figure | {what} | mean | spread | mean error | {more} | coverage | |"
        "\n|---|---|---|---|---|---|---|---|"
    )
    for name, figure in chosen(asked.words):
        for n in asked.rows:
            for n_groups in asked.groups or [0]:
                draw = partial(related, n)
                if n_groups:
                    draw = partial(
                        related_in_groups, n, n_groups, share=asked.share, largest=asked.largest
                    )
                line = _line(figure, map(draw, range(1000, 1000 + asked.draws)), n_groups)
                print(f"| {name} | {n_groups or n} | {line}", flush=True)


def _line(figure: Figure, worlds: Iterable[World], n_groups: int) -> str:
    """Return the rest of a row of the table: one figure over all draws."""
    results = list[Result]()
    for world in worlds:
        try:
            result = found(figure, world)
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:100]} |"
        if result.se is None or not is_one(result.value):
            return f"no error: {result.conventions.get('se', 'no single number')} |"
        results.append(result)
    return _counted(results, n_groups)


def _counted(results: list[Result], n_groups: int) -> str:
    values, errors = ([scalar(getattr(r, w)) for r in results] for w in ("value", "se"))
    mean, spread = statistics.mean(values), statistics.stdev(values)
    rate, without = (
        statistics.mean(abs(v - mean) <= reach * e for v, e in zip(values, errors, strict=True))
        for reach in (STUDENT, STUDENT / student_factor(n_groups))
    )
    ratio = statistics.mean(errors) / spread if spread > 0 else float("nan")
    noise = 2 * (0.05 / len(values)) ** 0.5
    is_off = rate < LOW - noise or (ratio >= 1.3 and not n_groups)
    told = " ".join([*sorted({f for r in results for f in r.flags}), *["<-- off"] * is_off])
    shown = f"{mean:.4f} | {spread:.4f} | {statistics.mean(errors):.4f}"
    return f"{shown} | {without if n_groups else ratio:.2f} | {rate:.2f} | {told} |"


if __name__ == "__main__":
    main()
