"""Mutate the formulas of method files and count how many mutants their own tests notice.

    python -m tools.mutate src/sonde/edit/leace.py            # every mutant that survived, by line
    python -m tools.mutate src/sonde/edit --most 8 --json out.jsonl --seed 1
    python -m tools.mutate --all                              # twelve mutants of every method file

A mutant changes one thing: a number, a sign, an operator, or an index. Messages, checks of
arguments, defaults of parameters and numbers below 1e-5 are left alone. Sonde is imported once and
the tests of a file are collected once; each mutant is a fork in which the changed functions get
their new code. Nothing of the checkout changes, and processes that a test starts see the file as it
is. A file without a test of its own is tried on the tests of its room that lead to it. Some mutants
compute the same function; a survivor is a line to look at, not yet a missing test.
"""

import argparse
import ast
import copy
import cProfile
import gc
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from inspect import CO_OPTIMIZED
from multiprocessing import get_context
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Self

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
ROOMS = ("measure", "detect", "explain", "edit", "compress", "train", "layers")
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
        # Its lines stay as many, so that the code below keeps its line numbers.
        lines = "\n" * whole.count(b"\n", first, last)
        put = new if isinstance(node, ast.Constant) else f"({new}{lines})"
        yield Mutant(
            node.lineno,
            f"{ast.unparse(node)} -> {new}",
            (whole[:first] + put.encode() + whole[last:]).decode(),
        )


def own_tests(path: Path) -> tuple[Path, ...]:
    """Return the test file of a method's file, or the tests of its room that lead to the file.

    These are tests that name the file or its class, and tests of the files that import it.
    """
    room, stem = ROOT / "tests" / path.resolve().relative_to(SOURCE / "sonde").parent, path.stem
    own = room / f"test_{stem}.py"
    if own.exists():
        return (own,)
    named = re.compile(rf"\b({stem}|{stem.title().replace('_', '')})\b")
    users = {p.stem for p in path.parent.glob("*.py") if p != path and named.search(p.read_text())}
    of_users = {room / f"test_{user}.py" for user in users}
    found = (t for t in room.glob("test_*.py") if t in of_users or named.search(t.read_text()))
    return tuple(sorted(found))


class _Calls(AbstractContextManager["_Calls"]):
    """Record which functions of sonde run."""

    codes: frozenset[CodeType] = frozenset()

    def __enter__(self) -> Self:
        self._profile = cProfile.Profile(builtins=False)
        self._profile.enable()
        return self

    def __exit__(self, *_: object) -> None:
        self._profile.disable()
        found = (e.code for e in self._profile.getstats() if isinstance(e.code, CodeType))
        self.codes = frozenset(c for c in found if c.co_filename.startswith(str(SOURCE)))


def warm_up(files: Sequence[Path]) -> frozenset[CodeType]:
    """Import the files and what tests need; return the code of sonde that ran meanwhile."""
    sys.path[:0] = map(str, (SOURCE, ROOT / "packages/sonde-studies/src", ROOT / "tests", ROOT))
    os.chdir(ROOT)
    for name in ("hypothesis", "scipy.stats", "sklearn.linear_model", "torch", "transformers"):
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    importlib.import_module("shape_checker").install()  # as the tests do, before sonde is imported
    with _Calls() as calls:
        for path in files:
            importlib.import_module(_module_name(path))
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    return calls.codes


def _module_name(path: Path) -> str:
    return ".".join(path.resolve().relative_to(SOURCE).with_suffix("").parts)


class _NewCode:
    """The code of one file's functions, replaced by that of a changed text."""

    def __init__(self, path: Path) -> None:
        self._module = importlib.import_module(_module_name(path))
        self._old = list(self._compiled(path.read_text(encoding="utf-8")))
        known = set(self._old)
        gc.unfreeze()
        found = (f for f in gc.get_objects() if type(f) is FunctionType)
        self._functions = [f for f in found if f.__code__ in known]
        gc.freeze()

    def _compiled(self, text: str) -> Iterator[CodeType]:
        loader: Any = getattr(self._module.__spec__, "loader", None)
        return _with_inner(loader.source_to_code(text.encode(), self._module.__file__))

    def pairs(self, text: str) -> dict[CodeType, CodeType]:
        """Return the new code of each function that a text changes."""
        both = zip(self._old, self._compiled(text), strict=True)
        return {a: b for a, b in both if a != b and a.co_flags & CO_OPTIMIZED}

    def put(self, pairs: dict[CodeType, CodeType]) -> None:
        """Exchange the code of the functions, wherever they are wrapped or kept."""
        for function in self._functions:
            function.__code__ = pairs.get(function.__code__, function.__code__)


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _with_inner(inner)


class _Trials:
    """A plugin of pytest that runs the collected tests once for each mutant, in a fork."""

    def __init__(self, path: Path, chosen: Sequence[Mutant], ran: frozenset[CodeType], most: float):
        self.path, self.chosen, self.ran, self.most = path, chosen, ran, most
        self.left: list[Mutant] | None = None
        self._times: dict[str, float] = {}  # of each test
        self._places: dict[str, list[str]] = {}  # of the file's functions that each test runs
        self._in_fork = self._known = False

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Iterator[None]:
        with _Calls() as calls:
            result = yield
        self.ran |= calls.codes
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if self._in_fork:
            return None
        code = _NewCode(self.path)
        with tempfile.NamedTemporaryFile() as told:
            start = time.monotonic()
            if self._noticed(session, code, {}, self.most, told.name):
                return True
            limit = min(self.most, 5 + 4 * (time.monotonic() - start))
            self._known = True
            self._times, self._places = json.loads(Path(told.name).read_text())
        self.left = []
        for mutant in self.chosen:
            pairs = code.pairs(mutant.text)
            changed = {_place(c) for c in pairs}
            # The tests that run the changed code first, the fastest before others.
            session.items.sort(
                key=lambda item, changed=changed: (
                    changed.isdisjoint(self._places.get(item.nodeid, ())),
                    self._times.get(item.nodeid, 0.0),
                )
            )
            if self.ran & pairs.keys():
                noticed = _noticed_afresh(self.path, mutant.text, session.config.args, self.most)
            elif changed.isdisjoint(p for places in self._places.values() for p in places):
                self.left.append(replace(mutant, change=f"{mutant.change}   (no test runs it)"))
                continue
            else:
                noticed = self._noticed(session, code, pairs, limit)
            if not noticed:
                self.left.append(mutant)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if self._known:  # the run without a mutant has told
            return (yield)
        with _Calls() as calls:
            result = yield
        here = [c for c in calls.codes if c.co_filename == str(self.path)]
        self._places[item.nodeid] = [_place(c) for c in here]
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._times[report.nodeid] = self._times.get(report.nodeid, 0.0) + report.duration

    def _noticed(
        self,
        session: pytest.Session,
        code: _NewCode,
        pairs: dict[CodeType, CodeType],
        seconds: float,
        told: str = os.devnull,
    ) -> bool:
        """Return whether a test fails in a fork with new code, or the tests take too long."""
        process = os.fork()
        if process == 0:
            try:
                signal.alarm(round(seconds) + 1)
                code.put(pairs)
                self._in_fork = True
                session.config.hook.pytest_runtestloop(session=session)
                Path(told).write_text(json.dumps([self._times, self._places]))
                os._exit(int(session.testsfailed > 0))
            finally:
                os._exit(1)
        return os.waitpid(process, 0)[1] != 0


def _place(code: CodeType) -> str:
    return f"{code.co_firstlineno} {code.co_qualname}"


def _noticed_afresh(path: Path, text: str, tests: Sequence[str], seconds: float) -> bool:
    """Return whether tests fail in a new process: for code that runs while sonde is imported."""
    with tempfile.TemporaryDirectory() as folder:
        _overlay(Path(folder), path, text)
        places = [folder, str(ROOT / "packages/sonde-studies/src"), "tests", "."]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        try:
            ran = subprocess.run(
                [*command, "-o", f"pythonpath={' '.join(places)}", *tests],
                env={**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return True
        return ran.returncode != 0


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


def _session(trials: _Trials, tests: Sequence[Path], answers: Any) -> None:
    """Run pytest on the tests with the trials; send the mutants left, or what pytest said."""
    with tempfile.TemporaryDirectory() as folder, Path(folder, "said").open("w+b") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", f"--basetemp={folder}/base"]
        known = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what warm_up imported
        pytest.main([*options, *known, *map(str, tests)], plugins=[trials])
        text = Path(folder, "said").read_text(errors="replace")
    answers.send(text if trials.left is None else trials.left)


def survivors(
    path: Path, chosen: Sequence[Mutant], seconds: float, ran: frozenset[CodeType]
) -> list[Mutant]:
    """Return the mutants of a file that its tests do not notice.

    ``ran`` is the code that ran while sonde was imported, as ``warm_up`` returns it.
    """
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    trials = _Trials(path, chosen, ran, seconds)
    child = context.Process(target=_session, args=(trials, own_tests(path), sender))
    child.start()
    sender.close()
    left: list[Mutant] | str = receiver.recv()
    child.join()
    if isinstance(left, str):
        raise RuntimeError(f"The tests of {path} fail without a mutant:\n{left}")
    return left


def tried(
    path: Path, most: int, seed: int, seconds: float, ran: frozenset[CodeType]
) -> dict[str, Any] | None:
    """Return what became of some mutants of one file, or None without a test or a formula."""
    every = list(mutants(path.read_text(encoding="utf-8")))
    if not own_tests(path) or not every:
        return None
    chosen = random.Random(f"{seed}|{path.name}").sample(every, min(most, len(every)))
    left = sorted(survivors(path, chosen, seconds, ran), key=lambda m: m.line)
    return {
        "file": path.resolve().relative_to(ROOT).as_posix(),
        "tried": len(chosen),
        "noticed": len(chosen) - len(left),
        "survivors": [f"{m.line}: {m.change}" for m in left],
    }


def _print_rooms(rows: Sequence[dict[str, Any]]) -> None:
    """Print one line for each room: files, mutants, share noticed, files below the share wanted."""
    rooms: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        rooms[row["file"].split("/")[2]].append(row)
    print("\n| room | files | mutants | noticed | files below 80 % |\n|---|---:|---:|---:|---:|")
    for room, found in (*rooms.items(), ("all", rows)):
        n, noticed = sum(r["tried"] for r in found), sum(r["noticed"] for r in found)
        low = sum(map(_is_low, found))
        print(f"| {room} | {len(found)} | {n} | {noticed / max(n, 1):.0%} | {low} |")


def _is_low(row: dict[str, Any]) -> bool:
    return row["noticed"] < WANTED * row["tried"]


def main() -> int:
    """Try the mutants of the files asked for; return 1 if a test notices too few."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", nargs="*", type=Path, help="method files, or rooms")
    parser.add_argument("--all", action="store_true", help=f"the rooms {', '.join(ROOMS)}")
    parser.add_argument("--most", type=int, default=12, help="mutants drawn from each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=120.0, help="longest run of the tests")
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
        row = known.get(name) or tried(path, asked.most, asked.seed, asked.seconds, ran)
        if row is None:
            continue
        rows.append(row)
        if asked.json and name not in known:
            with asked.json.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
        share = f"{row['noticed'] / row['tried']:5.0%}"
        mark = "  <-- below 80 %" if _is_low(row) else ""
        print(f"{share}  {row['noticed']:3} of {row['tried']:3}  {name}{mark}", flush=True)
        for survivor in row["survivors"]:
            print(f"         {survivor}", flush=True)
    _print_rooms(rows)
    return 1 if any(map(_is_low, rows)) else 0


if __name__ == "__main__":
    sys.exit(main())
