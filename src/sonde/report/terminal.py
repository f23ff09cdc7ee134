"""The report as text of a given width, without colour by default, safe in any pipe.

Use ``to_text`` for people who read a terminal; machines read the JSON.
"""

import re
from collections.abc import Iterator
from itertools import accumulate, pairwise
from textwrap import wrap
from typing import Any, Final

from sonde.core.left_out import LeftOut, left_out_text
from sonde.report._answers_words import (
    answers_sentence,
    confused_sentence,
    head_lines,
    not_judged,
    suspects_sentence,
    worst_lines,
)
from sonde.report._first_screen import cause_lines, first_finding, fix_word, is_cause
from sonde.report._format import (
    LEVELS,
    plural,
    quantity,
    rows_read,
    seconds,
    share,
    shown,
    tied,
    words,
)
from sonde.report._select import runs, select
from sonde.report._vectors_words import vectors_sentence
from sonde.report._versus_words import sentences

_INDENT: Final = 18
_COLOR: Final = {"error": "1;31", "warning": "33", "note": "36", "dim": "2", "bold": "1"}
_ASCII: Final = {
    "–": "-", "—": "-", "…": "...", "·": "|", "×": "x", "→": "->", "≥": ">=", "≤": "<=",
    "±": "+-", "’": "'", "‘": "'", "“": '"', "”": '"', "\u00a0": " ", "²": "^2",
}  # fmt: skip
# What this module itself writes, one sign for one, so that lines keep their width.
OWN: Final = {"–": "-", "…": "~", "�": "?"}


def to_text(
    report: dict[str, Any],
    width: int = 80,
    *,
    color: bool = False,
    ascii: bool = False,
    verbose: bool = False,
    quiet: bool = False,
) -> str:
    """Return the report for a terminal.

    Parameters
    ----------
    report : dict
        JSON of a scan, schema ``sonde-scan/1``.
    width : int, default=80
        No line is longer, save a command that has no blank to break at.
    color : bool, default=False
        Mark levels with ANSI colours; words say the same without them.
    ascii : bool, default=False
        Use ASCII alone; other letters of names are written as escapes.
    verbose : bool, default=False
        Add every check and every site.
    quiet : bool, default=False
        Whether the text is one line with the verdict, and one each for the cause and the fix.

    Returns
    -------
    str
        Ends with a line feed.
    """
    width = max(width, 40)
    report = escaped(report) if ascii else report
    if quiet:
        lines = [_clip(_brief(report), width), *_cause_and_fix(report)]
    else:
        lines = list(_lines(report, width, verbose))
        lines += list(_verbose(report, width)) if verbose else []
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    text = "".join(OWN.get(letter, letter) for letter in text) if ascii else text
    return _colored(text) if color else text


def _lines(report: dict[str, Any], width: int, verbose: bool) -> Iterator[str]:
    yield from _head(report, width)
    yield from _first(report, width)
    chosen, cause = select(report["findings"]), first_finding(report)
    yield from _counts(report["verdict"], width)
    yield ""
    sites = [row["site"] for row in report["sites"]]
    if not chosen.first and not chosen.more:
        reason = "" if answers_sentence(report) else not_judged(report)
        more = (
            f" inside; whether the answers are correct was not checked: {reason}" if reason else ""
        )
        yield from wrap(f"nothing found{more}", width)
    for finding in chosen.first:
        if finding["level"] == "note" and not verbose:
            yield from _note(finding, sites, width)
            continue
        folded = chosen.folded.get(finding["code"], ())
        above = "" if finding is not cause else "the first finding, named above"
        if above and is_cause(report, finding):
            above = "the cause that is named above"
        yield from _finding(finding, sites, folded, width, above)
    if chosen.more:
        codes = ", ".join(f["code"] for f in chosen.more)
        yield from _block("more", f"{plural(len(chosen.more), 'more finding')}: {codes}", width)
    for i, sentence in enumerate(sentences(report)):
        yield from _block("" if i else "against", sentence, width)
    if chosen.ignored:
        codes = ", ".join(dict.fromkeys(f["code"] for f in chosen.ignored))
        yield from _block("ignored", f"{codes} (by you)", width)
    if report.get("untried"):
        yield from _block("untried", shown(report["untried"], 300), width)
    if report.get("left_out"):
        text = left_out_text([LeftOut(**entry) for entry in report["left_out"]])
        yield from _block("left out", shown(text, 300), width)
    yield from _silent(report, width)
    first = next(iter([*chosen.first, *chosen.more]), None)
    if first is not None:
        yield from _block("explain", f"sonde scan --explain {first['code']}", width)


def _cause_and_fix(report: dict[str, Any]) -> list[str]:
    """Return a line on the first finding and one on its fix, unwrapped for pasting."""
    if first_finding(report) is None:
        return []
    parts = [part for part in cause_lines(report) if part[1]]
    heads = [part for part in parts if part[0] in ("cause", "part", "seen")]
    fixes = [part for part in parts if part[0] in ("fix", "advice")]
    return [f"{name}: {text}" for name, text in (*heads[-1:], *fixes[:1])]


def _first(report: dict[str, Any], width: int) -> Iterator[str]:
    """Yield the first lines: accuracy, the first finding, the worst inputs."""
    right, confused = answers_sentence(report), confused_sentence(report)
    parts = [("answers", right), *(("", line) for line in head_lines(report))]
    parts += [("vectors", vectors_sentence(report))]
    if first_finding(report) is not None:
        parts += [("", confused)]
    parts += cause_lines(report)
    for name, text in parts:
        if text:
            yield from _block(name, text, width)
    cause = first_finding(report)
    if cause is not None and cause["next"]:
        yield from _command(shown(cause["next"], 1000), width)
    lines = worst_lines(report)
    for i, line in enumerate(lines):
        yield from _block("" if i else "worst", line, width)
    suspects = suspects_sentence(report)
    if suspects:
        yield from _block("labels", suspects, width)
    if lines or suspects or any(text for _, text in parts):
        yield ""


def _names(report: dict[str, Any]) -> str:
    where = report["provenance"]
    model, data = (shown(where[part]["name"], 60) for part in ("model", "data"))
    text = f"sonde scan  {model}" + ("" if data == model else f"  on  {data}")  # a store is both
    return text + (f"  against  {shown(where['other']['name'], 60)}" if where["other"] else "")


def _brief(report: dict[str, Any]) -> str:
    verdict, where = report["verdict"], report["provenance"]
    counts = ", ".join(plural(verdict[level], level) for level in LEVELS if verdict[level])
    hidden = ("withheld", "failed", "ignored")
    rest = ", ".join(f"{verdict[state]} {state}" for state in hidden if verdict[state])
    text = counts or "nothing found"
    text += f"; {rest}" if rest else ""
    return f"{text}: {shown(where['model']['name'], 60)} on {shown(where['data']['name'], 60)}"


def _head(report: dict[str, Any], width: int) -> Iterator[str]:
    where, data = report["provenance"], report["provenance"]["data"]
    facts = [] if data.get("n_rows") is None else [rows_read(data)]
    counted = shown(where.get("sites") or "", 60)
    lost = " with finite rows" in counted
    facts.append(counted if lost else plural(len(report["sites"]), "site"))
    if where.get("wall_seconds") is not None:
        facts.append(seconds(where["wall_seconds"]))
    left, right = _names(report), "  ".join(facts)
    if len(left) + len(right) + 2 <= width:
        yield left + right.rjust(width - len(left))
    else:
        yield from wrap(left, width)
        yield from wrap(right, width)
    yield "-" * width
    if report["partial"]:
        done, total = report["partial"]["done"], report["partial"]["total"]
        text = (
            f"stopped after {share(done / max(total, 1), 2)} ({done:,} of {plural(total, 'unit')})"
        )
        text = text if done < total else "stopped before every result was computed"
        yield from wrap(text, width)
    if report["shows_inputs"]:
        yield "this report shows inputs (--no-inputs leaves them out)"


def _counts(verdict: dict[str, int], width: int) -> Iterator[str]:
    counts = [plural(verdict[level], level) for level in LEVELS]
    states = ("clear", "withheld", "not_applicable", "failed", "ignored")
    ended = [f"{verdict[s]} {words(s)}" for s in states if verdict[s] or s == "clear"]
    lines = ["   ".join([*counts, *ended])]
    lines = lines if len(lines[0]) <= width else ["   ".join(counts), "   ".join(ended)]
    for line in lines:
        yield from wrap(line, width)


def _title(finding: dict[str, Any]) -> str:
    level, tags = finding["level"], [word for word in ("common", "borderline") if finding[word]]
    name = level if level == "note" else level.upper()
    text = f"{name:<8} {finding['code']}  {shown(finding['title'])}"
    return text + (f" ({', '.join(tags)})" if tags else "")


def _note(finding: dict[str, Any], sites: list[str], width: int) -> Iterator[str]:
    """Yield a note on one line, with its site at the right if there is room."""
    head, named = _title(finding), runs(finding["sites"], sites)
    places = [shown(named[0], 60)] if len(named) == 1 else []
    places += [plural(len(finding["sites"]), "site")] if named else []
    for place in places:
        if len(head) + len(place) + 2 <= width:
            yield head + place.rjust(width - len(head))
            return
    yield from wrap(head, width, subsequent_indent=" " * _INDENT)


def _finding(
    finding: dict[str, Any],
    sites: list[str],
    folded: tuple[dict[str, Any], ...],
    width: int,
    above: str,
) -> Iterator[str]:
    """Yield a finding; ``above``, if given, replaces its sentence and its fix."""
    yield from wrap(_title(finding), width, subsequent_indent=" " * _INDENT)
    indent = " " * 9
    if above:
        yield f"{indent}{above}"
    else:
        yield from _wrapped(shown(finding["sentence"], 1000), width, indent, indent)
        if finding.get("fix"):
            fix = f"{fix_word(finding)}: {shown(finding['fix'], 1000)}"
            yield from _wrapped(fix, width, indent, indent)
    named = runs(finding["sites"], sites)
    if named:
        listed = ", ".join(shown(site, 60) for site in named[:3])
        rest = f" and {len(named) - 3} more" if len(named) > 3 else ""
        yield from _wrapped(f"at {listed}{rest}", width, indent, indent)
    if finding["next"] and not above:
        yield from _command(shown(finding["next"], 1000), width)
    for child in folded:
        text = (
            f"+ {child['level']} {child['code']} {shown(child['title'])} (follows from this "
            "finding)"
        )
        yield from _wrapped(text, width, indent, indent + "  ")


def _command(text: str, width: int) -> Iterator[str]:
    """Yield a command that can be copied: broken at spaces only, with a backslash."""
    rows = wrap(text, width - 16, break_long_words=False, break_on_hyphens=False)
    for i, row in enumerate(rows):
        end = " \\" if i < len(rows) - 1 else ""
        yield f"{' ' * 9}{'-> ' if i == 0 else '     '}{row}{end}"


def _silent(report: dict[str, Any], width: int) -> Iterator[str]:
    for state in ("failed", "withheld"):
        reasons: dict[str, list[str]] = {}
        for check in report["checks"]:
            if check["state"] == state:
                reasons.setdefault(shown(check["reason"] or "", 160), []).append(check["code"])
        texts = [f"{', '.join(c)} ({r})" if r else ", ".join(c) for r, c in reasons.items()]
        if texts:
            yield ""
            yield from _block(state, "; ".join(texts), width)
    if any(check["state"] in {"failed", "withheld"} for check in report["checks"]):
        yield ""


def _block(name: str, text: str, width: int) -> Iterator[str]:
    yield from _wrapped(text, width, f"{name:<9}", " " * 9)


def _wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    look = {"initial_indent": first, "subsequent_indent": rest, "break_on_hyphens": False}
    lines = wrap(tied(text), width, **look)
    return [line.replace("\u00a0", " ") for line in lines] or [first]


def _verbose(report: dict[str, Any], width: int) -> Iterator[str]:
    yield ""
    yield "checks"
    for check in report["checks"]:
        figure = check["figure"]
        value = "" if figure is None else f"  {quantity(figure['value'], figure['unit'])}"
        reason = f"  {shown(check['reason'])}" if check["reason"] else ""
        text = (
            f"{words(check['state']):<14}  {check['code']}  {shown(check['title'])}{value}{reason}"
        )
        yield from _wrapped(text, width, "  ", " " * 26)
    if report["sites"]:
        yield ""
        yield from _table(report["sites"], width)


def _table(sites: list[dict[str, Any]], width: int) -> Iterator[str]:
    """Return the first statistics of every site, as many columns as fit."""
    names = list(dict.fromkeys(name for row in sites for name in row["values"]))
    first = min(max(len(shown(row["site"], 32)) for row in sites) + 2, 34)
    ends = list(accumulate((max(len(name) + 2, 9) for name in names), initial=first))
    names = [name for name, end in zip(names, ends[1:], strict=True) if end <= width]
    room = [end - start for start, end in pairwise(ends)]
    columns = list(zip(names, room, strict=False))
    yield "site".ljust(first) + "".join(words(name).rjust(n) for name, n in columns)
    for row in sites:
        cells = [(row["values"].get(name, {}).get("value"), n) for name, n in columns]
        yield shown(row["site"], 32).ljust(first) + "".join(quantity(c).rjust(n) for c, n in cells)


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def escaped(value: Any) -> Any:
    """Return a report in ASCII; applied before layout, so that lines keep their width."""
    if isinstance(value, str):
        text = "".join(_ASCII.get(letter, letter) for letter in value)
        return text.encode("ascii", "backslashreplace").decode("ascii")
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    return [escaped(item) for item in value] if isinstance(value, list) else value


def _colored(text: str) -> str:
    def paint(match: re.Match[str]) -> str:
        return f"\x1b[{_COLOR[match[1].lower()]}m{match[1]}\x1b[0m"

    text = re.sub(r"^(ERROR|WARNING|note)(?= +SND\d)", paint, text, flags=re.M)
    return re.sub(r"^(-+)$", lambda m: f"\x1b[{_COLOR['dim']}m{m[1]}\x1b[0m", text, flags=re.M)
