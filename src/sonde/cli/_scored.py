"""What ``sonde score`` says of scores: a line for each detector and site, and the oddest rows."""

import math
from textwrap import wrap
from typing import Any

import numpy as np
import pyarrow as pa

from sonde.cli._table import PIPE_WIDTH, legend, table, terminal_width
from sonde.cli.console import note
from sonde.run.bundles.fitted import Fitted
from sonde.run.evaluating.unusual import most_unusual
from sonde.run.instruments.entries import place_of
from sonde.run.reading.row_places import Place
from sonde.run.scoring.lacking import lacking
from sonde.run.scoring.score import spot
from sonde.run.scoring.tables import part_of

SHOWN = 5
MEDIAN = "score of the middle row; higher = more unusual, each detector and site on its own scale"


def scored_text(scored: pa.Table, fitted: Fitted, alpha: float) -> str:
    """Return rows, median and alarms of every detector and site, with what the words mean.

    Notes say where scores are infinite, and where too few rows calibrated.
    """
    rows, few = [], []
    names = scored.group_by(["instrument", "site"], use_threads=False).aggregate([])
    for name in [(line["instrument"], line["site"]) for line in names.to_pylist()]:
        part = part_of(scored, name)
        scores, p = part["score"].to_numpy(), part["p"].drop_null().to_numpy()
        _say_infinite(name, scores)
        missing = lacking(fitted, name, alpha) if len(p) else None
        few += [] if missing is None else [missing]
        median = f"{np.quantile(scores, 0.5, method='inverted_cdf'):.4g}"
        alarms = f"{np.mean(p <= alpha):.1%}" if len(p) else "-"
        alarms = alarms if missing is None else "too few"
        rows.append((name[0], place_of(*name), f"{part.num_rows:,}", median, alarms))
    if few:
        n, needed = min(few)
        note(f"note: p <= {alpha:g} needs at least {needed} calibrated rows, got {n}.")
    title = f"p<={alpha:g}"
    meanings = {"median": MEDIAN}
    if any(row[-1] != "-" for row in rows):
        usual = f"{100 * alpha:.3g}%"
        meanings[title] = f"alarms; of rows like those that calibrated about {usual} raise one"
    titles = ("detector", "site", "rows", "median", title)
    return f"{table(titles, rows)}\n\n{legend(meanings)}"


def oddest_text(scored: pa.Table, fitted: Fitted, place: Place) -> str:
    """Return the rows of the smallest p-values with what makes them unusual, wrapped."""
    found = [
        (math.inf if line["p"] is None else line["p"], rank, line)
        for mine in most_unusual(scored, SHOWN).values()
        for rank, line in enumerate(mine)
    ]
    lines = ["", "most unusual:"]
    for _, _, line in sorted(found, key=lambda one: one[:2])[:SHOWN]:
        lines += _oddest(line, fitted, place)
    return "\n".join(lines)


def without_units(scored: pa.Table) -> list[str]:
    """Return which detectors cannot say which units made a score, in a sentence."""
    told = scored.filter(scored["units"].is_valid())["instrument"].unique().to_pylist()
    names = [n for n in scored["instrument"].unique().to_pylist() if n not in told]
    named = f"no units: {', '.join(names)} cannot say which units made a score."
    return [named] if names else []


def _oddest(line: dict[str, Any], fitted: Fitted, place: Place) -> list[str]:
    names = [] if line["row"] is None else [f"row {line['row']}", place(line["row"])]
    named = ", ".join(dict.fromkeys(filter(None, names)))
    who = f"{named} ({line['id']})" if named else line["id"]
    where = [place_of(line["instrument"], line["site"]), spot(line, fitted)]
    p = "" if line["p"] is None else f", p {line['p']:.3g}"
    said = [f"{line['instrument']} at {', '.join(filter(None, where))}: "]
    said[0] += f"score {line['score']:.4g}{p}"
    for name in ("layers", "units", "positions"):
        if line[name] and line[name] != [line["site"]]:
            said.append(f"{name} {', '.join(map(str, line[name]))}")
    width = terminal_width() or PIPE_WIDTH
    return [*_wrapped(who, width, "  "), *(row for text in said for row in _wrapped(text, width))]


def _wrapped(text: str, width: int, indent: str = "    ") -> list[str]:
    return wrap(
        text, width, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False
    )


def _say_infinite(name: tuple[str, str], scores: np.ndarray) -> None:
    n_broken = int((~np.isfinite(scores)).sum())
    if n_broken:
        note(
            f"note: {name[0]} at {name[1]}: {n_broken} of {len(scores)} scores are infinite: "
            "their rows are not finite, or too large for their type."
        )
