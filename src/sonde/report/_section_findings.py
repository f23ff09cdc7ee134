"""The head of the page, and the findings."""

import math
from typing import Any, Final

from sonde.core.wording import gib
from sonde.report._answers_words import answers_sentence, confused_sentence
from sonde.report._first_screen import first_screen, fix_word
from sonde.report._format import (
    LEVELS,
    Real,
    interval,
    number,
    p_text,
    p_value,
    plural,
    quantity,
    rows_read,
    seconds,
    share,
    shown,
    tied,
    words,
)
from sonde.report._markup import Markup, code, el, join
from sonde.report._parts import badge, command, definitions, drawer, section
from sonde.report._select import drawn, runs, select
from sonde.report._vectors_words import vectors_sentence

_WIDTH: Final = 280
_LEFT, _RIGHT = 8, 272


def verdict_line(verdict: dict[str, int]) -> str:
    """Return the verdict as one sentence.

    Examples
    --------
    >>> counts = dict.fromkeys(("error", "warning", "note", "withheld", "failed", "ignored"), 0)
    >>> verdict_line(counts | {"warning": 1, "note": 2, "withheld": 4})
    '1 warning, 2 notes; 4 checks withheld'
    >>> verdict_line(counts)
    'nothing found'
    """
    counts = ", ".join(plural(verdict[level], level) for level in LEVELS if verdict[level])
    rest = [f"{plural(verdict[s], 'check')} {s}" for s in ("withheld", "failed") if verdict[s]]
    rest += [f"{verdict['ignored']} ignored by you"] if verdict["ignored"] else []
    return "; ".join([counts or "nothing found", *rest])


def checks_line(verdict: dict[str, int]) -> str:
    """Return one sentence on the final states of the checks."""
    states = ("clear", "withheld", "failed")
    ended = ", ".join(f"{verdict[s]} {words(s)}" for s in states if verdict[s] or s == "clear")
    apart = verdict["not_applicable"]
    hidden = verdict["ignored"]
    text = f"Checks: {ended}"
    text += f" ({apart} more {'does' if apart == 1 else 'do'} not apply here)" if apart else ""
    return text + (f"; {plural(hidden, 'finding')} ignored by you" if hidden else "")


def header(report: dict[str, Any]) -> Markup:
    """Return model, data, verdict and run time."""
    where = report["provenance"]
    data = [where["data"]["name"], *([where["other"]["name"]] if where["other"] else [])]
    model = where["model"]["name"]
    read = () if data[0] == model else (el("span", " on ", cls="on"), shown(data[0], 120))
    title = el("h1", shown(model, 120), *read)  # a store is both
    versus = (
        el("p", "compared with ", el("b", shown(data[1], 120)), cls="against") if data[1:] else None
    )
    verdict = report["verdict"]
    chips = [badge(level, plural(verdict[level], level)) for level in LEVELS if verdict[level]]
    chips = chips or [badge("clear", "nothing found")]
    screen = first_screen(report)
    return el(
        "header",
        el("p", "sonde scan", cls="brand"),
        title,
        versus,
        screen,
        el("p", *chips, cls="verdict"),
        None if screen else _answers(report),
        el("p", checks_line(verdict), cls="facts"),
        _banner(report),
        el("p", " · ".join(_facts(report)), cls="facts"),
    )


def _answers(report: dict[str, Any]) -> Markup | None:
    answered = (answers_sentence(report), vectors_sentence(report), confused_sentence(report))
    words = "; ".join(filter(None, answered))
    return (
        el("p", el("b", "The model's own answers: "), tied(words), cls="answers") if words else None
    )


def _facts(report: dict[str, Any]) -> list[str]:
    where, data = report["provenance"], report["provenance"]["data"]
    facts = [] if data.get("n_rows") is None else [rows_read(data)]
    facts += [] if data.get("n_groups") is None else [plural(data["n_groups"], "group")]
    facts.append(plural(len(report["sites"]), "site"))
    if where.get("wall_seconds") is not None:
        facts.append(seconds(where["wall_seconds"]))
    if where.get("peak_memory_bytes") is not None:
        facts.append(f"peak memory {gib(where['peak_memory_bytes'])}")
    if where.get("started"):
        facts.append(shown(where["started"])[:16].replace("T", " "))
    return facts


def _banner(report: dict[str, Any]) -> Markup:
    texts = []
    if report["partial"]:
        done, total = report["partial"]["done"], report["partial"]["total"]
        part = share(done / max(total, 1), 2)
        text = f"Stopped after {part}: {done:,} of {plural(total, 'unit')} were read."
        texts.append(text if done < total else "Stopped before every result was computed.")
    if report["shows_inputs"]:
        text = "This report shows inputs; --no-inputs leaves them out. Consider who may read it."
        texts.append(text)
    return join(*(el("p", text, cls="banner", role="note") for text in texts))


def findings_section(report: dict[str, Any]) -> Markup:
    """Return the findings in groups: first page, others, and ignored."""
    chosen = select(report["findings"])
    sites = [row["site"] for row in report["sites"]]
    if not chosen.first and not chosen.more:
        lead = (
            "No check found anything. The section 'All checks' lists what was checked and "
            "what could not be checked."
        )
        return section("findings", "Findings", _ignored(chosen.ignored, sites), lead=lead)
    cards = [_card(f, sites, chosen.folded.get(f["code"], ())) for f in chosen.first]
    more = [_card(f, sites, chosen.folded.get(f["code"], ())) for f in chosen.more]
    rest = drawer(f"{plural(len(more), 'more finding')}", *more, cls="more") if more else None
    return section("findings", "Findings", *cards, rest, _ignored(chosen.ignored, sites))


def _ignored(findings: tuple[dict[str, Any], ...], sites: list[str]) -> Markup | None:
    if not findings:
        return None
    title = f"{plural(len(findings), 'finding')} ignored by you"
    return drawer(title, *(_card(f, sites, ()) for f in findings), cls="more")


def _card(finding: dict[str, Any], sites: list[str], folded: tuple[dict[str, Any], ...]) -> Markup:
    level, figure = finding["level"], finding["figure"]
    tags = [word for word in ("common", "borderline") if finding[word]]
    head = el(
        "div",
        badge(level),
        el("span", finding["code"], cls="code"),
        *(el("span", tag, cls="tag") for tag in tags),
        cls="top",
    )
    body = el(
        "div",
        el("p", tied(finding["sentence"]), cls="sentence"),
        _named(finding, sites),
        el("h4", "Why it matters"),
        el("p", tied(finding["why"])),
        *_fix(finding),
        *_closer(finding["next"], el("h4", "Look closer")),
        cls="words",
    )
    side = [bullet(figure, level)] if figure else []
    side.append(strip(sites, finding["sites"], level))
    after = [_folded(folded)] if folded else []
    after.append(drawer("How computed", _computed(finding), cls="how"))
    shown_side = el("div", *side, cls="side") if any(side) else None
    parts = [head, el("h3", finding["title"]), el("div", body, shown_side, cls="cols"), *after]
    key = None if finding["ignored"] else f"finding-{finding['code']}"
    return el("article", *parts, cls=f"card {level}", id=key)


def _fix(finding: dict[str, Any]) -> list[Markup]:
    """Return the part that says how to remove the fault, or an empty list."""
    fix = finding.get("fix")
    return [el("h4", fix_word(finding).capitalize()), el("p", tied(fix))] if fix else []


def _closer(step: str, *before: Markup) -> list[Markup]:
    """Return the command for a closer look, or an empty list."""
    return [*before, command(step)] if step else []


def _named(finding: dict[str, Any], sites: list[str]) -> Markup | None:
    listed = {
        "sites": runs(finding["sites"], sites),
        "units": [str(unit) for unit in finding["units"]],
        "classes": finding["classes"],
        "rows": finding.get("places") or finding["rows"],
    }
    lines = []
    for kind, names in listed.items():
        parts = [join(", " if i else "", code(shown(n, 80))) for i, n in enumerate(names[:8])]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        if names:
            lines.append(el("div", el("span", kind, cls="kind"), el("span", *parts, more)))
    return el("div", *lines, cls="named") if lines else None


def _folded(findings: tuple[dict[str, Any], ...]) -> Markup:
    items = []
    for finding in findings:
        tag = el("span", finding["code"], cls="code")
        head = el("p", badge(finding["level"]), " ", tag, " ", el("b", finding["title"]))
        parts = head, el("p", tied(finding["sentence"])), *_closer(finding["next"])
        items.append(el("div", *parts, cls="child", id=f"finding-{finding['code']}"))
    return drawer(f"{plural(len(items), 'consequence')} of this", *items, cls="how")


def _computed(finding: dict[str, Any]) -> Markup:
    figure = finding["figure"]
    pairs: list[tuple[str, str | None]] = []
    if figure:
        rows = [(figure["n_rows"], "row"), (figure["n_groups"], "group")]
        side = {"above": "raised above", "below": "raised below"}.get(figure["direction"], "limit")
        pairs = [
            (words(figure["name"]), interval(figure)),
            (side, None if figure["threshold"] is None else number(figure["threshold"])),
            (
                "expected without a fault",
                None if figure["null"] is None else number(figure["null"]),
            ),
            ("p-value", None if figure["p"] is None else p_value(figure["p"])),
            ("from", ", ".join(plural(n, noun) for n, noun in rows if n)),
            ("flags", ", ".join(words(flag) for flag in figure["flags"])),
        ]
    if finding.get("places"):
        pairs.append(("ids of the rows", ", ".join(shown(i, 80) for i in finding["rows"][:8])))
    rule = el("p", finding["how"]) if finding["how"] else None
    return join(
        rule, definitions(pairs), el("p", "More: ", code(f"sonde scan --explain {finding['code']}"))
    )


def bullet(figure: dict[str, Any], level: str) -> Markup:
    """Return a small line with marks at a figure's value, interval, null and threshold."""
    value, limit = figure["value"], figure["threshold"]
    if value is None:
        return Markup("")
    place = _axis(
        [v for v in (value, limit, figure["low"], figure["high"], figure["null"]) if v is not None]
    )
    parts = [el("line", x1=_LEFT, x2=_RIGHT, y1=30, y2=30, cls="axis")]
    if limit is not None:
        parts.append(_threshold(place(limit), figure))
    if figure["null"] is not None:
        x = place(figure["null"])
        parts.append(el("line", x1=x, x2=x, y1=24, y2=36, cls="null"))
    if figure["low"] is not None and figure["high"] is not None:
        low, high = place(figure["low"]), place(figure["high"])
        parts.append(el("line", x1=low, x2=high, y1=30, y2=30, cls=f"interval {level}"))
    x = place(value)
    parts.append(el("circle", cx=x, cy=30, r=6, cls=f"dot {level}"))
    label = quantity(value, figure["unit"])
    parts.append(_label(x, 16, label, "value"))
    label_text = f"{words(figure['name'])}: {label}"
    if limit is not None:
        label_text += f", limit {quantity(limit, figure['unit'])}"
    svg = el(
        "svg", *parts, cls="bullet", viewBox=f"0 0 {_WIDTH} 60", role="img", aria_label=label_text
    )
    return el("figure", svg, el("figcaption", _caption(figure)), cls="small")


def _caption(figure: dict[str, Any]) -> str:
    rows = figure["n_groups"] or figure["n_rows"]  # 0: not counted in groups, or in rows
    kind = "group" if figure["n_groups"] not in (None, 0, figure["n_rows"]) else "row"
    parts = [words(figure["name"])]
    if figure["null"] is not None:
        parts.append(f"expected without a fault: {quantity(figure['null'], figure['unit'])}")
    if figure["p"] is not None:
        parts.append(f"p {p_text(figure['p'])}")
    if rows:
        parts.append(plural(rows, kind))
    return tied(" · ".join(parts))


def _threshold(x: Real, figure: dict[str, Any]) -> Markup:
    line = el("line", x1=x, x2=x, y1=20, y2=40, cls="limit")
    return join(
        line, _label(x, 53, f"limit {quantity(figure['threshold'], figure['unit'])}", "limit")
    )


def _label(x: Real, y: Real, label: str, cls: str) -> Markup:
    half = 4 * len(label)
    anchor = "start" if x < half else "end" if x > _WIDTH - half else "middle"
    x = {"start": max(x - 6, 0), "end": min(x + 6, _WIDTH), "middle": x}[anchor]
    return el("text", label, x=round(x, 1), y=y, text_anchor=anchor, cls=cls)


def _axis(values: list[Real]) -> Any:
    low, high = min(values), max(values)
    if low > 0 and high / low > 12:
        low, high = math.log(low / 1.6), math.log(high * 1.6)
        return lambda v: _place(math.log(v), low, high)
    low, high = min(low, 0.0), max(high, 0.0)
    edge = 0.08 * (high - low or 1.0)
    low, high = low - (edge if low < 0 else 0), high + edge
    return lambda v: _place(v, low, high)


def _place(v: Real, low: Real, high: Real) -> Real:
    return round(_LEFT + (v - low) / (high - low) * (_RIGHT - _LEFT), 1)


def strip(sites: list[str], marked: list[str], level: str) -> Markup:
    """Return a row of cells for the sites in order of execution, with marked sites filled."""
    shown_sites = drawn(sites, 60)
    if len(shown_sites) < 2 or not marked:
        return Markup("")
    step = (_WIDTH - 2) / len(shown_sites)
    hit = _hit(sites, shown_sites, set(marked))
    cells = [
        el(
            "rect",
            x=round(1 + i * step, 1),
            y=2,
            width=round(max(step - 2, 1.5), 1),
            height=12,
            rx=2,
            cls=level if site in hit else "off",
        )
        for i, site in enumerate(shown_sites)
    ]
    label = f"{len(marked)} of {plural(len(sites), 'site')}"
    svg = el("svg", *cells, cls="strip", viewBox=f"0 0 {_WIDTH} 16", role="img", aria_label=label)
    return el("figure", svg, el("figcaption", f"{label}, first to last"), cls="small")


def _hit(sites: list[str], kept: list[str], marked: set[str]) -> set[str]:
    """Return the drawn sites that are marked, or that follow a marked site."""
    chosen, hit = set(kept), set()
    waiting = False
    for site in sites:
        waiting = waiting or site in marked
        if site in chosen:
            if waiting:
                hit.add(site)
            waiting = False
    return hit | ({kept[-1]} if waiting else set())
