"""Print refusals with what is wrong: ``python -m tools.refusals``.

Every statement that raises one of sonde's errors is counted. Each call of ``provoked.py`` has one
thing wrong: a row of the table has these words beside the message, for a reader who judges whether
the reason is the true one. The last lines name the drawn sites (``--drawn``, ``--seed``) that no
call reaches, to be read in the code (``--sites`` prints them).
"""

import argparse
import contextlib
import io
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from tools.refusals.provoked import Call, Place, cases
from tools.refusals.sites import ROOT, Site, draw_sites, raise_sites

from sonde.core import errors
from sonde.core.errors import SondeError

Refusal = tuple[str, str]
"""Name of a site, and its message."""


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
            (s.name, str(args[0])) for s in own if s.first <= frame.f_lineno <= s.last and args
        )

    SondeError.__init__ = noted  # pyright: ignore
    try:
        yield met
    finally:
        del SondeError.__init__


def provoke(call: Call, met: list[Refusal]) -> Refusal:
    """Return where a call was refused, with the last message."""
    met.clear()
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        try:
            call()
        except SondeError as error:
            return met[-1] if met else ("elsewhere", str(error))
        except (Exception, SystemExit) as error:
            return ("no refusal", f"{type(error).__name__}: {error}")
    return met[-1] if met else ("no refusal", "the call was answered")


def main() -> None:
    """Print the table, and the drawn sites that are not reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drawn", type=int, default=100)
    parser.add_argument("--seed", type=int, default=66)
    parser.add_argument("--sites", action="store_true", help="print the code of unreached sites")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    sites = raise_sites()
    reached = set[str]()
    print("| wrong | site | message |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, recorded(sites) as met:
        for wrong, call in cases(Place.at(Path(folder))):
            name, message = provoke(call, met)
            reached.add(name)
            words = " ".join(message.replace(folder, "FOLDER").split()).replace("|", "/")
            print(f"| {wrong} | {name} | {words} |", flush=True)
    drawn = draw_sites(sites, asked.drawn, asked.seed)
    rest = [site for site in drawn if site.name not in reached]
    print(f"\n{len(sites):,} sites, {len(reached)} reached, {len(drawn) - len(rest)} of "
          f"{len(drawn)} drawn")  # fmt: skip
    for site in rest if asked.sites else ():
        lines = (ROOT / site.path).read_text(encoding="utf-8").splitlines()
        print(f"\n{site.name}", *lines[max(0, site.first - 9) : site.last], sep="\n")


if __name__ == "__main__":
    main()
