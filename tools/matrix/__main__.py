"""``python -m tools.matrix``: every job on every architecture, and the table of what came of it."""

import argparse
import json
import logging
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tools.matrix.architectures import ARCHITECTURES, Architecture
from tools.matrix.cases import Case
from tools.matrix.jobs import ABOUT, JOBS, Senseless, Wrong, words
from tools.matrix.parallel import ABOUT_PARALLEL, PARALLEL, SPLIT, parallel_cells
from tools.matrix.table import (
    NAMED,
    PAGE,
    REFUSED,
    RIGHT,
    SENSELESS,
    STORED,
    WRONG,
    Cell,
    page,
    read_stored,
    reasons,
    stored,
    summary,
    table,
)
from tools.matrix.weights import PAGE as WEIGHTS_PAGE
from tools.matrix.weights import weight_cells, weights_page

import sonde

SECONDS = 30.0
ALL_JOBS = (*JOBS, PARALLEL)


class TooLong(BaseException):
    """A cell took more processor time than it may."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise if the block takes more processor time."""

    def stop(*_: Any) -> None:
        raise TooLong(f"more than {seconds:g} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def tried(case: Case, job: str, seconds: float = SECONDS) -> Cell:
    """Return what came of one job."""
    name, began = case.architecture.name, time.process_time()
    verdict = WRONG
    try:
        with limited(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said, verdict = JOBS[job](case), RIGHT
    except Senseless:
        said, verdict = "", SENSELESS
    except sonde.SondeError as error:
        said, verdict = f"{type(error).__name__}: {words(error)}", REFUSED
    except Wrong as error:
        said = words(error)
    except (Exception, TooLong) as error:
        said = f"{type(error).__name__}: {words(error)}"
    return Cell(name, job, verdict, said, round(time.process_time() - began, 2))


def tried_all(a: Architecture, jobs: Sequence[str], seconds: float = SECONDS) -> Iterator[Cell]:
    """Yield the cells of one architecture."""
    with tempfile.TemporaryDirectory(prefix="sonde-matrix-") as place:
        case = Case(a, Path(place))
        for job in jobs:
            yield tried(case, job, seconds)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser(prog="python -m tools.matrix", description=__doc__)
    parser.add_argument("--json", type=Path, help="lines of cells; those it holds are not run")
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, metavar="ARCHITECTURE")
    parser.add_argument("--jobs", nargs="+", choices=ALL_JOBS, default=list(ALL_JOBS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one cell")
    parser.add_argument("--write", action="store_true", help="renew the cells of the page")
    parser.add_argument("--weights", action="store_true", help="kinds of weights in place of them")
    parser.add_argument("--list", action="store_true", help="print the architectures")
    return parser.parse_args(arguments)


def _keep(cell: Cell, cells: dict[tuple[str, str], Cell], path: Path | None) -> None:
    """Keep a cell, also in a file of lines, and say what is wrong."""
    cells[cell.architecture, cell.job] = cell
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(asdict(cell)) + "\n")
    if cell.verdict == WRONG:
        print(f"{cell.architecture} {cell.job}: {cell.said}", flush=True)


def _of_weights(write: bool) -> int:
    """Print the table of kinds of weights; return 1 where a cell is wrong."""
    logging.disable(logging.WARNING)
    cells = weight_cells()
    print(table(cells), "", reasons(cells), "", sep="\n")
    if write:
        WEIGHTS_PAGE.write_text(weights_page(cells), "utf-8")
    return int(any(cell.verdict == WRONG for cell in cells))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells and print the table; return 1 where one is wrong."""
    typed = parsed(arguments)
    if typed.list:
        print(*ARCHITECTURES, sep="\n")
        return 0
    if typed.weights:
        return _of_weights(typed.write)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    cells: dict[tuple[str, str], Cell] = {}
    if typed.json is not None and typed.json.exists():
        for line in typed.json.read_text().splitlines():
            cell = Cell(**json.loads(line))
            cells[cell.architecture, cell.job] = cell
    names = typed.only or list(ARCHITECTURES)
    for name in names:
        jobs = [job for job in typed.jobs if job in JOBS and (name, job) not in cells]
        for cell in tried_all(ARCHITECTURES[name], jobs, typed.seconds) if jobs else ():
            _keep(cell, cells, typed.json)
    split = [n for n in names if n in SPLIT and (n, PARALLEL) not in cells]
    for cell in parallel_cells(split) if split and PARALLEL in typed.jobs else ():
        _keep(cell, cells, typed.json)
    asked = [cells[name, job] for name in names for job in typed.jobs if (name, job) in cells]
    print(table(asked), "", reasons(asked), "", summary(asked), sep="\n")
    if typed.write:
        versions = {"sonde": sonde.__version__}
        versions |= {name: version(name) for name in NAMED if name not in versions}
        former = {(c.architecture, c.job): c for c in read_stored(STORED.read_text("utf-8"))[0]}
        former |= {(c.architecture, c.job): c for c in asked}
        every = [(name, job) for name in ARCHITECTURES for job in ALL_JOBS]
        written = [former[key] for key in every if key in former]
        STORED.write_text(stored(written, versions), "utf-8")
        PAGE.write_text(page(written, versions, ABOUT | {PARALLEL: ABOUT_PARALLEL}), "utf-8")
    return int(any(cell.verdict == WRONG for cell in asked))


if __name__ == "__main__":
    sys.exit(main())
