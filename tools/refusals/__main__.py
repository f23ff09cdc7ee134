"""Print refusals with what is wrong: ``python -m tools.refusals``.

Every statement that raises one of sonde's errors is counted. Each call of ``provoked.py`` has one
thing wrong: a row of the table has these words beside the message, for a reader who judges whether
the reason is the true one. The last lines name the drawn sites (``--drawn``, ``--seed``) that no
call reaches, to be read in the code (``--sites`` prints them). ``--from FILE`` adds the refusals of
a test run, which ``pytest -p tools.refusals.tested --refusals FILE`` wrote.
"""

import argparse
import contextlib
import io
import json
import tempfile
import warnings
from pathlib import Path

from tools.refusals.provoked import Call, Place, cases
from tools.refusals.recording import Refusal, recorded
from tools.refusals.sites import ROOT, draw_sites, raise_sites

from sonde.core.errors import SondeError


def provoke(call: Call, met: list[Refusal]) -> Refusal:
    """Return where a call was refused, with the last message."""
    met.clear()
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        try:
            call()
        except SondeError as error:
            return met[-1] if met else Refusal("elsewhere", str(error))
        except (Exception, SystemExit) as error:
            return Refusal("no refusal", f"{type(error).__name__}: {error}")
    return met[-1] if met else Refusal("no refusal", "the call was answered")


def main() -> None:
    """Print the table, and the drawn sites that are not reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drawn", type=int, default=100)
    parser.add_argument("--seed", type=int, default=66)
    parser.add_argument("--sites", action="store_true", help="print the code of unreached sites")
    parser.add_argument("--from", dest="tests", type=Path, help="refusals of a test run")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    sites = raise_sites()
    reached = set[str]()
    print("| wrong | site | message |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, recorded(sites) as met:
        for wrong, call in cases(Place.at(Path(folder))):
            name, message, owner_ran = provoke(call, met)
            reached |= {name, *(one.site for one in met)}
            words = " ".join(message.replace(folder, "FOLDER").split()).replace("|", "/")
            absent = "" if owner_ran else " **owner did not run**"
            print(f"| {wrong} | {name} | {words}{absent} |", flush=True)
    drawn = draw_sites(sites, asked.drawn, asked.seed)
    wanted = {site.name for site in drawn} - reached
    for line in asked.tests.read_text(encoding="utf-8").splitlines() if asked.tests else ():
        one = json.loads(line)
        reached.add(one["site"])
        if one["site"] in wanted:
            wanted.remove(one["site"])
            print(f"| {one['wrong']} | {one['site']} | {one['message']} |".replace("\n", " "))
    rest = [site for site in drawn if site.name not in reached]
    print(f"\n{len(sites):,} sites, {len(reached)} reached, {len(drawn) - len(rest)} of "
          f"{len(drawn)} drawn")  # fmt: skip
    for site in rest if asked.sites else ():
        lines = (ROOT / site.path).read_text(encoding="utf-8").splitlines()
        print(f"\n{site.name}", *lines[max(0, site.first - 9) : site.last], sep="\n")


if __name__ == "__main__":
    main()
