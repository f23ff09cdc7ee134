"""``python -m tools.lm MODEL@SITE ...``: methods with sinks and without them, as a table.

MODEL is a folder, by default the tiny Llama of the tests; ``make lm`` builds .lm/smollm2 and
.lm/gemma3. Texts are read once, a row for each token; each method of measure, detect, edit and
explain is fitted on all rows and on the rows that are no sinks. A method is marked if its figure
moves by a tenth or more. The class of methods with labels is the half of its text that a token is
in. ``--page`` writes the table between the lines of a page.
"""

import argparse
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tools.lm.commands import parsed, write_part
from tools.lm.train_twin import FOLDER, document

import sonde
from sonde import detect, edit, explain, measure
from sonde.core.errors import SondeError
from sonde.core.instrument import Instrument
from sonde.core.site import POSITIONS

START, END = "<!-- printed by python -m tools.lm -->", "<!-- end -->"
MOVED = 0.1
SEEDS = 24
ROOMS = (measure, detect, edit, explain)
SLOW = {"SparseAutoencoder", "Transcoder", "SkipTranscoder", "Crosscoder", "MdlProbe", "SimpleNet"}
"""Methods that train for minutes."""
NARROW = {"DCI", "InfoMEC", "SAP", "MutualInformationGap", "Modularity", "MutualInformation"}
"""Methods that look at each unit, for at most 128 units."""
OTHER_ROWS = {"AttentionEntropy"}
"""Methods of attention weights, which states are not."""


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
            if is_method and kind.span in ("one", "pair") and name not in SLOW | OTHER_ROWS:
                examples: Any = kind.examples or ({},)
                instrument = kind(**examples[0])
                if instrument.reading().get("reducer", POSITIONS) == POSITIONS:
                    yield room.__name__.rpartition(".")[2], instrument


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


Figures = dict[str, tuple[float, float]]


def figures_of(folder: str, site: str) -> tuple[str, Figures]:
    """Return a sentence on the rows of a model, and each method's figure with and without sinks."""
    model = sonde.load(folder)
    draw = random.Random(0)
    texts = [document(draw).replace("<|endoftext|>", "") for _ in range(SEEDS)]
    every = read_rows(model, texts, site)
    left, name = every.without(), Path(folder).name
    n_sinks, figures = int(every.sink.sum()), Figures()
    for room, instrument in instruments():
        if type(instrument).__name__ in NARROW and every.x.shape[1] > 128:
            continue
        kept, without = (figure_of(instrument, rows, left) for rows in (every, left))
        is_count = (kept, without) == (len(every.x), len(left.x))
        if is_count or (math.isnan(kept) and math.isnan(without)):
            continue  # it needs other columns, or a second set of rows to score
        figures[f"{room}.{type(instrument).__name__}"] = kept, without
    n_moved = sum(map(moved, figures.values()))
    return (
        f"{name}, {site}: {len(every.x):,} tokens of {SEEDS} texts, {n_sinks} of them sinks; "
        f"{n_moved} of {len(figures)} figures move."
    ), figures


def moved(pair: tuple[float, float]) -> bool:
    """Return whether a figure differs by a tenth or more between all rows and no sinks."""
    kept, without = pair
    return abs(kept - without) > MOVED * max(map(abs, pair)) or math.isnan(kept + without)


def table(found: dict[str, Figures]) -> list[str]:
    """Return the lines of the table; figures that move are bold."""
    names = dict.fromkeys(name for figures in found.values() for name in figures)
    lines = [f"| method | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    for name in names:
        cells: list[str] = []
        for figures in found.values():
            pair = figures.get(name)
            text = "" if pair is None else f"{pair[0]:.4g} / {pair[1]:.4g}"
            cells.append(f"**{text}**" if pair is not None and moved(pair) else text)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.lm", description=__doc__)
    default = f"{FOLDER}@model.layers.3"
    parser.add_argument("models", nargs="*", default=[default], help="FOLDER@SITE of each model")
    typed = parsed(parser)
    sentences, found = list[str](), dict[str, Figures]()
    for text in typed.models:
        folder, _, site = text.rpartition("@")
        sentence, found[Path(folder).name] = figures_of(folder, site)
        sentences.append(sentence)
    printed = "\n\n".join(["\n".join(sentences), "\n".join(table(found))])
    print(printed)
    write_part(typed.page, START, END, printed)


if __name__ == "__main__":
    main()
