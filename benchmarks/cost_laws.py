"""Law of cost of every method that is fitted on rows: exponents in units and in rows.

Each method runs on random rows of three classes at 256, 512 and 1,024 units (1,024 rows) and at
1,024, 2,048 and 4,096 rows (256 units). An exponent is the slope of the last doubling of processor
time. It is compared with the largest power of ``dim`` and of rows in the docstring's ``Cost``.
Cells are written as they are measured; a second run goes on where the first stopped.

    python -m benchmarks.cost_laws --results cost_laws.jsonl    # measure, print the table
    python -m benchmarks.cost_laws --results cost_laws.jsonl --only KNN
    python -m benchmarks.cost_laws --results small.jsonl --factor 0.25    # 64 units, 256 rows
"""

import argparse
import importlib
import inspect
import json
import math
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.instrument import Instrument
from sonde.run.instruments.families import FAMILIES
from sonde.testing.instrument_laws import fit, lacking, make_inputs
from sonde.weights import Examples, Rewrite

UNITS, ROWS = (256, 512, 1024), (1024, 2048, 4096)
LIMIT_SECONDS = 30.0
"""Processor time after which a cell is given up."""
SHORT_SECONDS, REPEATS = 0.1, 3
MARGIN, LEAST_SECONDS = 0.5, 0.2
"""What an exponent may exceed the documented one by, and the time below which it says nothing.
The largest cell of a reported exponent takes this long."""

UNIT_WORDS, ROW_WORDS = (
    "dim2?|units?|width|latents?|factors?|in|out",
    "sample|rows?|candidates|m|n|patches",
)

Cells = tuple[list[tuple[int, int]], list[tuple[int, int]]]
"""Units and rows of the cells in which units vary, and of those in which rows vary."""
Prepare = Callable[[int, int], Callable[[], Any]]


@dataclass(frozen=True)
class Subject:
    """A method, and how it is prepared for some units and rows.

    Parameters
    ----------
    name : str
    family : str
    member : type
    prepare : callable
        Returns the call that is timed.
    """

    name: str
    family: str
    member: type
    prepare: Prepare

    @property
    def path(self) -> str:
        """Name with its family; a loss and a measure may share a name."""
        return f"{self.family}.{self.name}"


def subjects() -> Iterator[Subject]:
    """Yield the exported instruments, losses and rewrites, each with its first parameters."""
    for family in FAMILIES:
        package = importlib.import_module(f"sonde.{family}")
        for name in package.__all__:
            member = getattr(package, name)
            if not inspect.isclass(member) or inspect.isabstract(member):
                continue
            prepare = _prepare(member)
            if prepare is not None:
                yield Subject(name, family, member, prepare)


def _prepare(member: Any) -> Prepare | None:
    if issubclass(member, Instrument):
        return lambda units, rows: _fitting(_default(member), units, rows)
    if issubclass(member, Rewrite):
        return lambda units, rows: _planning(_default(member), units, rows)
    if getattr(member, "batching", "none") != "none":
        return lambda units, rows: _training(member, units, rows)
    return None


def _default(member: Any) -> Any:
    """Return a method with its defaults, or with its first example if it has none."""
    try:
        return member()
    except TypeError:
        return member(**member.examples[0])


def _fitting(method: Instrument, units: int, rows: int) -> Callable[[], Any]:
    if lacking(method):
        raise ValueError(f"needs {', '.join(sorted(lacking(method)))}")
    inputs = make_inputs(rows, dtype=torch.float32, width=units)
    return lambda: fit(method, inputs)


def _planning(method: Rewrite, units: int, rows: int) -> Callable[[], Any]:
    torch.manual_seed(0)
    parts = [nn.Linear(units, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU()]
    net = nn.Sequential(*parts, nn.Linear(units, 3)).eval()
    draw = torch.Generator().manual_seed(0)
    given = torch.randn(rows, units, generator=draw), torch.arange(rows) % 3
    needs = [name for name, need in method.reads().items() if isinstance(need, Examples)]
    if len(needs) < len(method.reads()):
        raise ValueError("needs fitted results")
    return lambda: method.plan(net, dict.fromkeys(needs, given))


def _training(member: Any, units: int, rows: int) -> Callable[[], Any]:
    draw = torch.Generator().manual_seed(0)
    loss = member(**member.examples[0])
    columns: dict[str, Tensor] = {
        name: torch.randn(rows, units, generator=draw).requires_grad_() for name in "xyz"
    }
    columns |= {"label": torch.arange(rows) % 3, "group": torch.arange(rows) % 2}
    columns |= {
        "logits": torch.randn(rows, 3, generator=draw),
        "view": torch.arange(rows) * 2 // rows,
    }
    names = inspect.signature(loss.forward).parameters
    given = {name: columns[name] for name in names if name in columns}
    return lambda: loss(**given).backward()


class OverLimit(Exception):
    """A cell takes more processor time than its limit."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise ``OverLimit`` after some processor time."""

    def stop(*_: Any) -> None:
        raise OverLimit

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def measured(
    subject: Subject, units: int, rows: int, limit: float = LIMIT_SECONDS
) -> dict[str, Any]:
    """Return the processor seconds of a cell, or why there are none."""
    times: list[float] = []
    try:
        call = subject.prepare(units, rows)
        with limited(limit):
            while len(times) < REPEATS and (not times or min(times) < SHORT_SECONDS):
                began = time.process_time()
                call()
                times.append(time.process_time() - began)
    except OverLimit:
        if not times:
            return {"seconds": None, "reason": f"over {limit:.0f} s"}
    except Exception as error:
        return {"seconds": None, "reason": f"{type(error).__name__}: {str(error)[:80]}"}
    return {"seconds": min(times)}


def axes(factor: float = 1.0) -> Cells:
    """Return the cells of both laws, all sizes multiplied by a factor.

    Examples
    --------
    >>> axes(0.25)[1]
    [(64, 256), (64, 512), (64, 1024)]
    """
    units, rows = [[round(factor * n) for n in sizes] for sizes in (UNITS, ROWS)]
    return [(n, rows[0]) for n in units], [(units[0], n) for n in rows]


def run(
    path: Path, chosen: Sequence[Subject], limit: float, sizes: Cells, again: bool = False
) -> None:
    """Measure the cells that the file lacks, or all; those beyond a failed one are left out."""
    done = {} if again else cells(path)
    with path.open("a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for subject in chosen:
            for units, rows in dict.fromkeys([*sizes[0], *sizes[1]]):
                own = done.setdefault(subject.path, {})
                smaller = [s for (u, r), s in own.items() if u <= units and r <= rows]
                if (units, rows) in own or any(one["seconds"] is None for one in smaller):
                    continue
                own[units, rows] = one = measured(subject, units, rows, limit)
                line = {"name": subject.path, "units": units, "rows": rows, **one}
                file.write(json.dumps(line) + "\n")
                file.flush()


def cells(path: Path) -> dict[str, dict[tuple[int, int], dict[str, Any]]]:
    """Return the measured cells of a file by method; of several times the least counts."""
    found: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        one: dict[str, Any] = json.loads(line)
        own = found.setdefault(one["name"], {})
        cell: tuple[int, int] = (one["units"], one["rows"])
        least = math.inf if one["seconds"] is None else one["seconds"]
        if cell not in own or least <= (own[cell]["seconds"] or math.inf):
            own[cell] = one
    return found


def documented(member: type) -> tuple[int, int]:
    """Return the largest powers of units and of rows in a docstring's ``Cost``.

    A rewrite goes at least once over a layer's weights, whose number is the square of its units.

    Examples
    --------
    >>> from sonde.detect import MMD, Mahalanobis
    >>> documented(Mahalanobis)
    (3, 1)
    """
    found = re.search(
        r"\nCost +(.*?)(?=\n[A-Z][a-z]+ {2,}|\n\n|\Z)", inspect.getdoc(member) or "", re.S
    )
    cost = found[1] if found else ""
    named = re.findall(r"O\(([^()]*(?:\([^()]*\)[^()]*)*)\)|state([^;.]*) bytes", cost)
    terms = ["", *(term for one in named for term in re.split(r"[+,()]", "".join(one)))]
    least = 2 if issubclass(member, Rewrite) else 1
    units = max(_power(t, UNIT_WORDS) for t in terms)
    return max(least, units), max(_power(t, ROW_WORDS) for t in terms)


def _power(term: str, words: str) -> int:
    """Return the sum of the powers of some words in a product, at least 1."""
    return max(1, sum(int(n or 1) for n in re.findall(rf"\b(?:{words})\b(?:\^(\d))?", term)))


def exponent(times: Sequence[float | None]) -> float | None:
    """Return the slope of the last doubling whose times are known, or None if it is too short.

    Examples
    --------
    >>> exponent([1.0, 2.0, 8.0]), exponent([1.0, 2.0, None]), exponent([1.0, None, None])
    (2.0, 1.0, None)
    """
    known = [max(t, 1e-6) for t in times if t is not None]
    says = len(known) > 1 and known[-1] >= LEAST_SECONDS
    return math.log2(known[-1] / known[-2]) if says else None


def table(path: Path, chosen: Sequence[Subject], sizes: Cells) -> list[str]:
    """Return the table, and the methods that exceed their documented exponents."""
    measured_cells, lines, above, missing = cells(path), list[str](), list[str](), list[str]()
    for subject in chosen:
        own = measured_cells.get(subject.path, {})
        first = own.get(sizes[0][0], {"seconds": None, "reason": "not run"})
        if first["seconds"] is None:
            missing.append(f"`{subject.path}` ({first['reason']})")
            continue
        times = [[own.get(cell, {}).get("seconds") for cell in axis] for axis in sizes]
        failed = [[own[c]["reason"] for c in axis if c in own and "reason" in own[c]]
                  for axis in sizes]  # fmt: skip
        slopes, said = [exponent(axis) for axis in times], documented(subject.member)
        texts = ["" if s is None else f"{s:.1f}" for s in slopes]
        shown = [(why or ["not run"])[0] if axis[-1] is None else f"{axis[-1]:.2g}"
                 for axis, why in zip(times, failed, strict=True)]  # fmt: skip
        cellwords = [subject.path, f"{first['seconds']:.2g}", *shown]
        row = [*cellwords, texts[0], str(said[0]), texts[1], str(said[1])]
        lines.append("| " + " | ".join(row) + " |")
        for slope, limit, axis in zip(slopes, said, ("units", "rows"), strict=True):
            if slope is not None and slope > limit + MARGIN:
                above.append(f"`{subject.path}`: {slope:.1f} in {axis}, documented {limit}")
    (units, rows), most_units, most_rows = sizes[0][0], sizes[0][-1][0], sizes[1][-1][1]
    columns = ["method", f"{units:,} x {rows:,}, s", f"{most_units:,} units, s"]
    columns += [f"{most_rows:,} rows, s"]
    columns += ["units: slope", "said", "rows: slope", "said"]
    head = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return [*head, *lines, "", "Above the documented exponent:", *(above or ["none"]), "",
            f"Not measured: {', '.join(missing)}"]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_laws", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("cost_laws.jsonl"))
    parser.add_argument("--only", nargs="+", default=())
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds of a cell")
    parser.add_argument("--factor", type=float, default=1.0, help="multiplies units and rows")
    parser.add_argument("--again", action="store_true", help="measure known cells once more")
    typed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chosen = [one for one in subjects() if not typed.only or one.name in typed.only]
    sizes = axes(typed.factor)
    run(typed.results, chosen, typed.limit, sizes, typed.again)
    print(*table(typed.results, chosen, sizes), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
