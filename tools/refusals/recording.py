"""Record the refusals that are raised, with the statement that raised each."""

import contextlib
import re
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple

from tools.refusals.sites import ROOT, Site

from sonde.core import errors
from sonde.core.errors import SondeError

_OWNER = re.compile(r"([A-Z]\w*[a-z]\w*)(?:\.\w+)?: ")


class Refusal(NamedTuple):
    """A raised error: the name of its site, its message, and whether the named owner ran.

    ``owner_ran`` is False if the message begins with a class, as in ``GPTQ.plan: ..``, that is not
    among the calls that led to the error.
    """

    site: str
    message: str
    owner_ran: bool = True


@contextlib.contextmanager
def recorded(sites: list[Site]) -> Iterator[list[Refusal]]:
    """Collect the refusals that are raised, also those that are caught or reworded."""
    lines: dict[str, list[Site]] = {}
    for site in sites:
        lines.setdefault(str(ROOT / site.path), []).append(site)
    met, plain = list[Refusal](), Exception.__init__

    def noted(self: SondeError, *args: object) -> None:
        plain(self, *args)
        frame = sys._getframe(1)
        while frame.f_code.co_filename == errors.__file__ and frame.f_back is not None:
            frame = frame.f_back
        own = lines.get(frame.f_code.co_filename, [])
        met.extend(
            Refusal(s.name, str(args[0]), _owner_ran(str(args[0]), frame))
            for s in own
            if s.first <= frame.f_lineno <= s.last and args
        )

    SondeError.__init__ = noted  # pyright: ignore
    try:
        yield met
    finally:
        del SondeError.__init__


def _owner_ran(message: str, frame: FrameType | None) -> bool:
    """Return whether the owner that a message names is among the calls of a frame."""
    match = _OWNER.match(message)
    if match is None:
        return True
    ran = set[str]()
    while frame is not None:
        ran |= {*frame.f_code.co_qualname.replace("<locals>", "").split(".")}
        for name in ("self", "cls"):
            held = frame.f_locals.get(name)
            kind = held if isinstance(held, type) else type(held)
            ran |= {base.__name__ for base in kind.__mro__}
        frame = frame.f_back
    return match[1] in ran
