"""Pictures of the answers: confusion, and labels and next token by depth."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, final

from sonde.core.chart import Chart, ChartAxis, curves, marks, matrix, overlaid
from sonde.report._fit import NARROW, Rows, tip
from sonde.report._format import Real, number, plural, quantity, share, shown
from sonde.report._picture import Axis, Numbers, Picture

MOST_WRITTEN: Final = 24
NOT_WORSE = 0.05
"""Level of the paired test below which a site is worse than the best one."""
_LABELS = (
    "Accuracy of a closed-form classifier on held-out rows, with its 95 % interval. "
    "Dashed: always predicting the largest class."
)
_LOSS = (
    "Read through the model's own final norm and head after each block. Dashed: the loss "
    "of the tokens' frequencies alone, and the model's final loss."
)


@final
@dataclass(frozen=True)
class _Curve:
    """A line over sites with a band, horizontal reference lines, and an optional ring."""

    key: str
    column: str
    unit: str
    rules: tuple[tuple[str, Real], ...]
    ring: str | None = None


def confusion_picture(table: dict[str, Any]) -> Picture | None:
    """Return the confusion matrix; with many classes only the most confused ones."""
    if not table["pairs"] or len(table["answers"]) < 2:
        return None
    labels, answers = ([shown(n, 40) for n in table[k]] for k in ("labels", "answers"))
    rows = [
        {"label": a, "answer": b, "share": n / size if n else None, "rows": str(n),
         "tip": tip(f"label {a}", f"answer {b}", plural(n, "row"), f"{share(n / size)} of {a}")}
        for a, size, line in zip(labels, table["sizes"], table["counts"], strict=True)
        for b, n in zip(answers, line, strict=True)
    ]  # fmt: skip
    worst = table["pairs"][0]
    message = f"Most often wrong: {shown(worst['label'], 60)} answered as "
    message += f"{shown(worst['predicted'], 60)}, {plural(worst['n'], 'row')}"
    note = (
        "Rows of each label by the model's answer; the colour is the fraction of the label's rows."
    )
    if table["n_classes"] > len(answers):
        note += (
            f" Of {table['n_classes']:,} classes, only those that are confused most often are "
            "drawn."
        )
    few = len(answers) <= MOST_WRITTEN

    def draw(width: int) -> Chart:
        x, y = ChartAxis("answer", names=answers), ChartAxis("label", names=labels)
        text = "rows" if few and width > NARROW else ""
        return matrix(message, rows, x, y, "share", low=0, high=1, text=text, scheme="blues")

    columns = ("label", "answered as", "rows", "fraction of the label's rows")
    pairs = tuple((p["label"], p["predicted"], p["n"], p["share"]) for p in table["pairs"])
    return Picture(
        "confusion", message, draw, Numbers(columns, pairs, "confused pairs"), note, square=True
    )


def labels_picture(report: dict[str, Any]) -> Picture | None:
    """Return held-out accuracy by depth, with the majority line and the best site ringed."""
    labels = report["labels"]
    axis = Axis.of_layers([row["site"] for row in labels["sites"]], report)
    at, best = {row["site"]: row["value"] for row in labels["sites"]}, labels["best"]
    message = "Labels by depth"
    if at.get(best) is not None:
        last = labels["sites"][-1]
        message = f"Labels are decoded best at {axis.say(best)}: {share(at[best])} of held-out rows"
        message += f", {share(last['value'])} at the last site" if last["site"] != best else ""
    enough = next((row for row in labels.get("paired", ()) if row["p"] >= NOT_WORSE), None)
    if enough is not None and enough["site"] != best:
        message += (
            f"; the first site that is not significantly worse is {axis.say(enough['site'])} "
            f"(paired test, p = {enough['p']:.2g})"
        )
    rules = () if labels["majority"] is None else (("largest class", labels["majority"]),)
    curve = _Curve("labels", "accuracy", "share", rules, best)
    return _picture(curve, message, _LABELS, labels["sites"], labels["n_rows"], axis)


def prediction_picture(prediction: dict[str, Any]) -> Picture | None:
    """Return the next-token loss after each block, with the unigram and the final loss."""
    rows = prediction["sites"]
    lines = ("token frequencies", prediction["unigram"]), ("final", prediction["final"])
    rules = tuple((name, value) for name, value in lines if value is not None)
    curve = _Curve("prediction", "loss_nats", "nats", rules)
    axis = Axis.of([row["site"] for row in rows])
    return _picture(curve, _loss_message(rows, axis), _LOSS, rows, prediction["n_rows"], axis)


def _loss_message(rows: Rows, axis: Axis) -> str:
    present = [row for row in rows if row["value"] is not None]
    if len(present) < 2:
        return "Next-token loss by depth"
    first, last = present[0]["value"], present[-1]["value"]
    verb = "falls" if last < first else "rises"
    message = f"Next-token loss {verb} from {number(first)} to {number(last)} nats"
    rise, at = max((b["value"] - a["value"], b["site"]) for a, b in pairwise(present))
    return (
        f"{message}; it rises most, by {number(rise)}, at {axis.say(at)}" if rise > 0 else message
    )


def _picture(
    curve: _Curve, message: str, note: str, rows: Rows, n: int, axis: Axis
) -> Picture | None:
    present = [row for row in rows if row["value"] is not None and row["site"] in axis.names]
    if len(present) < 2:
        return None
    dots = [_point(curve, row, axis, n) for row in present]
    table = tuple(
        (row["site"], row["value"], row["se"]) for row in rows if row["site"] in axis.names
    )
    numbers = Numbers(("site", curve.column, "se"), table, curve.key)

    def draw(width: int) -> Chart:
        return _chart(curve, message, dots, axis)

    return Picture(curve.key, message, draw, numbers, note)


def _point(curve: _Curve, row: dict[str, Any], axis: Axis, n: int) -> dict[str, Any]:
    value, half = row["value"], 1.96 * (row["se"] or 0.0)
    bits = f"{number(value / math.log(2))} bits" if curve.unit == "nats" else ""
    error = f"se {quantity(row['se'], curve.unit)}" if row["se"] else ""
    text = tip(row["site"], quantity(value, curve.unit), bits, error, f"n = {n:,}")
    ends = {"v": value, "lo": value - half, "hi": value + half}
    return {"s": axis.names[row["site"]], "tip": text, "ring": row["site"] == curve.ring} | ends


def _chart(curve: _Curve, message: str, rows: Rows, axis: Axis) -> Chart:
    levels = [
        {"value": value, "name": name, "tip": tip(name, quantity(value, curve.unit))}
        for name, value in curve.rules
    ]
    y = ChartAxis("v", title="", share=curve.unit == "share", zero=True)
    chart = curves(message, rows, axis.across(), y, bands=[("lo", "hi")], levels=levels)
    ringed = [row for row in rows if row["ring"]]
    if not ringed:
        return chart
    ring = {"filled": False, "size": 240, "color": "var(--c2)", "strokeWidth": 2.5}
    return overlaid(chart, marks(message, ringed, axis.across(), y, **ring))
