"""``python -m tools.faultgen``: drawn worlds with drawn faults, scanned and judged by machine.

    python -m tools.faultgen --draws 200 --healthy 50 --results reports/faultgen   # open kinds
    python -m tools.faultgen --tables --results reports/faultgen                   # what is there
    python -m tools.faultgen --show 17             # one draw: world, fault, report, judgement
    python -m tools.faultgen --closed --draws 100 --results reports/faultgen       # the last check

A draw is a task (real data), a net trained on it, and a fault with random place and strength that
costs 5 points of accuracy or a tenth of R^2. The verdicts: *right* (the cause names the planted
place and its fix brings back 80 % of what the fault took, on fresh rows), *equivalent* (it brings
that back otherwise), *wrong* (a cause that does neither), *named* (no cause, but a warning names a
place that overlaps the planted one), *missed*. A third of the kinds is closed: rules are not
written for them, and their results are printed by task and family alone. Results lie one to a file,
so a stopped run goes on. ``make faultgen`` installs the data. ``FAULTGEN`` names another folder
than ``.faultgen`` for data and trained nets.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tools.faultgen import running, table
from tools.faultgen.drawing import draw
from tools.faultgen.judging import judged
from tools.faultgen.sources import said_missing


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.faultgen", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--draws", type=int, default=0, help="worlds with a fault")
    parser.add_argument("--healthy", type=int, default=0, help="worlds without")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--closed", action="store_true", help="closed kinds: the last check")
    parser.add_argument("--results", type=Path, default=Path("reports/faultgen"), help="folder")
    parser.add_argument("--tables", action="store_true", help="run nothing, print what is there")
    parser.add_argument("--show", type=int, help="print one draw and its report")
    parser.add_argument("--before", type=Path, help="results of another commit, to compare with")
    parser.add_argument("--page", type=Path, help="page whose generated part is renewed")
    parser.add_argument("--missing", action="store_true", help="print data sets that are missing")
    return parser.parse_args(arguments)


def results(folder: Path, seeds: range, make: Any, *, run: bool) -> list[dict[str, Any]]:
    """Return the results of these seeds, missing ones made now if `run`."""
    found = []
    for seed in seeds:
        path = folder / f"{seed}.json"
        if run or path.exists():
            found.append(running.kept(path, lambda seed=seed: make(seed)))
        if run:
            r = found[-1]
            what = r["kind"] if folder.name != "closed" else ""
            print(f"{seed} {r['family']} {what}: {r['verdict']}", flush=True)
    return found


def show(seed: int) -> None:
    """Print one draw of an open kind, its report and its judgement."""
    import sonde

    made = draw(seed)
    print(running.about(made.healthy), made.fault.kind, made.truth.json(), sep="\n")
    report = sonde.scan(
        made.faulty.net, running.as_given(made.faulty.task, made.faulty.given), progress=False
    )
    print(made.faulty.net, report, judged(made, report.json()).json(), sep="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and print the tables."""
    typed = parsed(arguments)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if typed.missing:
        print(*said_missing(), sep="\n")
        return 0
    if typed.show is not None:
        show(typed.show)
        return 0
    part = "closed" if typed.closed else "open"
    n, m = (typed.draws, typed.healthy) if not typed.tables else (100_000, 100_000)
    seeds = lambda n: range(typed.first, typed.first + n)  # noqa: E731
    got = results(
        typed.results / part, seeds(n), lambda s: running.tried(s, typed.closed),
        run=not typed.tables,
    )  # fmt: skip
    clean = results(
        typed.results / "healthy", seeds(m), running.tried_healthy, run=not typed.tables
    )
    texts = [f"## {part.title()} kinds", table.summary(got)] if got else []
    texts += [table.faults(got, kinds=not typed.closed)] if got else []
    if typed.before is not None:
        old = results(typed.before / part, range(100_000), None, run=False)
        texts = ["## Before and after", table.compared(old, got), *texts]
    if clean and not typed.closed:
        texts += ["## Worlds without a fault", table.healthy(clean)]
    print("", *texts, sep="\n\n")
    if typed.page is not None:
        before = typed.page.read_text("utf-8")
        typed.page.write_text(table.page(before, texts, part), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
