"""``python -m tools.field``: jobs and planted faults on real models, and their tables.

Results lie one to a file under ``--results``: a stopped run goes on, and several processes share
the work. ``make field`` installs what it needs and writes docs/field.md.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tools.field import jobs, running, table
from tools.field.faults import FAULTS
from tools.field.judging import WRONG
from tools.field.subjects import MAKERS


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser(prog="python -m tools.field", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("reports/field"), help="folder")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="faults and jobs with these words"
    )
    parser.add_argument("--part", choices=("jobs", "faults", "all"), default="all")
    parser.add_argument("--seconds", type=float, default=running.SECONDS, help="of one scan")
    parser.add_argument(
        "--page", type=Path, help="page whose tables are renewed where there are results"
    )
    parser.add_argument("--tables", action="store_true", help="run nothing, print what is there")
    return parser.parse_args(arguments)


def interleaved(names: Sequence[str]) -> list[str]:
    """Return names in turns over their subjects, so that a part of the table is a fair part."""
    turns: dict[str, int] = {}
    keyed = []
    for name in names:
        of = name.split("/")[0].split(".")[0]
        turns[of] = turns.get(of, 0) + 1
        keyed.append((turns[of], len(keyed), name))
    return [name for _, _, name in sorted(keyed)]


def results(
    folder: Path, names: Sequence[str], make: Any, *, run: bool = True
) -> dict[str, dict[str, Any]]:
    """Return the results of these entries, those that are missing made now if `run`."""
    found = {}
    for name in names:
        path = folder / f"{name.replace('/', '.')}.json"
        got = running.kept(path, lambda name=name: make(name)) if run or path.exists() else None
        if got is not None:
            found[name] = got
            if run:
                print(f"{name}: {got['verdict']} ({got['seconds']} s)", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and print the tables; return 1 if a scan states a wrong cause."""
    typed = parsed(arguments)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    wanted = lambda name: not typed.only or any(word in name for word in typed.only)  # noqa: E731
    run = not typed.tables
    cells = [f"{name}.{job}" for job in jobs.JOBS for name in MAKERS]
    cells = [c for c in cells if wanted(c) and typed.part != "faults"]
    planted = [n for n in interleaved(list(FAULTS)) if wanted(n) and typed.part != "jobs"]
    made = results(typed.results / "jobs", cells, lambda c: jobs.done(*c.split(".")), run=run)
    got = results(
        typed.results / "faults",
        planted,
        lambda name: running.tried(FAULTS[name], typed.seconds),
        run=run,
    )
    got = {name: r | running.judged(FAULTS[name], r) for name, r in got.items()}
    print("", table.jobs(made), "", table.faults(got), "", table.summary(got), sep="\n")
    if typed.page is not None:
        before = typed.page.read_text("utf-8")
        typed.page.write_text(table.page(before, made, got), "utf-8")
        found = table.verdicts(got, table.kept_rows(before, "Planted faults"))
        table.picture(found, typed.page.parent / "_static" / "field.png")
    return int(any(r["verdict"] == WRONG for r in got.values()))


if __name__ == "__main__":
    sys.exit(main())
