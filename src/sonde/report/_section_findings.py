"""Head of the page and the findings."""

from typing import Any

from sonde.report._bullet import bullet, strip
from sonde.report._format import (
    LEVELS,
    interval,
    number,
    plural,
    seconds,
    share,
    shown,
    size,
    words,
)
from sonde.report._markup import Markup, code, el, join
from sonde.report._parts import badge, command, definitions, drawer, section
from sonde.report._select import select


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
    found = ", ".join(plural(verdict[level], level) for level in LEVELS if verdict[level])
    rest = [f"{plural(verdict[s], 'check')} {s}" for s in ("withheld", "failed") if verdict[s]]
    rest += [f"{verdict['ignored']} ignored by you"] if verdict["ignored"] else []
    return "; ".join([found or "nothing found", *rest])


def header(report: dict[str, Any]) -> Markup:
    """Return model, data, verdict and what the run took."""
    where = report["provenance"]
    data = [where["data"]["name"], *([where["other"]["name"]] if where["other"] else [])]
    title = el(
        "h1", shown(where["model"]["name"], 120), el("span", " on ", cls="on"), shown(data[0], 120)
    )
    versus = (
        el("p", "compared with ", el("b", shown(data[1], 120)), cls="against") if data[1:] else None
    )
    verdict = report["verdict"]
    chips = [badge(level, plural(verdict[level], level)) for level in LEVELS if verdict[level]]
    chips += [badge("clear", f"{verdict['clear']} clear")]
    chips += [
        badge(state, f"{verdict[state]} {words(state)}")
        for state in ("withheld", "not_applicable", "failed")
        if verdict[state]
    ]
    return el(
        "header",
        el("p", "sonde scan", cls="brand"),
        title,
        versus,
        el("p", verdict_line(verdict), cls="verdict"),
        el("p", *chips, cls="chips"),
        _banner(report),
        el("p", " · ".join(_facts(report)), cls="facts"),
    )


def _facts(report: dict[str, Any]) -> list[str]:
    where, data = report["provenance"], report["provenance"]["data"]
    counts = ("n_rows", "row"), ("n_groups", "group")
    facts = [plural(data[k], noun) for k, noun in counts if data.get(k) is not None]
    facts.append(plural(len(report["sites"]), "site"))
    if where.get("wall_seconds") is not None:
        facts.append(seconds(where["wall_seconds"]))
    if where.get("forward_ratio") is not None:
        facts.append(f"{number(where['forward_ratio'])} times the plain forward")
    if where.get("peak_memory_bytes") is not None:
        facts.append(f"peak memory {size(where['peak_memory_bytes'])}")
    if where.get("started"):
        facts.append(shown(where["started"], 40))
    return facts


def _banner(report: dict[str, Any]) -> Markup:
    said = []
    if report["partial"]:
        done, total = report["partial"]["done"], report["partial"]["total"]
        said.append(
            f"Stopped after {share(done / max(total, 1), 2)}: {done:,} of {total:,} examples were read."
        )
    if report["shows_inputs"]:
        said.append("This report shows inputs (--show-inputs). Mind who may read it.")
    return join(*(el("p", text, cls="banner", role="note") for text in said))


def findings_section(report: dict[str, Any]) -> Markup:
    """Return the findings: the first page, what is left over, what the user ignores."""
    chosen = select(report["findings"])
    sites = [row["site"] for row in report["sites"]]
    if not chosen.first and not chosen.more:
        lead = "No check found anything. What was checked, and what could not be, stands under All checks."
        return section("findings", "Findings", _ignored(chosen.ignored, sites), lead=lead)
    cards = [_card(f, sites, chosen.folded.get(f["code"], ())) for f in chosen.first]
    more = [_card(f, sites, chosen.folded.get(f["code"], ())) for f in chosen.more]
    rest = drawer(f"{plural(len(more), 'more finding')}", *more, cls="more") if more else None
    return section("findings", "Findings", *cards, rest, _ignored(chosen.ignored, sites))


def _ignored(findings: tuple[dict[str, Any], ...], sites: list[str]) -> Markup | None:
    if not findings:
        return None
    said = f"{plural(len(findings), 'finding')} ignored by you"
    return drawer(said, *(_card(f, sites, ()) for f in findings), cls="more")


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
        el("p", finding["sentence"], cls="sentence"),
        _named(finding),
        el("h4", "Why it matters"),
        el("p", finding["why"]),
        el("h4", "Look closer"),
        command(finding["next"]),
        cls="words",
    )
    side = [bullet(figure, level)] if figure else []
    side.append(strip(sites, finding["sites"], level))
    after = [_folded(folded)] if folded else []
    after.append(drawer("How computed", _computed(finding), cls="how"))
    shown_side = el("div", *side, cls="side") if any(side) else None
    return el(
        "article", head, el("h3", finding["title"]), el("div", body, shown_side, cls="cols"), *after,
        cls=f"card {level}", id=None if finding["ignored"] else f"finding-{finding['code']}",
    )  # fmt: skip


def _named(finding: dict[str, Any]) -> Markup | None:
    kinds = ("sites", "units", "classes", "rows")
    lines = []
    for kind in kinds:
        names = [str(name) for name in finding[kind]]
        if names:
            listed = [join(", " if i else "", code(shown(n, 80))) for i, n in enumerate(names[:8])]
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            lines.append(el("p", el("span", kind, cls="kind"), " ", *listed, more))
    return el("div", *lines, cls="named") if lines else None


def _folded(findings: tuple[dict[str, Any], ...]) -> Markup:
    items = [
        el("div", el("p", badge(f["level"]), " ", el("span", f["code"], cls="code"), " ", el("b", f["title"])),
           el("p", f["sentence"]), command(f["next"]), cls="child", id=f"finding-{f['code']}")
        for f in findings
    ]  # fmt: skip
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
            ("nothing to see", None if figure["null"] is None else number(figure["null"])),
            ("p-value", None if figure["p"] is None else number(figure["p"], 2)),
            ("from", ", ".join(plural(n, noun) for n, noun in rows if n is not None)),
            ("flags", ", ".join(words(flag) for flag in figure["flags"])),
        ]
    rule = el("p", finding["how"]) if finding["how"] else None
    return join(
        rule, definitions(pairs), el("p", "More: ", code(f"sonde scan --explain {finding['code']}"))
    )
