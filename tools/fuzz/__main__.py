"""``python -m tools.fuzz``: random models, and the table of what sonde made of them."""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tools.fuzz.comparing import DIFFERENT, TRACEBACK, Outcome, Trial
from tools.fuzz.drawing import draw
from tools.fuzz.plain import imported
from tools.fuzz.table import reasons, table

WORKERS_EVERY = 50


def tried(seed: int, number: int, folder: Path) -> list[Outcome]:
    """Return what came of one model."""
    drawn = draw(seed, number)
    name = f"fuzzed_{seed}_{number}"
    place = folder / name
    place.mkdir()
    module = imported(drawn.source, name, folder)
    try:
        return Trial(drawn, module, place, number % WORKERS_EVERY == WORKERS_EVERY - 1).run()
    finally:
        del sys.modules[name]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.fuzz",
        description="Read, fit and score random models, and compare with plain hooks in float64.",
        epilog="Example: python -m tools.fuzz --seed 1 --models 500",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first model")
    parser.add_argument("--only", type=int, help="one model again, with its source")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the models and print the table; return 1 where one differed without a word."""
    typed = parsed(arguments)
    torch.set_num_threads(1)
    numbers = range(typed.first, typed.first + typed.models)
    if typed.only is not None:
        numbers = [typed.only]
        print(draw(typed.seed, typed.only).source)
    outcomes: list[Outcome] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sonde-fuzz-") as name:
        sys.path.insert(0, name)
        for number in numbers:
            found = tried(typed.seed, number, Path(name))
            outcomes += found
            bad = [o for o in found if o.verdict in (DIFFERENT, TRACEBACK)]
            for o in found if typed.only is not None else bad:
                print(f"{o.number} {o.command} {o.place}: {o.verdict} {o.why}", flush=True)
        sys.path.remove(name)
    seconds = (time.monotonic() - began) / max(1, len(numbers))
    print(table(outcomes), "", reasons(outcomes), sep="\n")
    print(f"\n{len(numbers)} models, {seconds:.2f} s each")
    return int(any(o.verdict in (DIFFERENT, TRACEBACK) for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
