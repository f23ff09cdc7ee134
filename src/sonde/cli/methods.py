"""``sonde methods``: the catalogue of methods, read from the code, and papers by their names."""

import json
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import tyro

from sonde.cli._table import terminal_width
from sonde.cli.console import say, say_json
from sonde.cli.options import Printing, named
from sonde.core.errors import InputError, near
from sonde.run.instruments.families import FAMILIES, PLUG_IN, PLUG_INS, Listed, snake_case
from sonde.run.instruments.listing import listed

NAME_WIDTH = 22
LEAST_TEXT = 20
SHORT = 3


@dataclass(frozen=True)
class Methods:
    """List the methods for `sonde fit` and for Python, or describe a single method.

    Example: sonde methods detect

    Description and parameters of knn, as in `sonde fit 'knn(k=10)'`: sonde methods knn
    """

    which: Annotated[
        tyro.conf.Positional[str],
        named("[FAMILY|METHOD]", f"{', '.join(FAMILIES)}, or a method; by default all methods"),
    ] = ""
    paper: Annotated[
        str,
        named("WORDS", "a paper and its methods, by the system's name, words of the title, an "
              "author or a part of its key, e.g. ip-adapter"),
    ] = ""  # fmt: skip
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Print a line for each method, the whole description of a single method, or JSON."""
        entries = _entries()
        names = [e.name for e in entries]
        classes = {snake_case(name): name for name in names}
        which = self.which if self.which in names else classes.get(self.which, self.which)
        families = tuple(dict.fromkeys((*FAMILIES, *(e.family for e in entries))))
        if which and which not in (*families, PLUG_IN, *names):
            raise InputError(
                f"methods: expected one of {', '.join(FAMILIES)}, or a method, got "
                f"{which!r}.{near(which, [*families, *names])} `sonde methods` lists them all; "
                f"`sonde methods --paper {which}` finds methods by the name of a paper."
            )
        chosen = [e for e in entries if which in ("", e.family, e.name)]
        papers = _papers(self.paper) if self.paper and not which else []
        if self.paper:
            exports = {code.partition("(")[0] for paper in papers for code in paper["code"]}
            by_key = [e for e in chosen if _cited(e, self.paper)]
            chosen = by_key or [e for e in chosen if f"{e.family}.{e.export}" in exports]
            if not chosen and not papers:
                keys = [key for e in entries for key in (e.paper, *e.variants.values()) if key]
                names = [*keys, *(paper["name"] for paper in _papers(""))]
                raise InputError(
                    f"methods: no method of a paper {self.paper!r}.{near(self.paper, names)} Pass "
                    "a system's name, words of a title, an author or a part of a key; the page "
                    "Papers of the documentation lists them."
                )
        if self.printing.json:
            say_json([e.json() for e in chosen])
            return 0
        if self.paper:
            if papers:
                say("\n".join(line for paper in papers for line in _told(paper)) + "\n")
            for e in chosen:
                how = ", ".join(_cited(e, self.paper))
                say(_lines(f"{e.family}.{e.name}", f"{e.summary}{f' ({how})' * bool(how)}"))
            return 0
        if which in names:
            (one,) = chosen
            place = one.family if one.is_fitted else f"sonde.{one.family}"
            say(f"{one.name} ({place})\n\n{one.description}")
            return 0
        for title, of_title in groupby(chosen, key=_title):
            say(title)
            say("\n".join(_lines(e.name, e.summary) for e in of_title))
        return 0


def _entries() -> list[Listed]:
    """Return sonde's methods from their source, and the methods of installed plug-ins."""
    if not entry_points(group=PLUG_INS):
        return [*listed()]
    from sonde.run.instruments.catalogue import methods
    from sonde.run.instruments.entering import entry_of_method

    announced = [m for m in methods().values() if m.family == PLUG_IN]
    return [*listed(), *map(entry_of_method, announced)]


def _papers(words: str) -> list[dict[str, Any]]:
    """Return the papers that some words find, best matches first.

    Where nothing has all words, names that are written with a stroke, as BinT5/CAPYBARA, are
    sought one by one, and then papers whose whole name is one of the words.
    """
    papers = _matches(words)
    for one in filter(_squeezed, words.split("/") if not papers else ()):
        papers += [paper for paper in _matches(one) if paper not in papers]
    own = set(map(_squeezed, words.split()))
    return papers or [
        paper for paper, _, name, *_ in _indexed()
        if name in own and sum(map(str.isupper, paper["name"])) > 1  # no ordinary word
    ]  # fmt: skip


def _matches(words: str) -> list[dict[str, Any]]:
    """Return the papers whose name, title, authors or key have all words, best matches first.

    Words may be cut at their end, not at their beginning: ROME is no part of "from experience". A
    word of three letters is whole: SAE is not the beginning of an author's name.
    """
    whole, asked = _squeezed(words), _spaced(words)
    if not whole:
        return []
    asked = asked if len(whole) <= SHORT else asked.rstrip()
    parts = [f" {word} " if len(word) <= SHORT else f" {word}" for word in asked.split()]

    def rank(key: str, squeezed: str, name: str, others: str) -> int | None:
        if whole == squeezed:
            return 0
        if asked in name:
            return 1
        if asked in others or (len(whole) > SHORT and whole in key):
            return 2
        text = f"{name}{others} {key} "
        return 3 if all(word in text for word in parts) else None

    ranked = [(r, paper) for paper, *texts in _indexed() if (r := rank(*texts)) is not None]
    if any(r < 3 for r, _ in ranked):  # scattered words count where nothing has them in a row
        ranked = [(r, paper) for r, paper in ranked if r < 3]
    return [paper for _, paper in sorted(ranked, key=lambda pair: pair[0])]


@cache
def _indexed() -> list[tuple[dict[str, Any], str, str, str, str]]:
    """Return every paper with its key, its name in two forms, and its title and authors."""
    papers = json.loads(Path(__file__).with_name("papers.json").read_text(encoding="utf-8"))
    return [
        (one, one["key"], _squeezed(one["name"]), _spaced(one["name"]),
         f"{_spaced(one['title'])}{_spaced(one['authors'])}")
        for one in papers
    ]  # fmt: skip


def _squeezed(text: str) -> str:
    """Return the letters and digits of a text, in lower case."""
    return re.sub(r"[^a-z0-9]", "", text.casefold())


def _spaced(text: str) -> str:
    """Return the words of a text in lower case, with a space before and after each.

    Examples
    --------
    >>> _spaced("IP-Adapter: text")
    ' ip adapter text '
    """
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.casefold()))} "


def _told(paper: dict[str, Any]) -> list[str]:
    """Return the lines that describe a paper: its title, and where its mechanism is."""
    first = paper["authors"].partition(" and ")[0]
    who = first.partition(",")[0] + " et al." * (" and " in paper["authors"])
    title = paper["title"].removeprefix(f"{paper['name']}: ")
    when = paper["year"] or "year not known"
    lines = [f"{paper['name']}: {title} ({who or 'authors not known'}, {when})"]
    lines += [f"  sonde.{code}" for code in paper["code"]]
    lines += [f"  sonde recipe {word}" for word in paper["recipes"]]
    lines += [f"  sonde study {word}" for word in paper["studies"]]
    return lines + [f"  not here: {paper['missing']}"] * bool(paper["missing"])


def _cited(entry: Listed, part: str) -> list[str]:
    """Return the papers' keys that contain a string; keys of variants follow their name."""
    keys = [entry.paper] if part in entry.paper else []
    return keys + [f"{name}: {key}" for name, key in entry.variants.items() if part in key]


def _title(entry: Listed) -> str:
    """Return the title of a method's group."""
    if entry.is_fitted:
        return entry.family
    return f"{entry.family}, {entry.kind}s in Python (sonde.{entry.family}.NAME)"


def _lines(name: str, summary: str) -> str:
    """Return a name with its summary, wrapped to the terminal, or on one line in a pipe."""
    head, room = f"  {name:<{NAME_WIDTH}} ", terminal_width()
    if room is None:
        return head + summary
    width = max(room, len(head) + LEAST_TEXT)
    inside = " " * len(head)
    lines = wrap(
        summary, width, initial_indent=head, subsequent_indent=inside, break_on_hyphens=False
    )
    return "\n".join(lines)
