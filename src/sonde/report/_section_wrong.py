"""The inputs that the model gets wrong, by pair of truth and answer."""

from collections.abc import Sequence
from typing import Any

from sonde.findings.answered import SHOWN, wrong_pairs
from sonde.report._answers_words import answer_words, place_of
from sonde.report._format import number, plural, share, shown
from sonde.report._markup import ElementIds, Markup, el
from sonde.report._parts import PICTURE, section, tabled
from sonde.report._picture import Numbers

OPEN = 3
"""Pairs of classes that are shown; further ones are folded."""


def wrong_section(report: dict[str, Any], names: ElementIds) -> Markup | None:
    """Return the wrong inputs of each pair, the worst first, or None if there is no pair."""
    rows = (report.get("rows") or {}).get("answers") or []
    pairs = wrong_pairs(rows)
    if not pairs:
        return None
    known = any(row["right"] is not None for row in rows)
    drawn = [_pair(some, known) for some in pairs]
    parts, others = [el("div", *drawn[:OPEN], cls="pairs")], drawn[OPEN:]
    if others:
        summary = el("summary", f"{plural(len(others), 'more pair')} of classes")
        parts.append(el("details", summary, el("div", *others, cls="pairs"), cls="how"))
    listed = [row for row in rows if row["right"] is False] if known else pairs[0]
    table = tuple(
        (
            place_of(row),
            row["id"],
            _cell(row["truth"]),
            _cell(row["answer"]),
            row["confidence"],
            row["loss"],
            ", ".join(row["findings"]) or None,
        )
        for row in listed[:500]
    )
    heads = ("where", "id", "truth", "answer", "sure", "loss", "named by")
    parts.append(tabled(Numbers(heads, table, "wrong inputs"), names, "Wrong inputs"))
    n_judged = sum(row["right"] is not None for row in rows)
    lead = f"{len(listed):,} of {plural(n_judged, 'row')} are wrong. " if known else ""
    lead += "The worst stand first."
    if not report["shows_inputs"]:
        lead += " Inputs are left out; a page written without --no-inputs and --hash-ids has them."
    return section("wrong", "Wrong inputs" if known else "Worst inputs", *parts, lead=lead)


def _pair(rows: Sequence[dict[str, Any]], known: bool) -> Markup:
    truth, answer = (shown(rows[0][side] or "", 60) for side in ("truth", "answer"))
    said = f"{truth} called {answer}: {plural(len(rows), 'row')}"
    cards = [_card(row, known) for row in rows[:SHOWN]]
    return el("div", el("h3", said) if known else None, el("div", *cards, cls="gallery"))


def _card(row: dict[str, Any], known: bool) -> Markup:
    sure = "" if row["confidence"] is None else f"{share(row['confidence'])} sure"
    said = sure if known else answer_words(row)
    codes = ", ".join(row["findings"])
    return el(
        "figure",
        _input(row.get("input")),
        el("figcaption", el("b", said), el("span", place_of(row)), el("span", codes)),
    )


def _input(given: str | None) -> Markup | None:
    if given is None:
        return None
    if PICTURE.fullmatch(given):
        return el("img", src=Markup(given), alt="the input", cls="thumb")
    return el("div", *(el("p", line) for line in given.split("\n")), cls="words")


def _cell(value: Any) -> Any:
    return value if isinstance(value, str) or value is None else number(value)
