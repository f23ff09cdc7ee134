"""``python -m tools.lm MODEL``: every measure with sinks and without them, as a table.

MODEL is a folder, by default the tiny Llama of the tests; ``make lm`` builds .lm/smollm2 and
.lm/gemma3. A measure is marked if leaving the sinks out moves its value by a tenth or more.
"""

import argparse
import logging
import math
import random
import warnings
from pathlib import Path
from typing import Any

import torch
from tools.lm.train_twin import FOLDER, document

import sonde
from sonde import measure
from sonde.core.errors import SondeError
from sonde.core.instrument import Instrument

MOVED = 0.1
SEEDS = 24


def instruments() -> list[Instrument]:
    """Return every measure of single sites with its first example's parameters."""
    found: list[Instrument] = []
    for name in measure.__all__:
        kind = getattr(measure, name)
        if isinstance(kind, type) and issubclass(kind, Instrument) and kind.span == "one":
            found.append(kind(**kind.examples[0]))
    return found


def value_of(instrument: Instrument, model: Any, texts: list[str], site: str, sinks: str) -> float:
    """Return the value of a measure at a site, NaN if it needs other columns."""
    how = {**instrument.reading(), "sites": site, "reducer": "positions", "sinks": sinks}
    try:
        stream = sonde.read(model, texts, check=False, **how)
        fitted = sonde.fit(instrument, stream, progress=False)
        return float(fitted.result(*fitted.names[0]).value)
    except (SondeError, ValueError, TypeError, LookupError):
        return math.nan


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.lm", description=__doc__)
    parser.add_argument("model", nargs="?", default=str(FOLDER), help="a model folder")
    parser.add_argument("--site", default="model.layers.3", help="site of the rows")
    typed = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = sonde.load(typed.model)
    draw = random.Random(0)
    texts = [document(draw).replace("<|endoftext|>", "") for _ in range(SEEDS)]
    print(f"{Path(typed.model).name}, {typed.site}, {len(texts)} texts, a row for each token\n")
    print("| measure | with sinks | without | moved by a tenth |\n|---|---|---|---|")
    for instrument in instruments():
        kept, left = (value_of(instrument, model, texts, typed.site, s) for s in ("keep", "auto"))
        if math.isnan(kept) and math.isnan(left):
            continue
        moved = abs(kept - left) > MOVED * max(abs(kept), abs(left)) or math.isnan(kept + left)
        name = type(instrument).__name__
        print(f"| {name} | {kept:.4g} | {left:.4g} | {'yes' if moved else ''} |", flush=True)


if __name__ == "__main__":
    main()
