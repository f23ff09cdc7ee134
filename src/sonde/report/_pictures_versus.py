"""Two data sets: their separation by depth, their scores, and a map of rows."""

from collections import Counter
from dataclasses import replace
from typing import Any, Final

from sonde.core.chart import Chart, ChartAxis, marks
from sonde.report._fit import OKABE_ITO, tip
from sonde.report._format import number, p_text, plural, share, shown
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report._pictures_scores import auroc_chart, histogram_picture
from sonde.report._versus_words import beyond_threshold, sides, surest_alarm, told_apart
from sonde.run.instruments.catalogue import word_of_name
from sonde.run.instruments.entries import place_of

_RULES: Final = ((0.5, "no difference"), (0.6, "a note above"), (0.75, "a warning above"))
_CATEGORIES: Final = 7


def shift_picture(report: dict[str, Any]) -> Picture | None:
    """Return each site's separation of the two data sets, with its interval."""
    versus = report["versus"]
    axis = Axis.of_layers([row["site"] for row in versus["sites"]], report)
    rows = [r for r in versus["sites"] if r["auroc"] is not None and r["site"] in axis.names]
    if not rows:
        return None
    dots = [_shift_point(row, axis) for row in rows]
    length = versus["length_auroc"]
    note = (
        "0.5 is no difference, 1 is perfect separation. Dashed: 0.5, and the limits of a "
        "note and a warning."
    )
    note += (
        ""
        if length is None
        else f" Second dashed line: AUROC of the input length alone, {number(length)}."
    )
    columns = ("site", "auroc", "low", "high", "p")
    table = tuple(tuple(row[key] for key in columns) for row in versus["sites"])

    message = told_apart(rows, axis.say, sides(report))
    levels = [{"value": value, "tip": tip(number(value), name)} for value, name in _RULES]
    if length is not None:
        levels.append({"value": length, "tip": f"length alone · AUROC {number(length)}"})

    def draw(width: int) -> Chart:
        return auroc_chart(message, dots, axis, levels)

    return Picture("shift", message, draw, Numbers(columns, table, "shift"), note)


def _shift_point(row: dict[str, Any], axis: Axis) -> dict[str, Any]:
    value = row["auroc"]
    low, high = (value if row[end] is None else row[end] for end in ("low", "high"))
    ends = f"{number(low)} to {number(high)}"
    text = tip(row["site"], f"AUROC {number(value)}", ends, *_p(row))
    return {"s": axis.names[row["site"]], "v": value, "lo": low, "hi": high, "tip": text}


def _p(row: dict[str, Any]) -> list[str]:
    return [] if row["p"] is None else [f"p {p_text(row['p'])}"]


def detectors_picture(report: dict[str, Any]) -> Picture | None:
    """Return each detector's separation of the second data set, with its interval."""
    names, best = sides(report), dict[str, dict[str, Any]]()
    rows = [row for row in report["versus"].get("detectors") or () if row["auroc"] is not None]
    for row in sorted(rows, key=lambda row: -row["auroc"]):
        best.setdefault(row["method"], row)
    if not best:
        return None
    dots = [
        {"method": shown(method, 40), "auroc": row["auroc"],
         "low": row["auroc"] if row["low"] is None else row["low"],
         "high": row["auroc"] if row["high"] is None else row["high"],
         "tip": tip(method, place_of(word_of_name(method), row["site"]),
                    f"AUROC {number(row['auroc'])}")}
        for method, row in best.items()
    ]  # fmt: skip
    first, row = next(iter(best.items()))
    message = f"{shown(first, 40)} separates {names[1]} from {names[0]} best: AUROC "
    message += number(row["auroc"])
    columns = ("method", "site", "auroc", "low", "high")
    table = tuple(
        (r["method"], place_of(word_of_name(r["method"]), r["site"]), *(r[k] for k in columns[2:]))
        for r in rows
    )

    def draw(width: int) -> Chart:
        x = ChartAxis("auroc", title="AUROC", low=min(0.4, *(d["low"] for d in dots)), high=1.0)
        y = ChartAxis("method", title="")
        chart = marks(message, dots, x, y, low="low", high="high", size=70)
        return chart | {"height": max(60, 34 * len(dots))}

    note = (
        f"Each detector at its best site, fitted on half of {names[0]}; bars are 95 % "
        "intervals. 0.5 is chance."
    )
    return Picture("detectors", message, draw, Numbers(columns, table, "detectors"), note)


def scores_picture(report: dict[str, Any]) -> Picture | None:
    """Return two histograms of a score on a shared axis, with the threshold."""
    versus, names = report["versus"], sides(report)
    scores, alarm = versus["scores"], surest_alarm(versus)
    if scores is None:
        return None
    bins = {"edges": scores["edges"], "threshold": scores["threshold"], "log": False}
    bins |= {"counts_usual": scores["counts_data"], "counts_unusual": scores["counts_other"]}
    bins |= {"beyond_usual": 0, "beyond_unusual": 0}
    picture = histogram_picture(bins, kinds=names)
    if picture is None:
        return None
    note = (
        "Fraction of each data set in each bin, the last bin including all higher scores; the "
        "line is the calibrated threshold."
    )
    if alarm is None or alarm["rate"] is None:
        return replace(picture, note=note)
    return replace(
        picture, message=beyond_threshold(alarm, lambda s: shown(s, 60), names), note=note
    )


def rows_pictures(report: dict[str, Any]) -> list[Picture]:
    """Return maps of the rows in two principal components: by data set, then by label."""
    plane = (report.get("rows") or {}).get("map")
    if plane is None or len(plane["points"]) < 2:
        return []
    points = plane["points"]
    if plane["by"] != "source":
        return [_plane(plane, [p["label"] for p in points], "map", "label")]
    called = dict(zip(("DATA", "OTHER"), sides(report), strict=True))
    pictures = [
        _plane(plane, [called.get(p["label"], p["label"]) for p in points], "map", "source")
    ]
    if any(p.get("class") for p in points):
        pictures.append(_plane(plane, [p.get("class") for p in points], "map-labels", "label"))
    return pictures


def _plane(plane: dict[str, Any], labels: list[str | None], key: str, by: str) -> Picture:
    """Return a map of the rows, coloured by data set or by label."""
    points = plane["points"]
    domain, kept = _categories(labels)
    values = []
    for point, name in zip(points, labels, strict=True):
        label = shown(name, 40) if name in kept else domain[-1]
        text = tip(point["id"], name or "")
        values.append({"x": point["x"], "y": point["y"], "k": label, "tip": text})
    message = f"{plural(len(points), 'row')} at {shown(plane['site'], 60)} "
    message += "along their two main directions"
    if len(plane["axes"]) == 2:
        first, second = (share(axis, 2) for axis in plane["axes"])
        message += f", which account for {first} and {second} of the variance"
    if key != "map":
        message = f"The same {plural(len(points), 'row')} by label"

    titles = ("first main direction", "second")

    def draw(width: int) -> Chart:
        x, y = (ChartAxis(k, title=title) for k, title in zip("xy", titles, strict=True))
        colors = dict(zip(domain, OKABE_ITO, strict=False))
        side = min(width - 74, 560)
        chart = marks(message, values, x, y, by="k", colors=colors, opacity=0.8)
        return chart | {"width": side, "height": round(side * 0.75)}

    note = "Rows that lie together here may be distant along other directions."
    table = tuple((p["id"], n, p["x"], p["y"]) for p, n in zip(points, labels, strict=True))
    return Picture(
        key, message, draw, Numbers(("id", by, "x", "y"), table, "rows"), note, square=True
    )


def _categories(labels: list[str | None]) -> tuple[list[str], set[str]]:
    """Return the legend's names, and the labels that are listed by name."""
    common = [label for label, _ in Counter(filter(None, labels)).most_common()]
    kept = common if len(common) <= _CATEGORIES else common[: _CATEGORIES - 1]
    names = list(dict.fromkeys(shown(label, 40) for label in sorted(kept)))
    whole = len(kept) == len(common) and None not in labels and "" not in labels
    return (names if whole else [*names, "other" if names else "rows"]), set(kept)
