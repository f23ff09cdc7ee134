"""Print what five near copies of each row do to every error: ``python -m tools.persons_table``.

The rows of a person are in the group of that person. ``times`` is the standard error of 480 rows of
48 persons over that of 96 rows of these persons, as a mean over ``--draws``; an error that counted
rows would be 0.45 times as large. Instruments without a standard error are counted at the end.
"""

import argparse
import statistics
import warnings
from collections.abc import Iterator
from functools import partial
from importlib import import_module

from sonde.core.errors import SondeWarning
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="instruments whose names hold one of these words")
    parser.add_argument("--draws", type=int, default=3)
    asked = parser.parse_args()
    warnings.simplefilter("ignore", SondeWarning)
    without = 0
    print("| instrument | error alone | with copies | times | |\n" + "|---" * 5 + "|")
    for instrument in instruments():
        if asked.words and not any(w.lower() in repr(instrument).lower() for w in asked.words):
            continue
        pairs = [
            errors_of_persons(instrument, partial(_inputs, seed=s)) for s in range(asked.draws)
        ]
        known = [(a, b) for a, b in pairs if a and b is not None]
        if not known:
            without += 1
            continue
        first, second = (statistics.mean(side) for side in zip(*known, strict=True))
        times = statistics.mean(b / a for a, b in known)
        off = "<-- off" if times < LEAST_RATIO else ""
        print(f"| {instrument} | {first:.4f} | {second:.4f} | {times:.2f} | {off} |", flush=True)
    print(f"{without} without a standard error")


if __name__ == "__main__":
    main()
