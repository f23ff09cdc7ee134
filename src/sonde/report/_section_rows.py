"""Sections about rows: DATA against OTHER, and tables of rows by id."""

from typing import Any, Final

from sonde.report._answers_words import planted_sentence, wrong_sentence
from sonde.report._format import number, p_value, plural, quantity, share, shown, tied, words
from sonde.report._markup import ElementIds, Markup, el
from sonde.report._parts import absent, definitions, drawer, figure, section, table, tabled
from sonde.report._picture import Numbers
from sonde.report._pictures_versus import (
    detectors_picture,
    rows_pictures,
    scores_picture,
    shift_picture,
)
from sonde.report._versus_words import label_sentences, matched_sentence, sides

_SHORT: Final = 12

_LISTS: Final = (
    (
        "weak_groups",
        "Groups of inputs on which the model is much worse",
        ("told", "n", "accuracy", "low", "high", "elsewhere", "confused", "places"),
        "The groups were searched for on one half of the inputs and evaluated on the other "
        "half. Wrongly answered inputs come first, the most typical ones in front.",
    ),
    (
        "mislabelled",
        "Rows whose label is probably wrong",
        ("places", "id", "label", "predicted", "share"),
        "Predicted: the label that a classifier fitted on other rows predicts, and the "
        "fraction of the row's nearest neighbours with this label. About three quarters of "
        "wrong labels are detected, so a row that is not listed may be wrong.",
    ),
    ("duplicates", "Exact copies", ("places", "ids", "n", "labels"), ""),
    (
        "near_duplicates",
        "Nearly the same",
        ("places", "id", "id2", "site", "ratio"),
        "Ratio: distance over the distance to the row's 5th neighbour.",
    ),
    (
        "far",
        "Far from all other rows",
        ("places", "id", "site", "z"),
        "z: log distance to the row's 5th neighbour, in robust standard deviations from the "
        "median row of the site. Without clean reference data it is not known whether these "
        "rows are out of distribution: compare with data that you trust (--versus).",
    ),
)


def versus_section(report: dict[str, Any], names: ElementIds) -> Markup:
    """Return the sites that separate DATA and OTHER, the alarm, and the most unusual rows."""
    versus = report.get("versus")
    if versus is None:
        text = "no second data set was given (--versus OTHER)."
        return absent("Second data set", text)
    where = report["provenance"]
    own_name, theirs = sides(report)
    counts = (
        _counted(versus["n_data"], where["data"]),
        _counted(versus["n_other"], where["other"]),
    )
    lead = f"{own_name}: {counts[0]}. {theirs}: {counts[1]}."
    pictures = (detectors_picture(report), shift_picture(report), scores_picture(report))
    sentences = [*label_sentences(versus, (own_name, theirs)), matched_sentence(versus)]
    parts = (
        [el("ul", *(el("li", tied(line)) for line in sentences if line))] if any(sentences) else []
    )
    parts += _columns(versus, names)
    parts += _classes(versus, names, (own_name, theirs))
    parts += [figure(picture, names) for picture in pictures if picture]
    alarms = [_alarm(alarm, theirs) for alarm in (versus.get("lead"), versus["alarm"]) if alarm]
    parts += [drawer("The alarms in numbers", *alarms)] if alarms else []
    if versus["rows"]:
        n_other = where["other"]["n_rows"] if where["other"] else None
        listed = [_flat(row) for row in versus["rows"]]
        rows = _rows_table(listed, ("places", "id", "score", "p"), report["shows_inputs"])
        parts.append(el("h3", f"Most anomalous rows of {theirs}"))
        if n_other is not None and n_other > len(versus["rows"]):
            first = f"The first {len(versus['rows'])} of {plural(n_other, 'row')}, by score."
            parts.append(el("p", first, cls="reading"))
        parts.append(tabled(rows, names, opened=len(versus["rows"]) <= _SHORT))
    return section("versus", "The two data sets", *parts, lead=lead)


def _columns(versus: dict[str, Any], names: ElementIds) -> list[Markup]:
    """Return the table of changed columns."""
    rows = versus.get("columns") or []
    if not rows:
        return []
    keys = ("column", "said", "effect", "p", "fix")
    heads = (
        "column",
        "how it moved",
        "effect",
        "adjusted p",
        "line of code that undoes the change",
    )
    table = tuple(tuple(row[key] or None for key in keys) for row in rows)
    return [tabled(Numbers(heads, table, "columns"), names, "Columns that moved", opened=True)]


def _classes(versus: dict[str, Any], names: ElementIds, sides: tuple[str, str]) -> list[Markup]:
    """Return the table of label and answer fractions in both data sets."""
    classes = (versus.get("labels") or {}).get("classes") or []
    kinds = ("labels_data", "labels_other", "answers_data", "answers_other", "corrected")
    kept = [kind for kind in kinds if any(row[kind] is not None for row in classes)]
    if not kept:
        return []
    heads = {"labels_data": f"labels, {sides[0]}", "labels_other": f"labels, {sides[1]}"}
    heads |= {"answers_data": f"answers, {sides[0]}", "answers_other": f"answers, {sides[1]}"}
    heads |= {"corrected": f"labels of {sides[1]}, estimated from its answers"}
    table = tuple((row["label"], *(_percent(row[kind]) for kind in kept)) for row in classes)
    numbers = Numbers(("class", *(heads[kind] for kind in kept)), table, "classes")
    return [
        tabled(numbers, names, "Proportions of labels and answers", opened=len(classes) <= _SHORT)
    ]


def _percent(value: float | None) -> str | None:
    return None if value is None else share(value)


def _counted(n_groups: int, where: dict[str, Any] | None) -> str:
    """Return the number of independent rows of a data set: groups if groups were given."""
    if where is None or not where.get("group_column"):
        return plural(n_groups, "row")
    return f"{plural(n_groups, 'group')} ({plural(where['n_rows'], 'row')})"


def _alarm(alarm: dict[str, Any], other: str) -> Markup:
    rate = share(alarm["rate"])
    if alarm.get("low") is not None:
        rate += f" ({share(alarm['low'])} to {share(alarm['high'])})"
    return definitions([
        ("detector", alarm.get("detector")),
        ("site", shown(_only(alarm.get("sites") or []), 60) or None),
        ("promised false alarms", share(alarm["alpha"])),
        (f"alarms on {other}", rate),
        ("threshold", number(alarm["threshold"])),
        ("calibrated on", plural(alarm["n_cal"], "row")),
        ("p-value", None if alarm.get("p") is None else p_value(alarm["p"])),
        ("guarantee", alarm.get("guarantee")),
    ])  # fmt: skip


def _only(sites: list[str]) -> str:
    return sites[0] if len(sites) == 1 else ""


def rows_section(report: dict[str, Any], names: ElementIds) -> Markup:
    """Return the tables of rows: map, wrong labels, copies, outliers."""
    rows = report.get("rows")
    if rows is None:
        return absent("Rows", "No rows are named in this report.")
    inputs = report["shows_inputs"]
    lead = (
        "Rows by id, with their inputs."
        if inputs
        else "Rows by id; inputs are shown only with --show-inputs."
    )
    parts: list[Markup | None] = [figure(picture, names) for picture in rows_pictures(report)]
    for key, title, columns, note in _LISTS:
        if rows.get(key):
            listed = _rows_table([_flat(row) for row in rows[key]], columns, inputs)
            parts += [el("h3", title), el("p", note, cls="reading") if note else None]
            parts.append(tabled(listed, names, opened=len(rows[key]) <= _SHORT))
    parts += _suspects(rows.get("suspects"), names, inputs)
    if not any(parts):
        parts.append(el("p", "No row differs clearly from the others.", cls="empty"))
    return section("rows", "Rows", *parts, lead=lead)


def _suspects(found: dict[str, Any] | None, names: ElementIds, inputs: bool) -> list[Markup | None]:
    """Return the labels to check first, and how well the list found planted wrong labels."""
    if not found or not found["rows"]:
        return []
    note = (
        "The held-out classifier and the nearest rows suggest another class; share: the "
        "fraction of the nearest rows."
    )
    sentences = wrong_sentence(found), planted_sentence(found)
    table_ = _rows_table([_flat(row) for row in found["rows"]],
                   ("places", "id", "label", "predicted", "share"), inputs)  # fmt: skip
    return [
        el("h3", "Check these labels first"),
        el("p", " ".join(filter(None, (note, *sentences))), cls="reading"),
        tabled(table_, names, opened=len(found["rows"]) <= _SHORT),
    ]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: ", ".join(shown(item, 80) for item in value) if isinstance(value, list) else value
        for key, value in row.items()
    }


def _rows_table(rows: list[dict[str, Any]], columns: tuple[str, ...], inputs: bool) -> Numbers:
    kept = [name for name in columns if name != "places" or any(row.get(name) for row in rows)]
    kept += ["input"] if inputs and any(row.get("input") for row in rows) else []
    heads = tuple("where" if name == "places" else name for name in kept)
    return Numbers(heads, tuple(tuple(row.get(key) for key in kept) for row in rows), "rows")


def checks_section(report: dict[str, Any], names: ElementIds) -> Markup:
    """Return every check with its state, figure, limit and reason."""
    levels = {f["code"]: f["level"] for f in reversed(report["findings"])}
    rows = []
    for check in report["checks"]:
        figure_ = check["figure"]
        state = levels.get(check["code"], "note") if check["state"] == "raised" else check["state"]
        value = None if figure_ is None else quantity(figure_["value"], figure_["unit"])
        what = None if figure_ is None else words(figure_["name"])
        limits = f"limits: {check['threshold']}" if check["threshold"] else None
        remark = "; ".join(text for text in (what, check["reason"], limits) if text)
        rows.append((check["code"], check["title"], state, value, remark))
    columns = ("code", "check", "state", "figure", "subject, reason, limits")
    lead = (
        "Every check with its result; a check that does not apply has no data to check here. "
        "--explain CODE describes how a number is computed, --set CODE.LIMIT=X changes a limit."
    )
    kinds = {2: "state", 3: "number"}
    drawn = table(Numbers(columns, tuple(rows), "checks"), names, "All checks", kinds)
    folded = drawer(plural(len(rows), "check"), el("p", lead, cls="reading"), drawn, cls="more")
    return section("checks", "All checks", folded)
