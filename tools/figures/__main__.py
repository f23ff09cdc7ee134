"""Draw worlds and print a table about them: ``python -m tools.figures NAME [OPTION ...]``.

Without a name the figures are listed; ``NAME --help`` shows what a figure draws, and its options.
A figure is a file of this folder with a function ``table``: its parameters are the options, and it
yields the lines. ``--into FILE`` keeps each row of the table: a later run with the same options
prints it again without the draws. ``--seconds 200`` ends the run after that time, with exit
status 3.
"""

import argparse
import math
import sys
import warnings
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro
from tools.figures._table import KeptRows, Row, TimeOver

from sonde.core.errors import SondeWarning

NAMES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def main(arguments: list[str]) -> int:
    """Print a table; 2 without a figure of that name, 3 if the time was over."""
    if not arguments or arguments[0] not in NAMES:
        for name in NAMES:
            doc = import_module(f"tools.figures.{name}").__doc__ or ""
            print(f"{name:<14} {doc.partition(chr(10))[0]}")
        return 2 * bool(arguments)
    figure = import_module(f"tools.figures.{arguments[0]}")
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--seconds", type=float, default=math.inf)
    kept, others = parser.parse_known_args(arguments[1:])
    options: dict[str, Any] = {}

    @wraps(figure.table)
    def asked(**typed: Any) -> None:
        options.update(typed)

    tyro.cli(
        asked,
        prog=f"python -m tools.figures {arguments[0]}",
        description=figure.__doc__,
        args=others,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    warnings.simplefilter("ignore", SondeWarning)
    rows = KeptRows(kept.into, kept.seconds)
    how = {name: value for name, value in options.items() if name != "words"}
    for line in figure.table(**options):
        if isinstance(line, Row):
            try:
                cells = rows.cells_of(f"{arguments[0]} {line.names} {how}", line)
            except TimeOver:
                return 3
            line = f"| {' | '.join([*map(str, line.names), *cells])} |"
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
