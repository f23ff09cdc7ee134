"""Output of ``sonde score``: a line for each input, or detector and site, and notes."""

import math
from textwrap import wrap
from typing import Any

import numpy as np
import pyarrow as pa

from sonde.cli._table import PIPE_WIDTH, legend, table, terminal_width, text_width
from sonde.cli.console import note
from sonde.core.wording import is_content_hash, plural
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import place_of
from sonde.run.reading.row_places import Place
from sonde.run.scoring.lacking import few_text, lacking
from sonde.run.scoring.score import spot
from sonde.run.scoring.tables import keys_of, part_of, scores_of
from sonde.run.scoring.unusual import most_unusual
from sonde.run.scoring.weak_file import WeakGroups

SHOWN = 5
MEDIAN = "score of the median row; higher = more anomalous, each detector and site on its own scale"


def answers_text(answers: pa.Table, alpha: float, listed: bool) -> str:
    """Return each input's p-value, verdict and most extreme detector, and the alarm count.

    Parameters
    ----------
    answers : pyarrow.Table
        As ``by_input`` makes it.
    alpha : float
    listed : bool
        Whether to list every input in the order of the data, not only the most unusual inputs.
    """
    lines = answers.to_pylist()
    has_p = any(line["p"] is not None for line in lines)
    shown = lines if listed else sorted(lines, key=_rank)[:SHOWN]
    rows = [
        (_called(line), f"{line['loudest']} at {place_of(line['loudest'], line['loudest_site'])}")
        for line in shown
    ]
    verdicts = (
        [_verdict(line) for line in shown] if has_p else [(_figure(x["score"]),) for x in shown]
    )
    titles = ("input", "loudest", *(("p", "verdict") if has_p else ("score",)))
    drawn = table(
        titles, [(*row, *more) for row, more in zip(rows, verdicts, strict=True)], shrinks=0
    )
    return f"{drawn}\n\n{legend(_answer_words(lines, alpha, has_p))}\n{_alarms(lines, alpha)}"


def _answer_words(lines: list[dict[str, Any]], alpha: float, has_p: bool) -> dict[str, str]:
    by = lines[0]["instrument"] or ""
    together = f" over all detectors and sites, combined by {by}" if by.startswith("fuse(") else ""
    own = "smallest p-value" if has_p else "highest score relative to the scores of other inputs"
    words = {"loudest": f"detector and site with the {own}; --each lists all"}
    if not has_p:
        return words | {
            "score": "higher = more anomalous; - if several detectors give no single score"
        }
    usual = f"about {100 * alpha:.3g}% of inputs like the calibration inputs raise an alarm"
    return words | {
        "p": f"p-value{together}: fraction of in-distribution inputs with a score at least as high",
        "verdict": f"alarm if p <= {alpha:g}: {usual}; - if the p-value is not known",
    }


def _alarms(lines: list[dict[str, Any]], alpha: float) -> str:
    n, alarms = len(lines), [line["alarm"] for line in lines if line["alarm"] is not None]
    if not alarms:
        return f"{plural(n, 'input')}, no verdicts: see the notes, or run `sonde calibrate`."
    unknown = f"; the verdict is not known for {n - len(alarms):,}" if len(alarms) < n else ""
    return f"{sum(alarms):,} of {plural(n, 'input')} raise an alarm at {alpha:g}{unknown}."


def _verdict(line: dict[str, Any]) -> tuple[str, str]:
    unknown = "-" if line["p"] is None else "too few"
    words = {True: "alarm", False: "no alarm", None: unknown}
    return _figure(line["p"]), words[line["alarm"]]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _rank(line: dict[str, Any]) -> tuple[float, float, float]:
    p, own, score = (line[name] for name in ("p", "loudest_p", "score"))
    return (2.0 if p is None else p, 2.0 if own is None else own, -(score or 0.0))


def _called(line: dict[str, Any]) -> str:
    """Return the id of an input, with its place in the user's files if that is clearer."""
    place, own = line["place"], line["id"]
    if place is not None and is_content_hash(own):
        return place
    return own if place in (None, own) else f"{own} ({place})"


def groups_text(answers: pa.Table, weak: WeakGroups) -> str:
    """Return each weak group's description, its number of inputs, and the first inputs."""
    answered = answers.select(["id", "place", "row", "groups"]).to_pylist()
    if not weak.groups:
        return "weak groups: the scan found no weak group."
    lines = ["weak groups:"]
    for number, group in enumerate(weak.groups, 1):
        members = [_called(line) for line in answered if number in (line["groups"] or ())]
        right, rest = (f"{group.figures[name]:.1%}" for name in ("accuracy", "elsewhere"))
        first = ", ".join(members[:SHOWN]) + (", ..." if len(members) > SHOWN else "")
        words = (
            f"{number}. {group.text}: the model is correct on {right} of this group and on "
            f"{rest} of the other inputs. {len(members):,} of "
            f"{plural(len(answered), 'input')}{': ' if members else ''}{first}."
        )
        lines += _wrapped(words, text_width(), "  ")
    unknown = sum(line["groups"] is None for line in answered)
    lines += [f"  For {plural(unknown, 'input')} the group is not known."] if unknown else []
    return "\n".join(lines)


def say_infinite(scored: pa.Table) -> None:
    """Print a note on infinite scores and their number."""
    for instrument, site in keys_of(scored):
        scores = scores_of(part_of(scored, (instrument, site)))
        n_broken = int(np.isposinf(scores).sum())
        if n_broken:
            note(
                f"note: {n_broken} of {len(scores)} scores are infinite: their rows are not "
                "finite, or too large for their type.",
                at=f"{instrument} at {site}",
            )


def scored_text(scored: pa.Table, fitted: Fitted, alpha: float) -> str:
    """Return rows, median and alarms of every detector and site, with a legend.

    A note says how many rows must calibrate if a detector had too few.
    """
    rows, few = [], []
    for name in keys_of(scored):
        part = part_of(scored, name)
        scores, p = part["score"].to_numpy(), part["p"].drop_null().to_numpy()
        missing = lacking(fitted, name, alpha) if len(p) else None
        few += [] if missing is None else [missing]
        median = f"{np.quantile(scores, 0.5, method='inverted_cdf'):.4g}"
        alarms = f"{np.mean(p <= alpha):.1%}" if len(p) else "-"
        alarms = alarms if missing is None else "too few"
        rows.append((name[0], place_of(*name), f"{part.num_rows:,}", median, alarms))
    if few:
        note(f"note: {few_text(alpha, *min(few))}")
    title = f"p<={alpha:g}"
    meanings = {"median": MEDIAN}
    if any(row[-1] != "-" for row in rows):
        usual = f"{100 * alpha:.3g}%"
        meanings[title] = (
            f"fraction of rows that raise an alarm; about {usual} of rows like the calibration "
            "rows raise an alarm"
        )
    titles = ("detector", "site", "rows", "median", title)
    return f"{table(titles, rows)}\n\n{legend(meanings)}"


def oddest_text(scored: pa.Table, fitted: Fitted, place: Place) -> str:
    """Return the rows of smallest p-value and what makes them unusual, wrapped."""
    per_row = [
        (math.inf if line["p"] is None else line["p"], rank, line)
        for ranked in most_unusual(scored, SHOWN).values()
        for rank, line in enumerate(ranked)
    ]
    lines = ["", "most anomalous:"]
    for _, _, line in sorted(per_row, key=lambda one: one[:2])[:SHOWN]:
        lines += _oddest(line, fitted, place)
    return "\n".join(lines)


def without_units(scored: pa.Table) -> list[str]:
    """Return a sentence on detectors that cannot attribute scores to units."""
    with_units = scored.filter(scored["units"].is_valid())["instrument"].unique().to_pylist()
    names = [n for n in scored["instrument"].unique().to_pylist() if n not in with_units]
    named = f"no units: {', '.join(names)} cannot attribute scores to units."
    return [named] if names else []


def _oddest(line: dict[str, Any], fitted: Fitted, place: Place) -> list[str]:
    names = [] if line["row"] is None else [f"row {line['row']}", place(line["row"])]
    named = ", ".join(dict.fromkeys(filter(None, names)))
    who = f"{named} ({line['id']})" if named else line["id"]
    where = [place_of(line["instrument"], line["site"]), spot(line, fitted)]
    p = "" if line["p"] is None else f", p {line['p']:.3g}"
    texts = [f"{line['instrument']} at {', '.join(filter(None, where))}: "]
    texts[0] += f"score {line['score']:.4g}{p}"
    for name in ("layers", "units", "positions"):
        if line[name] and line[name] != [line["site"]]:
            texts.append(f"{name} {', '.join(map(str, line[name]))}")
    width = terminal_width() or PIPE_WIDTH
    return [*_wrapped(who, width, "  "), *(row for text in texts for row in _wrapped(text, width))]


def _wrapped(text: str, width: int, indent: str = "    ") -> list[str]:
    return wrap(
        text, width, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False
    )
