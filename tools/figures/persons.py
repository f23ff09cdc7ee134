"""Print what five near copies of each row do to every error.

The rows of a person are in the group of that person. ``times`` is the standard error of 480 rows of
48 persons over that of 96 rows of these persons, as a mean over draws; an error that counted
rows would be 0.45 times as large. Instruments without a standard error are counted at the end.
"""

import statistics
from collections.abc import Iterator
from functools import partial
from importlib import import_module

from tools.figures._table import Table, Words, chosen, head

from sonde.core.instrument import Detector, Instrument
from sonde.run.instruments.families import FAMILIES
from sonde.testing.instrument_laws import LEAST_RATIO, errors_of_persons, lacking, make_inputs


def instruments() -> Iterator[Instrument]:
    """Yield every exported instrument that is no detector, with each of its examples."""
    for family in FAMILIES:
        package = import_module(f"sonde.{family}")
        for name in package.__all__:
            member = getattr(package, name)
            if isinstance(member, type) and issubclass(member, Instrument):
                made = (member(**example) for example in member.examples)
                yield from (i for i in made if not isinstance(i, Detector) and not lacking(i))


def _inputs(n: int, seed: int) -> dict[str, object]:
    return make_inputs(n, seed)


def table(words: Words = (), *, draws: int = 3) -> Table:
    """Print the table.

    Parameters
    ----------
    words
        Instruments whose names hold one of these words.
    draws
        Draws of the rows.
    """
    without = 0
    yield head("instrument", "error alone", "with copies", "times", "")
    for name, instrument in chosen({repr(i): i for i in instruments()}, words):
        pairs = [errors_of_persons(instrument, partial(_inputs, seed=s)) for s in range(draws)]
        known = [(a, b) for a, b in pairs if a and b is not None]
        if not known:
            without += 1
            continue
        first, second = (statistics.mean(side) for side in zip(*known, strict=True))
        times = statistics.mean(b / a for a, b in known)
        off = "<-- off" if times < LEAST_RATIO else ""
        yield f"| {name} | {first:.4f} | {second:.4f} | {times:.2f} | {off} |"
    yield f"{without} without a standard error"
