"""``python -m tools.lm MODEL``: methods with sinks and without them, as a table.

MODEL is a folder, by default the tiny Llama of the tests; ``make lm`` builds .lm/smollm2 and
.lm/gemma3. Texts are read once, a row for each token; each method of measure, detect, edit and
explain is fitted on all rows and on the rows that are no sinks. A method is marked if its figure
moves by a tenth or more. The class of methods with labels is the half of its text that a token is
in.
"""

import argparse
import logging
import math
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tools.lm.train_twin import FOLDER, document

import sonde
from sonde import detect, edit, explain, measure
from sonde.core.errors import SondeError
from sonde.core.instrument import Instrument

MOVED = 0.1
SEEDS = 24
ROOMS = (measure, detect, edit, explain)
SLOW = {"SparseAutoencoder", "Transcoder", "SkipTranscoder", "Crosscoder", "MdlProbe", "SimpleNet"}
"""Methods that train for minutes."""
NARROW = {"DCI", "InfoMEC", "SAP", "MutualInformationGap", "Modularity", "MutualInformation"}
"""Methods that look at each unit, for at most 128 units."""


@dataclass(frozen=True)
class TokenRows:
    """Rows of two sites for each token of some texts.

    Parameters
    ----------
    x, y : Tensor
        States at the site and at the next block, (row, dim).
    label, group : Tensor
        Class and text of each row.
    sink : Tensor
        Whether the row is that of a sink.
    """

    x: torch.Tensor
    y: torch.Tensor
    label: torch.Tensor
    group: torch.Tensor
    sink: torch.Tensor

    def without(self) -> "TokenRows":
        """Return the rows that are no sinks."""
        parts = (self.x, self.y, self.label, self.group, self.sink)
        return TokenRows(*(part[~self.sink] for part in parts))


def instruments() -> Iterator[tuple[str, Instrument]]:
    """Yield every method of one or two sites with its first example's parameters, and its room."""
    for room in ROOMS:
        for name in room.__all__:
            kind = getattr(room, name)
            is_method = isinstance(kind, type) and issubclass(kind, Instrument)
            if is_method and kind.span in ("one", "pair") and name not in SLOW:
                examples: Any = kind.examples or ({},)
                yield room.__name__.rpartition(".")[2], kind(**examples[0])


def read_rows(model: Any, texts: list[str], site: str) -> TokenRows:
    """Return the rows of each token at a block and at the next one."""
    stem, _, number = site.rpartition(".")
    after = f"{stem}.{int(number) + 1}"
    how: dict[str, Any] = {"sites": [site, after], "reducer": "positions", "check": False}
    names = ("x", "y", "label", "group", "sink")
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    start = 0
    for batch in sonde.read(model, texts, **how):
        first, second = list(batch.rows)
        found["x"].append(batch.rows[first].double())
        found["y"].append(batch.rows[second].double())
        found["sink"].append(batch.sink[first])
        own = batch.example[first]
        length = torch.bincount(own)
        place = torch.arange(len(own)) - (length.cumsum(0) - length)[own]
        found["label"].append((2 * place >= length[own]).long())
        found["group"].append(own + start)
        start += len(batch)
    return TokenRows(*(torch.cat(found[name]) for name in names))


def figure_of(instrument: Instrument, rows: TokenRows, asked: TokenRows) -> float:
    """Return one number of a fitted method: its value, or the median score of ordinary rows.

    NaN if the method needs other columns.
    """
    columns: dict[str, Any] = {"group": rows.group}
    if instrument.span == "pair":
        columns["y"] = rows.y
    try:
        result = instrument.fit(rows.x, rows.label, **columns)
        if hasattr(result, "score"):
            return float(torch.as_tensor(result.score(asked.x)).double().median())
        if hasattr(result, "spread"):
            return float(torch.as_tensor(result.spread))
        value = torch.as_tensor(result.value, dtype=torch.float64)
        return float(value) if value.ndim == 0 else float(value.norm())
    except (SondeError, ValueError, TypeError, LookupError, AttributeError, RuntimeError):
        return math.nan


def findings_of(model: Any, texts: list[str], sinks: str) -> set[str]:
    """Return the codes of a scan."""
    report = sonde.scan(model, texts, sinks=sinks, progress=False)
    return {finding.code for finding in report.findings}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.lm", description=__doc__)
    parser.add_argument("model", nargs="?", default=str(FOLDER), help="a model folder")
    parser.add_argument("--site", default="model.layers.3", help="site of the rows")
    parser.add_argument("--scan", action="store_true", help="compare the codes of two scans too")
    typed = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = sonde.load(typed.model)
    draw = random.Random(0)
    texts = [document(draw).replace("<|endoftext|>", "") for _ in range(SEEDS)]
    every = read_rows(model, texts, typed.site)
    left = every.without()
    counted = f"{len(every.x):,} tokens of {SEEDS} texts, {int(every.sink.sum())} of them sinks"
    print(f"{Path(typed.model).name}, {typed.site}: {counted}\n")
    print("| method | with sinks | without | moved by a tenth |\n|---|---|---|---|")
    for room, instrument in instruments():
        if type(instrument).__name__ in NARROW and every.x.shape[1] > 128:
            continue
        kept, without = (figure_of(instrument, rows, left) for rows in (every, left))
        is_count = (kept, without) == (len(every.x), len(left.x))
        if is_count or (math.isnan(kept) and math.isnan(without)):
            continue  # it needs other columns, or a second set of rows to score
        scale = MOVED * max(abs(kept), abs(without))
        moved = abs(kept - without) > scale or math.isnan(kept + without)
        name = f"{room}.{type(instrument).__name__}"
        print(f"| {name} | {kept:.4g} | {without:.4g} | {'yes' if moved else ''} |", flush=True)
    if typed.scan:
        codes = [findings_of(model, texts, sinks) for sinks in ("keep", "auto")]
        print(f"\nfindings with sinks alone: {sorted(codes[0] - codes[1]) or 'none'}")
        print(f"findings without sinks alone: {sorted(codes[1] - codes[0]) or 'none'}")


if __name__ == "__main__":
    main()
