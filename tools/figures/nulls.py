"""Print how far each null lies from its figure where there is nothing.

White rows, random classes, unrelated sides; ``--laws t3`` draws rows of Student's law. ``gap`` is
the mean of value - null over draws, in spreads of the value over draws; a null is good within 0.3.
``noise`` is the error of that gap.
"""

import itertools
import math
import statistics
from functools import partial

from tools.figures._measured import FIGURES, Figure, Laws, is_one, scalar, unrelated
from tools.figures._table import Row, Table, Words, chosen, head

GOOD = 0.3


def table(
    words: Words = (),
    *,
    draws: int = 40,
    rows: tuple[int, ...] = (200,),
    laws: Laws = ("normal",),
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
    """
    yield head("figure", "law", "rows", "value", "null", "spread", "gap", "noise", "")
    for name, figure in chosen(FIGURES, words):
        for law, n in itertools.product(laws, rows):
            yield Row((name, law, n), partial(_cells, figure, law, n, draws))


def _cells(figure: Figure, law: str, n: int, draws: int) -> list[str]:
    try:
        results = [figure(unrelated(n, seed, law)) for seed in range(draws)]
    except Exception as error:
        return [f"{type(error).__name__}: {str(error)[:100]}"]
    if results[0].null is None or not is_one(results[0].value):
        return ["no null, or no single number"]
    values, nulls = ([scalar(getattr(r, w)) for r in results] for w in ("value", "null"))
    spread = statistics.stdev(values)
    gaps = [v - w for v, w in zip(values, nulls, strict=True)]
    gap = statistics.mean(gaps) / spread if spread > 0 else 0.0
    noise = statistics.stdev(gaps) / spread / math.sqrt(len(gaps)) if spread > 0 else 0.0
    flags = " ".join(sorted({f for r in results for f in r.flags}))
    off = "<-- off" if abs(gap) > GOOD + 2 * noise else ""
    means = (f"{statistics.mean(each):.4f}" for each in (values, nulls))
    return [*means, f"{spread:.4f}", f"{gap:+.2f}", f"{noise:.2f}", f"{flags} {off}"]
