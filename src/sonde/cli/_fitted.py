"""Output of ``sonde fit``: a line for each method and site, and notes."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sonde.cli._table import legend, table
from sonde.core.calibration import needed_scores
from sonde.core.errors import SondeError
from sonde.core.wording import plural
from sonde.findings.words.step import flags_of
from sonde.run.fitting.fitted_rows import ALPHA, is_rounding
from sonde.run.instruments.catalogue import method_of
from sonde.run.instruments.entries import place_of
from sonde.run.reading.recipe import OPTIONS

HELD_BY_A_PROBE = ("sites", "reducer", "keep_special", "sinks", "seed", "limit", *OPTIONS)
CLASSES = "number of classes, each with its own mean"
HELD = "held-out rows used for calibration"
AT = "sites of the value, and of other values with the same note"
MOST_PLACES = 3
SE = "standard error of the value"
ROUNDING = "~0"
NEAR_ZERO = f"{SE}; {ROUNDING} = below the rounding of the value"
NULL = "expected value if there is nothing to see: values near it say nothing"
RANGE = "smallest and largest possible value"
SEVERAL = "several numbers, which fitted.result(METHOD, SITE) returns in Python"


def alarm(alpha: float) -> tuple[str, str]:
    """Return the title of a column of thresholds and its meaning."""
    rate = f"{100 * alpha:.3g}%"
    return f"alarm at {rate}", (
        "a row that scores above this threshold raises an alarm (higher = more anomalous), as "
        f"at most {rate} of rows like the calibration rows do"
    )


def fitted_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of detectors and a table of measures, each with a legend."""
    detectors = [row for row in rows if row["detector"]]
    measures = [row for row in rows if not row["detector"]]
    parts = []
    if detectors:
        title, meaning = alarm(ALPHA)
        titles = ("detector", "site", "rows", "classes", "held out", title)
        parts.append(table(titles, [_detector_cells(row) for row in detectors]))
        has_classes = any(row["n_classes"] is not None for row in detectors)
        is_calibrated = any(row["n_held"] for row in detectors)
        meanings = {"classes": CLASSES} if has_classes else {}
        meanings |= {"held out": HELD, title: meaning} if is_calibrated else {}
        parts.append(legend(meanings))
    if measures:
        parts.append(measures_text(measures))
    return "\n\n".join(filter(None, parts))


def measures_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of measures with its legend."""
    further = {"at": AT, "se": SE, "null": NULL, "range": RANGE}
    cells = [_further(row) for row in rows]
    shown = [name for name in further if any(cell[name] for cell in cells)]
    further["se"] = NEAR_ZERO if any(cell["se"] == ROUNDING for cell in cells) else SE
    titles = ("measure", "site", "rows", "value", *shown)
    meanings = {row["method"]: _measure_meaning(row) for row in rows}
    meanings |= {name: further[name] for name in shown}
    meanings |= {"values": SEVERAL} if any(row["n_values"] != 1 for row in rows) else {}
    parts = [table(titles, [_measure_cells(row, shown) for row in rows]), legend(meanings)]
    return "\n\n".join(filter(None, parts))


def remarks(
    rows: Sequence[dict[str, Any]],
    output: Path,
    model: str,
    data: str,
    typed: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return warnings about a fitted file, one sentence each.

    ``typed`` holds the flags of the command line. A flag that the file lacks gets its own warning.
    """
    texts = []
    unlabelled = list(dict.fromkeys(row["method"] for row in rows if row["n_classes"] == 0))
    if unlabelled:
        texts.append(
            f"no labels: {', '.join(unlabelled)} treated all rows as one class (--label-column "
            "names the label column of a table)"
        )
    probes = [row for row in rows if row.get("positive") is not None]
    texts += [_apart(row) for row in probes if row["unit"].startswith("standard deviations")]
    needed = needed_scores(ALPHA, "marginal", 0.0)
    held = [row["n_held"] for row in rows if row["n_held"] is not None]
    if held and min(held) < needed:
        texts.append(
            f"alarms at {ALPHA:g} need at least {plural(needed, 'held-out row')}, got {min(held)}: "
            "fit more rows, hold out more of them (--calibrate), or run sonde calibrate"
        )
    if any(row["n_held"] for row in rows):
        kept = {k: v for k, v in (typed or {}).items() if k not in HELD_BY_A_PROBE}
        words = ["sonde", "calibrate", str(output), model, "UNSEEN", *flags_of(kept)]
        again = shlex.join(words)
        texts.append(
            f"p-values are too small if the model was trained on {data}. Then run {again}, with "
            "rows that the model was not trained on"
        )
    return texts


def _apart(row: dict[str, Any]) -> str:
    """Return how far the class of a probe lies from the others, on the fitted rows."""
    return (
        f"{row['method']} at {row['site']}: over the fitted rows, the means of class "
        f"{row['positive']} and of the other rows lie {_short(row['value'])} apart "
        f"({row['unit']}); sonde evaluate measures how well this direction classifies new rows"
    )


def in_place_of(path: Path) -> str:
    """Describe the contents of a file that will be replaced, as the end of a sentence.

    Empty if the file is missing.
    """
    from sonde.cli.info import describe

    if not path.exists():
        return ""
    try:
        facts = describe(path)
        what, n = ", ".join(facts["methods"]), facts["data"]["n_examples"]
    except (SondeError, LookupError, TypeError):
        return ", replacing another file"
    return f", replacing {what} on {plural(n, 'example')}"


def _detector_cells(row: dict[str, Any]) -> tuple[str, ...]:
    classes = {None: "", 0: "none"}.get(row["n_classes"], str(row["n_classes"]))
    held = "none" if row["n_held"] is None else f"{row['n_held']:,}"
    limit = "" if row["n_held"] is None else "too few"
    limit = limit if row["threshold"] is None else f"> {row['threshold']:.4g}"
    place = place_of(row["method"], row["site"])
    return row["method"], place, f"{row['n']:,}", classes, held, limit


def _measure_cells(row: dict[str, Any], shown: Sequence[str]) -> tuple[str, ...]:
    value = f"{row['n_values']:,} values" if row["n_values"] != 1 else _short(row["value"])
    place = place_of(row["method"], row["site"])
    further = _further(row)
    return row["method"], place, f"{row['n']:,}", value, *(further[name] for name in shown)


def _further(row: dict[str, Any]) -> dict[str, str]:
    """Return a measure's error, null and range, and the sites of its values."""
    error = is_rounding(row["se"], row["value"], row["low"], row["high"])
    ends = [f"{v:.4g}" if v is not None else "inf" for v in (row["low"], row["high"])]
    is_bounded = row["low"] is not None or row["high"] is not None
    return {
        "at": _listed(row["at"]),
        "se": ROUNDING if error else _short(row["se"]),
        "null": _short(row["null"]),
        "range": f"{'-' * (row['low'] is None)}{ends[0]} to {ends[1]}" if is_bounded else "",
    }


def _listed(places: Sequence[dict[str, Any]]) -> str:
    words = [", ".join(f"{name} {value}" for name, value in p.items()) for p in places]
    more = len(words) - MOST_PLACES
    return "; ".join(words[:MOST_PLACES]) + (f" and {more} more" if more > 0 else "")


def _measure_meaning(row: dict[str, Any]) -> str:
    """Return a measure's summary, its unit, and how to read its value."""
    method = method_of(row["method"].partition("(")[0])
    parts = ["a method of your own" if method is None else method.summary.rstrip(".")]
    reading = "" if method is None else method.reading.rstrip(".")
    parts += [f"in {row['unit']}"] if row["unit"] and row["unit"] not in reading else []
    parts += [f"{row['direction']} = more"] if row["direction"] != "none" and not reading else []
    return "; ".join(parts) + (f". Range: {reading}." if reading else "")


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
