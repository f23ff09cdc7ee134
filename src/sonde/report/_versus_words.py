"""Sentences that compare two data sets: separation, alarms, and rows."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from sonde.core.wording import told_apart_names
from sonde.report._format import number, plural, share, shown

NOTE_FLOOR: Final = 0.6
MOST_IDS: Final = 3
MOST_CLASSES: Final = 4
SURE: Final = 0.001

Sides = tuple[str, str]


def sides(report: dict[str, Any]) -> tuple[str, str]:
    """Return the names of the two data sets: whole if short, else the end of their paths.

    Examples
    --------
    >>> name = lambda text: {"name": text}
    >>> sides({"provenance": {"data": name("a/old.csv"), "other": name("b/new.csv")}})
    ('a/old.csv', 'b/new.csv')
    >>> sides({"provenance": {"data": name("list of items"), "other": None}})
    ('DATA', 'OTHER')
    """
    where = report["provenance"]
    first_name, theirs = (shown((where[k] or {}).get("name") or "", 200) for k in ("data", "other"))
    first, second = told_apart_names(first_name, theirs)
    return shown(first, 40), shown(second, 40)


def told_apart(rows: Sequence[dict[str, Any]], say: Callable[[str], str], names: Sides) -> str:
    """Return the site that separates the two data sets best, or that none does reliably."""
    best = max(rows, key=lambda row: row["auroc"])
    value = f"AUROC {number(best['auroc'])}"
    if best["low"] is not None:
        value += f" ({number(best['low'])} to {number(best['high'])})"
        if best["low"] <= NOTE_FLOOR:
            words = f"No site clearly separates {names[0]} from {names[1]}"
            return f"{words}; best {say(best['site'])}, {value}"
    return f"{names[0]} and {names[1]} are separated best at {say(best['site'])}: {value}"


def surest_alarm(versus: dict[str, Any]) -> dict[str, Any] | None:
    """Return the alarm to report: the leading alarm, unless the sum's is more significant."""
    lead, total = versus.get("lead"), versus["alarm"]
    if lead is None or lead["p"] is None:
        return total
    return lead if lead["p"] <= total["p"] else total


def beyond_threshold(alarm: dict[str, Any], say: Callable[[str], str], names: Sides) -> str:
    """Return the fraction of OTHER above the threshold, the detector and its rate."""
    one = len(alarm["sites"]) == 1 and "," not in alarm["detector"]
    by = (
        f"by {alarm['detector']} at {say(alarm['sites'][0])}" if one else "with all scores combined"
    )
    return (
        f"{share(alarm['rate'])} of {names[1]} lie beyond the threshold that "
        f"{share(alarm['alpha'])} of rows like {names[0]} exceed, {by}"
    )


def sentences(report: dict[str, Any]) -> Iterator[str]:
    """Yield the terminal's sentences about the comparison; nothing if it is missing."""
    versus = report.get("versus")
    if not versus:
        return
    names = sides(report)
    yield from label_sentences(versus, names)
    rows = [row for row in versus["sites"] if row["auroc"] is not None]
    if rows:
        yield told_apart(rows, lambda site: shown(site, 60), names)
    matched = matched_sentence(versus)
    if matched:
        yield matched
    for alarm in (versus.get("lead"), versus["alarm"]):
        if alarm is not None and alarm["rate"] is not None:
            yield beyond_threshold(alarm, lambda site: shown(site, 60), names)
    if versus["rows"]:
        yield f"most anomalous of {names[1]}: {', '.join(map(_named, versus['rows'][:MOST_IDS]))}"


def label_sentences(versus: dict[str, Any], names: Sides) -> Iterator[str]:
    """Yield sentences on labels and answers: accuracy, frequencies, new classes, copies."""
    labels = versus.get("labels")
    if not labels:
        return
    accuracy = labels["accuracy"]
    parts = [_right(accuracy[k], name) for k, name in zip(("data", "other"), names, strict=True)]
    if accuracy["other"] is not None or accuracy["data"] is not None:
        text = f"correct on {' and '.join(filter(None, parts))}"
        if accuracy["expected"] is not None and accuracy["other"] is not None:
            text += (
                f"; the change in class proportions alone would give {share(accuracy['expected'])}"
            )
        yield text
    for kind in ("labels", "answers"):
        moved = _shares(labels["classes"], kind)
        if moved:
            yield f"{kind}, {names[0]} to {names[1]}: {moved}"
    if not any(row["labels_other"] for row in labels["classes"]):
        texts = [f"{shown(r['label'], 20)} {share(r['corrected'])}" for r in labels["classes"]
                if r["corrected"] is not None][:MOST_CLASSES]  # fmt: skip
        if texts:
            yield f"labels that the answers on {names[1]} suggest: {', '.join(texts)}"
    for side, other, kind in ((0, 1, "data"), (1, 0, "other")):
        if labels["new"][kind]:
            new = ", ".join(shown(name, 30) for name in labels["new"][kind][:MOST_CLASSES])
            yield f"only {names[side]} has the labels {new}; {names[other]} has none of them"
    yield from _copies(labels["copies"], names)


def _right(found: dict[str, Any] | None, name: str) -> str:
    if found is None:
        return ""
    ends = "" if found["low"] is None else f" ({share(found['low'])} to {share(found['high'])})"
    return f"{share(found['value'])} of {name}{ends}"


def _shares(classes: Sequence[dict[str, Any]], kind: str) -> str:
    """Return the fractions that changed most from DATA to OTHER."""
    rows = [(row["label"], row[f"{kind}_data"], row[f"{kind}_other"]) for row in classes]
    kept = [row for row in rows if row[1] is not None and row[2] is not None and row[1] + row[2]]
    kept.sort(key=lambda row: -abs(row[2] - row[1]))
    texts = [f"{shown(name, 20)} {share(a)} to {share(b)}" for name, a, b in kept[:MOST_CLASSES]]
    rest = f" and {len(kept) - MOST_CLASSES} more" if len(kept) > MOST_CLASSES else ""
    return ", ".join(texts) + rest


def _copies(found: dict[str, int], names: Sides) -> Iterator[str]:
    """Yield the number of copies, on the side where they are the larger fraction."""
    n = (found["data"], found["other"])
    of = (found["n_data"], found["n_other"])
    if not any(n):
        return
    side = 0 if n[0] * of[1] > n[1] * of[0] else 1
    yield (
        f"{n[side]:,} of {plural(of[side], 'row')} of {names[side]} are copies of rows of "
        f"{names[1 - side]}, byte for byte"
    )


def matched_sentence(versus: dict[str, Any]) -> str:
    """Return whether the data sets differ with equally many rows of each label."""
    both = versus.get("matched")
    if not both or both["auroc"] is None:
        return ""
    value = f"AUROC {number(both['auroc'])}"
    if both["low"] is not None:
        value += f" ({number(both['low'])} to {number(both['high'])})"
    text = (
        f"with as many rows of each label on both sides ({plural(both['n_rows'], 'row')}): {value}"
    )
    shift = (versus.get("labels") or {}).get("label_shift")
    is_shift = shift is not None and shift["p"] is not None and shift["p"] < SURE
    if both["low"] is not None and both["low"] > NOTE_FLOOR:
        return f"{text}: the inputs themselves differ"
    return (
        f"{text}: class proportions differ, but the inputs within a class do not"
        if is_shift
        else text
    )


def _named(row: dict[str, Any]) -> str:
    return shown(row["places"][0] if row.get("places") else row["id"], 80)
