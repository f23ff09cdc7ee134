"""``sonde methods``: the catalogue of methods, read from the code."""

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from itertools import groupby
from textwrap import wrap
from typing import Annotated

import tyro

from sonde.cli._table import terminal_width
from sonde.cli.console import say, say_json
from sonde.cli.options import Printing, named
from sonde.core.errors import InputError, near
from sonde.run.instruments.families import FAMILIES, PLUG_IN, PLUG_INS, Listed, snake_case
from sonde.run.instruments.listing import listed

NAME_WIDTH = 22
LEAST_TEXT = 20


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
        str, named("KEY", "methods of a paper, by a part of its key in docs/papers.bib, e.g. haste")
    ] = ""
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
                f"{which!r}.{near(which, names)} `sonde methods` lists them all."
            )
        chosen = [e for e in entries if which in ("", e.family, e.name)]
        if self.paper:
            chosen = [e for e in chosen if _cited(e, self.paper)]
            if not chosen:
                keys = [key for e in entries for key in (e.paper, *e.variants.values()) if key]
                raise InputError(
                    f"methods: no method of a paper {self.paper!r}.{near(self.paper, keys)} Pass a "
                    "part of a key in docs/papers.bib."
                )
        if self.printing.json:
            say_json([e.json() for e in chosen])
            return 0
        if self.paper:
            for e in chosen:
                how = ", ".join(_cited(e, self.paper))
                say(_lines(f"{e.family}.{e.name}", f"{e.summary} ({how})"))
            return 0
        if which in names:
            (one,) = chosen
            place = one.family if one.is_fitted else f"sonde.{one.family}"
            say(f"{one.name} ({place})\n\n{one.description}")
            return 0
        for title, mine in groupby(chosen, key=_title):
            say(title)
            say("\n".join(_lines(e.name, e.summary) for e in mine))
        return 0


def _entries() -> list[Listed]:
    """Return sonde's methods from their source, and the methods of installed plug-ins."""
    if not entry_points(group=PLUG_INS):
        return [*listed()]
    from sonde.run.instruments.catalogue import methods
    from sonde.run.instruments.entering import entry_of_method

    announced = [m for m in methods().values() if m.family == PLUG_IN]
    return [*listed(), *map(entry_of_method, announced)]


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
