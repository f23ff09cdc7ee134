"""``sonde methods``: the catalogue, from the code itself."""

from dataclasses import dataclass, field
from textwrap import wrap
from typing import Annotated

import tyro

from sonde.cli._table import terminal_width
from sonde.cli.console import say, say_json
from sonde.cli.options import Printing, named
from sonde.core.errors import InputError, near

NAME_WIDTH = 22
LEAST_TEXT = 20


@dataclass(frozen=True)
class Methods:
    """List the methods that `sonde fit` knows and those for Python, or tell all about one.

    Example: sonde methods detect

    What knn does, and its parameters, as in `sonde fit 'knn(k=10)'`: sonde methods knn
    """

    which: Annotated[
        tyro.conf.Positional[str],
        named("[FAMILY|METHOD]", "measure, detect, edit, explain, or a method; all where left out"),
    ] = ""
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Print one line for each method, all about one, or JSON."""
        from sonde.run.instruments.catalogue import (
            FAMILIES,
            IN_PYTHON,
            PLUG_IN,
            methods,
            python_methods,
        )

        known, called = methods(), python_methods()
        families = tuple(dict.fromkeys((*FAMILIES, *IN_PYTHON, PLUG_IN)))
        if self.which and self.which not in (*families, *known, *called):
            raise InputError(
                f"methods: expected one of {', '.join(families[:-1])}, or a method, got "
                f"{self.which!r}.{near(self.which, [*known, *called])} `sonde methods` lists them "
                "all."
            )
        chosen = [m for m in known.values() if self.which in ("", m.family, m.word)]
        if self.printing.json:
            say_json([m.json() for m in chosen])
            return 0
        if self.which in known:
            say(f"{self.which} ({known[self.which].family})\n\n{known[self.which].description}")
            return 0
        if self.which in called:
            say(f"{self.which} (sonde.{called[self.which].family})")
            say(f"\n{called[self.which].description}")
            return 0
        for family in families:
            mine = [m for m in chosen if m.family == family]
            if mine:
                say(family)
                say("\n".join(_lines(m.word, m.summary) for m in mine))
            also = [m for m in called.values() if m.family == family and self.which in ("", family)]
            if also:
                say(f"{family}, in Python (sonde.{family}.NAME)")
                say("\n".join(_lines(m.name, m.summary) for m in also))
        return 0


def _lines(name: str, summary: str) -> str:
    """Return a name and what it is: wrapped to the terminal, on one line in a pipe."""
    head, room = f"  {name:<{NAME_WIDTH}} ", terminal_width()
    if room is None:
        return head + summary
    width = max(room, len(head) + LEAST_TEXT)
    inside = " " * len(head)
    lines = wrap(
        summary, width, initial_indent=head, subsequent_indent=inside, break_on_hyphens=False
    )
    return "\n".join(lines)
