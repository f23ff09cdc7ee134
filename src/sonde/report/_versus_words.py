"""DATA against OTHER in words: where they are told apart, how many alarms, which rows."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from sonde.report._format import number, share, shown

NOTE_FLOOR: Final = 0.6
MOST_IDS: Final = 3


def told_apart(rows: Sequence[dict[str, Any]], say: Callable[[str], str]) -> str:
    """Return which site tells the two data sets apart best, or that none surely does."""
    best = max(rows, key=lambda row: row["auroc"])
    value = f"AUROC {number(best['auroc'])}"
    if best["low"] is not None:
        value += f" ({number(best['low'])} to {number(best['high'])})"
        if best["low"] <= NOTE_FLOOR:
            return f"No site clearly tells DATA and OTHER apart; best {say(best['site'])}, {value}"
    return f"DATA and OTHER are told apart best at {say(best['site'])}: {value}"


def surest_alarm(versus: dict[str, Any]) -> dict[str, Any] | None:
    """Return the alarm that scores and rows are of: the leading one unless the sum is surer."""
    lead, total = versus.get("lead"), versus["alarm"]
    if lead is None or lead["p"] is None:
        return total
    return lead if lead["p"] <= total["p"] else total


def beyond_threshold(alarm: dict[str, Any], say: Callable[[str], str]) -> str:
    """Return how many of OTHER lie beyond the threshold, by what, and what it promises of DATA."""
    one = len(alarm["sites"]) == 1 and "," not in alarm["detector"]
    by = f"by {alarm['detector']} at {say(alarm['sites'][0])}" if one else "by all scores together"
    return (
        f"{share(alarm['rate'])} of OTHER lie beyond the threshold that {share(alarm['alpha'])} of "
        f"rows like DATA exceed, {by}"
    )


def sentences(versus: dict[str, Any]) -> Iterator[str]:
    """Yield what a terminal says of the comparison; nothing where there is none."""
    if not versus:
        return
    rows = [row for row in versus["sites"] if row["auroc"] is not None]
    if rows:
        yield told_apart(rows, lambda site: shown(site, 60))
    for alarm in (versus.get("lead"), versus["alarm"]):
        if alarm is not None and alarm["rate"] is not None:
            yield beyond_threshold(alarm, lambda site: shown(site, 60))
    if versus["rows"]:
        yield f"most unusual of OTHER: {', '.join(map(_named, versus['rows'][:MOST_IDS]))}"


def _named(row: dict[str, Any]) -> str:
    places = f" ({shown(row['places'][0], 80)})" if row.get("places") else ""
    return shown(row["id"], 40) + places
