"""Mutate the formulas of method files and count how many mutants their own tests notice.

    python -m tools.mutate src/sonde/edit/leace.py            # every mutant that survived, by line
    python -m tools.mutate src/sonde/edit --most 8 --json out.jsonl --seed 1
    python -m tools.mutate --all                              # twelve mutants of every method file
    python -m tools.mutate --all --figures                    # wrong numbers in results

A mutant changes one thing: a number, a sign, an operator, or an index. Messages, checks of
arguments, defaults of parameters and numbers below 1e-5 are left alone. Sonde is imported once and
the tests of a file are collected once; each mutant is a fork in which the changed functions get
their new code. Nothing of the checkout changes, and processes that a test starts see the file as it
is. A file without a test of its own is tried on the tests of its room that lead to it; after the
tests come the laws of ``sonde.testing``, for each class of the file that holds them with its
examples alone. Some mutants compute the same function; a survivor is a line to look at, not yet a
missing test. With ``--figures`` a mutant makes wrong one number of a result instead (value, error,
null and what else it prints): a survivor is a figure that no test sees.
"""

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import CodeType
from typing import Any

from tools.mutate.mutants import mutants, wrong_figures
from tools.mutate.trials import ROOT, SOURCE, numeric_fields, own_tests, trials_of, warm_up

ROOMS = ("measure", "detect", "explain", "edit", "compress", "train", "layers")
WANTED = 0.8
"""Share of mutants that a method's tests and laws should notice."""


def tried(path: Path, asked: argparse.Namespace, ran: frozenset[CodeType]) -> dict[str, Any] | None:
    """Return what became of some mutants of one file, or None without a test or a formula."""
    text, most = path.read_text(encoding="utf-8"), asked.most
    every = list(wrong_figures(text, numeric_fields(path)) if asked.figures else mutants(text))
    if not own_tests(path) or not every:
        return None
    chosen = random.Random(f"{asked.seed}|{path.name}").sample(every, min(most, len(every)))
    found = trials_of(path, sorted(chosen, key=lambda m: m.line), asked.seconds, ran, asked.markers)
    left = [f for f in found if f.by == "nothing"]
    never = "   (no test runs it)"
    return {
        "file": path.resolve().relative_to(ROOT).as_posix(),
        "tried": len(found),
        "by_tests": sum(f.by == "test" for f in found),
        "by_laws": sum(f.by == "law" for f in found),
        "survivors": [f"{f.mutant.line}: {f.mutant.change}{'' if f.run else never}" for f in left],
    }


def _print_rooms(rows: Sequence[dict[str, Any]]) -> None:
    """Print a line for each room: files, mutants, shares noticed, files below the wanted share."""
    rooms: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        rooms[row["file"].split("/")[2]].append(row)
    print("\n| room | files | mutants | own tests | with laws | files below 80 % |")
    print("|---|---:|---:|---:|---:|---:|")
    for room, found in (*rooms.items(), ("all", rows)):
        n = sum(r["tried"] for r in found)
        tests, laws = (sum(r[by] for r in found) / max(n, 1) for by in ("by_tests", "by_laws"))
        low = sum(map(_is_low, found))
        print(f"| {room} | {len(found)} | {n} | {tests:.0%} | {tests + laws:.0%} | {low} |")


def _is_low(row: dict[str, Any]) -> bool:
    return row["by_tests"] + row["by_laws"] < WANTED * row["tried"]


def main() -> int:
    """Try the mutants of the files asked for; return 1 if a test notices too few."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", nargs="*", type=Path, help="method files, or rooms")
    parser.add_argument("--all", action="store_true", help=f"the rooms {', '.join(ROOMS)}")
    parser.add_argument("--most", type=int, default=12, help="mutants drawn from each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="most processor time of a trial"
    )
    parser.add_argument(
        "-m", "--markers", default="", help="only tests that this expression of markers selects"
    )
    parser.add_argument("--figures", action="store_true", help="wrong numbers in results instead")
    parser.add_argument(
        "--json", type=Path, help="file of one line for each method; goes on with it"
    )
    asked = parser.parse_args()
    paths = [p.resolve() for p in asked.paths]
    paths += [SOURCE / "sonde" / room for room in ROOMS if asked.all]
    if not paths:
        parser.error("expected files, rooms or --all, got none")
    files = [q for p in paths for q in (sorted(p.rglob("*.py")) if p.is_dir() else [p])]
    kept = asked.json.read_text().splitlines() if asked.json and asked.json.exists() else []
    known = {r["file"]: r for r in map(json.loads, kept)}
    ran = warm_up(files)
    rows: list[dict[str, Any]] = []
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        try:
            row = known.get(name) or tried(path, asked, ran)
        except RuntimeError as error:
            print(f"not tried: {name}: {error}", flush=True)
            continue
        if row is None:
            continue
        rows.append(row)
        if asked.json and name not in known:
            with asked.json.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
        noticed = row["by_tests"] + row["by_laws"]
        laws = f" ({row['by_laws']} by laws)" if row["by_laws"] else ""
        mark = "  <-- below 80 %" if _is_low(row) else ""
        print(
            f"{noticed / row['tried']:5.0%}  {noticed:3} of {row['tried']:3}{laws}  {name}{mark}",
            flush=True,
        )
        for survivor in row["survivors"]:
            print(f"         {survivor}", flush=True)
    _print_rooms(rows)
    return 1 if any(map(_is_low, rows)) else 0


if __name__ == "__main__":
    sys.exit(main())
