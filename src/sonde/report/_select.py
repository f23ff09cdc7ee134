"""Select the findings of the first page, the folded ones, and the sites to draw."""

import re
from dataclasses import dataclass
from typing import Any, final

from sonde.report._format import LEVELS

FIRST_PAGE = 10
FIRST_NOTES = 3
FIRST_OF_THEME = 3
MAX_SITES = 100


@final
@dataclass(frozen=True)
class Selection:
    """Findings in reading order.

    Parameters
    ----------
    first, more : tuple of dict
        Findings on the first page, and the remaining findings.
    ignored : tuple of dict
        Silenced by the user.
    folded : dict
        Code of a cause -> findings that it explains.
    """

    first: tuple[dict[str, Any], ...]
    more: tuple[dict[str, Any], ...]
    ignored: tuple[dict[str, Any], ...]
    folded: dict[str, tuple[dict[str, Any], ...]]


def select(findings: list[dict[str, Any]]) -> Selection:
    """Sort findings by level and effect, fold consequences under causes, limit the first page."""
    ordered = sorted(findings, key=lambda f: (LEVELS.index(f["level"]), -f["effect"], f["code"]))
    ignored = tuple(f for f in ordered if f["ignored"])
    ordered = [f for f in ordered if not f["ignored"]]
    roots = {f["code"] for f in ordered if f["because_of"] is None}
    folded: dict[str, tuple[dict[str, Any], ...]] = {}
    first: list[dict[str, Any]] = []
    more: list[dict[str, Any]] = []
    for finding in ordered:
        cause = _root(finding, ordered)
        if cause in roots and cause != finding["code"]:
            folded[cause] = (*folded.get(cause, ()), finding)
        else:
            (first if _fits(finding, first) else more).append(finding)
    return Selection(tuple(first), tuple(more), ignored, folded)


def _root(finding: dict[str, Any], findings: list[dict[str, Any]]) -> str:
    causes = {f["code"]: f["because_of"] for f in findings}
    code, seen = finding["code"], set()
    while causes.get(code) in causes and code not in seen:
        seen.add(code)
        code = causes[code]
    return code


def _fits(finding: dict[str, Any], first: list[dict[str, Any]]) -> bool:
    notes = sum(f["level"] == "note" for f in first)
    theme = sum(f["theme"] == finding["theme"] for f in first)
    return (
        len(first) < FIRST_PAGE
        and theme < FIRST_OF_THEME
        and (finding["level"] != "note" or notes < FIRST_NOTES)
    )


def drawn(sites: list[str], limit: int = MAX_SITES) -> list[str]:
    """Return at most ``limit`` sites: the last of each block, evenly thinned, ends kept.

    Examples
    --------
    >>> drawn([f"layers.{i}.{part}:out" for i in range(3) for part in ("attn", "mlp")], 3)
    ['layers.0.mlp:out', 'layers.1.mlp:out', 'layers.2.mlp:out']
    """
    if len(sites) <= limit:
        return list(sites)
    blocks: dict[str, str] = {}
    for site in sites:
        match = re.match(r"(.*?\.\d+)", site)
        blocks[match[1] if match else site] = site
    kept = list(blocks.values())
    if len(kept) <= limit:
        return kept
    return [kept[round(i * (len(kept) - 1) / (limit - 1))] for i in range(limit)]


def short_names(sites: list[str]) -> tuple[dict[str, str], str]:
    """Return short distinct names of sites, and the common pattern that was removed.

    Examples
    --------
    >>> short_names(["layers.0:out", "layers.1:out"])
    ({'layers.0:out': '0', 'layers.1:out': '1'}, 'layers.*:out')
    """
    parts = [re.split(r"(?<=[.:@\[])|(?=[.:@\]])", site) for site in sites]
    head = tail = 0
    shortest = min(map(len, parts), default=0)
    if len(sites) > 1:
        while head < shortest and len({tuple(p[: head + 1]) for p in parts}) == 1:
            head += 1
        while tail < shortest - head and len({tuple(p[-tail - 1 :]) for p in parts}) == 1:
            tail += 1
    names = ["".join(p[head : len(p) - tail]) for p in parts]
    if len(sites) < 2 or not all(names) or not head + tail:
        return {site: site for site in sites}, ""
    first = parts[0]
    pattern = "".join(first[:head]) + "*" + "".join(first[len(first) - tail :])
    return dict(zip(sites, names, strict=True)), pattern


def spaced(names: list[str], count: int) -> list[str]:
    """Return at most ``count`` evenly spaced names, for the labels of an axis."""
    step = max(1, -(-len(names) // max(count, 1)))
    return names[::step]


def runs(marked: list[str], sites: list[str]) -> list[str]:
    """Return sites with each run of three or more neighbours written as ``first … last``.

    Examples
    --------
    >>> runs(["a.1", "a.2", "a.3", "a.9"], [f"a.{i}" for i in range(10)])
    ['a.1 … a.3', 'a.9']
    """
    at = {site: i for i, site in enumerate(sites)}
    groups: list[list[str]] = []
    for site in marked:
        follows = groups and site in at and at.get(groups[-1][-1], -2) + 1 == at[site]
        if follows:
            groups[-1].append(site)
        else:
            groups.append([site])
    names = []
    for group in groups:
        names += [f"{group[0]} … {group[-1]}"] if len(group) > 2 else group
    return names
