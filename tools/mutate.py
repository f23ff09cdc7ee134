"""Mutate the formulas of a method file and count how many mutants its own test notices.

    python -m tools.mutate src/sonde/edit/slerp.py            # every mutant that survived, by line
    python -m tools.mutate src/sonde/edit --most 8 --json out.jsonl --seed 1

A mutant changes one thing: a number, a sign, an operator, or an index. Messages, checks of
arguments, defaults of parameters and numbers below 1e-5 are left alone. Each mutant runs in a fork
with its own copy of the package, so nothing of the checkout changes. Some mutants compute the same
function; a survivor is a line to look at, not yet a missing test.
"""

import argparse
import ast
import copy
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
SMALLEST = 1e-5
WANTED = 0.8
"""Share of mutants that a method's test should notice."""
OPPOSITE = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
BORDER = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}


@dataclass(frozen=True)
class Mutant:
    """One changed copy of a file: the line, what it said and says, and the whole text."""

    line: int
    change: str
    text: str


class _Formulas(ast.NodeVisitor):
    """Collect the nodes of function bodies that compute, with a function that changes each."""

    def __init__(self) -> None:
        self.found: list[ast.expr] = []
        self._inside = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in ("__post_init__", "__repr__", "table", "chart"):
            return
        self._inside += 1
        for part in node.body:
            self.visit(part)
        self._inside -= 1

    def visit_Raise(self, node: ast.Raise) -> None:
        """Leave messages alone."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave messages alone."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = None if isinstance(node.value, bool) else node.value
        is_number = isinstance(value, int | float) and (value == 0 or abs(value) >= SMALLEST)
        if self._inside and is_number:
            self.found.append(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if self._inside and type(node.op) in OPPOSITE:
            self.found.append(node)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub) and self._inside:
            self.found.append(node)
            if isinstance(node.operand, ast.Constant):
                return
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if self._inside and type(node.ops[0]) in BORDER:
            self.found.append(node)
        self.generic_visit(node)


def _changed(node: ast.expr) -> ast.expr:
    """Return the node with one thing changed."""
    new = copy.deepcopy(node)
    match new:
        case ast.Constant(value=int() as value):
            new.value = value + 1
        case ast.Constant(value=float() as value):
            new.value = value * 1.5 if value else 0.5
        case ast.BinOp():
            new.op = OPPOSITE[type(new.op)]()
        case ast.UnaryOp():
            return new.operand
        case ast.Compare():
            new.ops[0] = BORDER[type(new.ops[0])]()
    return new


def mutants(text: str) -> Iterator[Mutant]:
    r"""Yield every mutant of a file's text.

    Examples
    --------
    >>> [m.change for m in mutants("def f(x):\n    return x[0] - 2.0")]
    ['x[0] - 2.0 -> x[0] + 2.0', '0 -> 1', '2.0 -> 3.0']
    """
    visitor = _Formulas()
    visitor.visit(ast.parse(text))
    raw = text.encode().splitlines(keepends=True)
    starts = [0]
    for line in raw:
        starts.append(starts[-1] + len(line))
    whole = b"".join(raw)
    for node in visitor.found:
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        new = ast.unparse(_changed(node))
        # An exchanged operator in the text of its parents keeps its place only in brackets.
        put = new if isinstance(node, ast.Constant) else f"({new})"
        yield Mutant(
            node.lineno,
            f"{ast.unparse(node)} -> {new}",
            (whole[:first] + put.encode() + whole[last:]).decode(),
        )


def method_test(path: Path) -> Path | None:
    """Return the test file of a method's file, or None if it has none."""
    inside = path.resolve().relative_to(SOURCE / "sonde")
    test = ROOT / "tests" / inside.parent / f"test_{path.stem}.py"
    return test if test.exists() else None


def _overlay(folder: Path, path: Path, text: str) -> None:
    """Write a copy of the package into a folder: links, and the changed file."""
    package = SOURCE / "sonde"
    inside = path.resolve().relative_to(package)
    target, source = folder / "sonde", package
    target.mkdir()
    for part in inside.parts:
        for found in source.iterdir():
            if found.name not in (part, "__pycache__"):
                (target / found.name).symlink_to(found)
        if part == inside.name:
            (target / part).write_text(text, encoding="utf-8")
        else:
            target, source = target / part, source / part
            target.mkdir()


def notices(path: Path, text: str, test: Path, seconds: float) -> bool:
    """Return whether a method's test fails on a changed text of its file, or takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        _overlay(Path(folder), path, text)
        child = get_context("fork").Process(target=_tried, args=(Path(folder), test))
        child.start()
        child.join(seconds)
        if child.exitcode is None:
            child.kill()
            child.join()
        return child.exitcode != 0


def _tried(folder: Path, test: Path) -> None:
    """Run a test file on the package in a folder, and end this process with pytest's exit code."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.chdir(ROOT)
    sys.path[:0] = [str(folder), str(ROOT / "tests"), str(ROOT)]
    os.environ["PYTHONPATH"] = str(folder)
    sys.dont_write_bytecode = True
    import pytest

    places = [str(folder), str(ROOT / "packages" / "sonde-studies" / "src"), "tests", "."]
    known = [
        *("-W", "ignore::pytest.PytestAssertRewriteWarning"),  # what _warm imported
        *("-o", f"pythonpath={' '.join(places)}"),  # else the checkout's own src comes first
    ]
    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-n", "0", *known, str(test)]))


def _warm() -> None:
    """Import what every test imports, once, but nothing of sonde and no plugin of pytest."""
    import numpy
    import pyarrow
    import scipy.stats
    import sklearn.linear_model
    import torch
    import transformers

    torch.set_num_threads(1)
    assert all((numpy, pyarrow, scipy, sklearn, transformers))


def tried(path: Path, most: int, seed: int, seconds: float) -> dict[str, object] | None:
    """Return what became of the mutants of one file, or None without a test or a formula."""
    text = path.read_text(encoding="utf-8")
    test, every = method_test(path), list(mutants(text))
    if test is None or not every:
        return None
    chosen = random.Random(f"{seed}|{path.name}").sample(every, min(most, len(every)))
    if notices(path, text, test, seconds):
        return {"file": str(path), "broken": True, "tried": 0, "noticed": 0, "survivors": []}
    left = [m for m in chosen if not notices(path, m.text, test, seconds)]
    return {
        "file": path.resolve().relative_to(ROOT).as_posix(),
        "tried": len(chosen),
        "noticed": len(chosen) - len(left),
        "survivors": [f"{m.line}: {m.change}" for m in sorted(left, key=lambda m: m.line)],
    }


def main() -> int:
    """Try the mutants of the files asked for; return 1 if a test notices too few."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", nargs="+", type=Path, help="method files, or rooms")
    parser.add_argument("--most", type=int, default=20, help="mutants drawn from each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=120.0, help="longest run of one test file")
    parser.add_argument(
        "--json", type=Path, help="file of one line for each method; goes on with it"
    )
    asked = parser.parse_args()
    _warm()
    files = [q for p in asked.paths for q in (sorted(p.rglob("*.py")) if p.is_dir() else [p])]
    kept = asked.json.read_text().splitlines() if asked.json and asked.json.exists() else []
    known = {r["file"]: r for r in map(json.loads, kept)}
    low = 0
    for path in files:
        name = path.resolve().relative_to(ROOT).as_posix()
        row: dict[str, Any] | None = known.get(name) or tried(
            path, asked.most, asked.seed, asked.seconds
        )
        if row is None:
            continue
        if asked.json and name not in known:
            with asked.json.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
        share = row["noticed"] / row["tried"] if row["tried"] else 0.0
        low += share < WANTED
        mark = "  <-- below 80 %" if share < WANTED else ""
        print(f"{share:5.0%}  {row['noticed']:3} of {row['tried']:3}  {name}{mark}", flush=True)
        for survivor in row["survivors"]:
            print(f"         {survivor}", flush=True)
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
