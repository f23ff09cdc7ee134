"""Two data sets compared, in words: where they are told apart, how many alarms, which rows."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from sonde.core.wording import told_apart_names
from sonde.report._format import number, share, shown

NOTE_FLOOR: Final = 0.6
MOST_IDS: Final = 3

Sides = tuple[str, str]


def sides(report: dict[str, Any]) -> tuple[str, str]:
    """Return what the two data sets are called: short names whole, else the ends that differ.

    Examples
    --------
    >>> name = lambda text: {"name": text}
    >>> sides({"provenance": {"data": name("a/old.csv"), "other": name("b/new.csv")}})
    ('a/old.csv', 'b/new.csv')
    >>> sides({"provenance": {"data": name("list of items"), "other": None}})
    ('DATA', 'OTHER')
    """
    where = report["provenance"]
    mine, theirs = (shown((where[k] or {}).get("name") or "", 200) for k in ("data", "other"))
    first, second = told_apart_names(mine, theirs)
    return shown(first, 40), shown(second, 40)


def told_apart(rows: Sequence[dict[str, Any]], say: Callable[[str], str], names: Sides) -> str:
    """Return which site tells the two data sets apart best, or that none surely does."""
    best = max(rows, key=lambda row: row["auroc"])
    value = f"AUROC {number(best['auroc'])}"
    if best["low"] is not None:
        value += f" ({number(best['low'])} to {number(best['high'])})"
        if best["low"] <= NOTE_FLOOR:
            said = f"No site clearly tells {names[0]} and {names[1]} apart"
            return f"{said}; best {say(best['site'])}, {value}"
    return f"{names[0]} and {names[1]} are told apart best at {say(best['site'])}: {value}"


def surest_alarm(versus: dict[str, Any]) -> dict[str, Any] | None:
    """Return the alarm that scores and rows are of: the leading one unless the sum is surer."""
    lead, total = versus.get("lead"), versus["alarm"]
    if lead is None or lead["p"] is None:
        return total
    return lead if lead["p"] <= total["p"] else total


def beyond_threshold(alarm: dict[str, Any], say: Callable[[str], str], names: Sides) -> str:
    """Return how many of the second data lie beyond the threshold, by what, and its promise."""
    one = len(alarm["sites"]) == 1 and "," not in alarm["detector"]
    by = f"by {alarm['detector']} at {say(alarm['sites'][0])}" if one else "by all scores together"
    return (
        f"{share(alarm['rate'])} of {names[1]} lie beyond the threshold that "
        f"{share(alarm['alpha'])} of rows like {names[0]} exceed, {by}"
    )


def sentences(report: dict[str, Any]) -> Iterator[str]:
    """Yield what a terminal says about the comparison, or nothing if it is missing."""
    versus = report.get("versus")
    if not versus:
        return
    names = sides(report)
    rows = [row for row in versus["sites"] if row["auroc"] is not None]
    if rows:
        yield told_apart(rows, lambda site: shown(site, 60), names)
    for alarm in (versus.get("lead"), versus["alarm"]):
        if alarm is not None and alarm["rate"] is not None:
            yield beyond_threshold(alarm, lambda site: shown(site, 60), names)
    if versus["rows"]:
        yield f"most unusual of {names[1]}: {', '.join(map(_named, versus['rows'][:MOST_IDS]))}"


def _named(row: dict[str, Any]) -> str:
    return shown(row["places"][0] if row.get("places") else row["id"], 80)
