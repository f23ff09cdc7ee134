"""``python -m tools.lm.rounding [MODEL]``: perplexity of a language model, rounded on four grids.

Each linear layer is rounded to the nearest value of its group of 32 weights: on a grid with a free
offset, on one with 0 among its values, on the grid that ``RTN`` takes if it is given examples, and
on the grid of each row with the least error of the output. Examples and judged texts are different
help pages of Python.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, Final

from tools.lm.commands import parsed, write_part
from tools.lm.faults import loss_of
from tools.lm.train_twin import FOLDER

import sonde
from sonde.compress import RTN
from sonde.compress._grid import Zero, grid_of, rounded_to
from sonde.compress._layers import weighted_layers
from sonde.core.inputs import Model
from sonde.weights import Change, Grid, RewritePlan

BEGIN, END = "<!-- printed by python -m tools.lm.rounding -->", "<!-- end of grids -->"
GROUP: Final = 32
LETTERS: Final = 500
CALIBRATING, JUDGING = slice(0, 10), slice(48, 56)
"""Pages, in the order of their names, that choose grids and that judge them."""


def on_grid(model: Model, bits: int, zero: Zero) -> RewritePlan:
    """Return a plan that rounds every linear layer on grids with this zero."""
    changes: dict[str, Change] = {}
    for layer in weighted_layers("RTN", model, None):
        matrix = layer.matrix()
        grid = Grid.over(bits, GROUP, matrix.shape[1])
        changes[layer.weight] = rounded_to(matrix, grid, grid_of(matrix, grid, zero=zero), layer)
    return RewritePlan.of(model, changes, f"{bits} bits, {zero} zero")


def grids(model: Model, bits: int, examples: Sequence[str]) -> dict[str, Callable[[], RewritePlan]]:
    """Return how each grid is planned, by its name."""
    given = {"calibration": list(examples)}
    return {
        "free offset": lambda: on_grid(model, bits, "free"),
        "0 is a value": lambda: on_grid(model, bits, "point"),
        "`RTN`, no examples": lambda: RTN(bits, GROUP).plan(model, {}),
        "`RTN` with examples": lambda: RTN(bits, GROUP).plan(model, given),
        '`RTN(clip="output")`': lambda: RTN(bits, GROUP, clip="output").plan(model, given),
    }


def perplexity(model: Any, texts: list[str]) -> float:
    """Return the perplexity of a model on texts."""
    loss, n_tokens = loss_of(model, texts)
    return math.exp(loss / n_tokens)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.lm.rounding", description=__doc__)
    parser.add_argument("model", nargs="?", default=str(FOLDER), help="a model folder")
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3], help="bits of a weight")
    parser.add_argument("--only", default="", help="grids whose name contains this text")
    typed = parsed(parser)
    model: Any = sonde.load(typed.model)
    pages = [topics[name][:LETTERS] for name in sorted(topics)]
    own = perplexity(model, pages[JUDGING])
    lines = [
        f"`{Path(typed.model).name}`: perplexity {own:.1f} as it is\n",
        "| bits | grid | perplexity | planning, s |",
        "|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for bits in typed.bits:
        for name, plan in grids(model, bits, pages[CALIBRATING]).items():
            if typed.only not in name:
                continue
            start = time.process_time()
            small = replace(model, module=plan().fold(model))
            seconds = time.process_time() - start
            got = perplexity(small, pages[JUDGING])
            lines.append(f"| {bits} | {name} | {got:.1f} | {seconds:.0f} |")
            print(lines[-1], flush=True)
    write_part(typed.page, BEGIN, END, "\n".join(lines))


if __name__ == "__main__":
    main()
