"""The tests and laws of a file, run on its mutants in forks of one process.

The tests are collected once. In a fork the changed functions get their new code, wherever they are
wrapped or kept; code that ran at import is tried in a new process instead.
"""

import cProfile
import gc
import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import Field, dataclass, fields
from functools import partial
from inspect import CO_OPTIMIZED, isabstract
from multiprocessing import get_context
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Literal, Self

import pytest
from tools.mutate.mutants import Mutant

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
WAITING = 10
"""Seconds that a trial may last for each second of its processor time."""


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


@dataclass(frozen=True)
class Found:
    """What became of a mutant: a test of the file noticed it, or a law of its classes, or nothing.

    ``run`` says whether any of them runs the changed code.
    """

    mutant: Mutant
    by: Literal["test", "law", "nothing"]
    run: bool = True


class _Trials:
    """A plugin of pytest that runs the collected tests once for each mutant, in a fork.

    After the tests come the laws of ``sonde.testing`` for the classes of the file that keep them.
    """

    def __init__(self, path: Path, chosen: Sequence[Mutant], ran: frozenset[CodeType], most: float):
        self.path, self.chosen, self.ran, self.most = path, chosen, ran, most
        self.found: list[Found] | None = None
        self._times: dict[str, float] = {}  # of each test
        self._places: dict[str, list[str]] = {}  # of the file's functions that each test runs
        self._laws: list[str] = []
        self._in_fork = self._known = False
        self._failed = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Iterator[None]:
        with _Calls() as calls:
            result = yield
        self.ran |= calls.codes
        return result

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        module = items[0].getparent(pytest.Module)
        assert module is not None
        for found in _classes_with_laws(self.path):
            law = pytest.Function.from_parent(
                module, name=f"laws of {found.__name__}", callobj=partial(_hold, found)
            )
            self._laws.append(law.nodeid)
            items.append(law)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if self._in_fork:
            return None
        self._say = session.config.get_terminal_writer().line
        code, start = _NewCode(self.path), _ended_children_seconds()
        with tempfile.NamedTemporaryFile() as told:
            by = self._noticed(session, code, {}, self.most, told.name)
            while by == "law":  # its class does not keep the laws as it is: some need a case
                failed = Path(told.name).read_text()
                session.items[:] = [i for i in session.items if i.nodeid != failed]
                by = self._noticed(session, code, {}, self.most, told.name)
            if by == "test":
                return True
            limit = min(self.most, 5 + 4 * (_ended_children_seconds() - start))
            self._known = True
            self._times, self._places = json.loads(Path(told.name).read_text())
        self.found = []
        for mutant in self.chosen:
            pairs = code.pairs(mutant.text)
            changed = {_place(c) for c in pairs}
            # The tests that run the changed code first, the fastest before others, then the laws.
            session.items.sort(
                key=lambda item, changed=changed: (
                    item.nodeid in self._laws,
                    changed.isdisjoint(self._places.get(item.nodeid, ())),
                    self._times.get(item.nodeid, 0.0),
                )
            )
            if self.ran & pairs.keys():
                noticed = _noticed_afresh(self.path, mutant.text, session.config.args, self.most)
                self.found.append(Found(mutant, "test" if noticed else "nothing"))
            elif changed.isdisjoint(p for places in self._places.values() for p in places):
                self.found.append(Found(mutant, "nothing", run=False))
            else:
                self.found.append(Found(mutant, self._noticed(session, code, pairs, limit)))
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
        if report.failed:
            self._failed = report.nodeid
            if not self._known:  # without a mutant nothing should fail
                self._say(report.longreprtext)

    def _noticed(
        self,
        session: pytest.Session,
        code: _NewCode,
        pairs: dict[CodeType, CodeType],
        seconds: float,
        told: str = os.devnull,
    ) -> Literal["test", "law", "nothing"]:
        """Return what fails in a fork with new code, or takes more than its processor time."""
        process = os.fork()
        if process == 0:
            try:
                most = round(seconds) + 1
                resource.setrlimit(resource.RLIMIT_CPU, (most, most))
                signal.alarm(WAITING * most)  # for tests that wait for ever
                code.put(pairs)
                self._in_fork = True
                with suppress(session.Failed):
                    session.config.hook.pytest_runtestloop(session=session)
                if self._failed:
                    Path(told).write_text(self._failed)
                    os._exit(2 if self._failed in self._laws else 1)
                Path(told).write_text(json.dumps([self._times, self._places]))
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        return "nothing" if status == 0 else "law" if status == 2 else "test"


def numeric_fields(path: Path) -> dict[str, list[str]]:
    """Return the fields of floating-point numbers of each class of results that a file names."""
    base = importlib.import_module("sonde.core.result").Result
    named = vars(importlib.import_module(_module_name(path))).values()
    found = {
        c.__name__: [f.name for f in fields(c) if f.name != "range" and _is_numeric(f)]
        for c in named
        if isinstance(c, type) and issubclass(c, base)
    }
    return {**found, "replace": sorted({name for names in found.values() for name in names})}


def _is_numeric(field: Field[Any]) -> bool:
    return re.search(r"float|Float\[|Tensor", str(field.type)) is not None


def _classes_with_laws(path: Path) -> list[type]:
    module = importlib.import_module(_module_name(path))
    kinds = tuple(importlib.import_module("sonde.testing").KINDS)
    own = (c for c in vars(module).values() if isinstance(c, type))
    return [
        c
        for c in own
        if c.__module__ == module.__name__ and issubclass(c, kinds) and not isabstract(c)
    ]


def _hold(found: type) -> None:
    importlib.import_module("sonde.testing").check(found)


def _ended_children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
                timeout=WAITING * seconds,
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


def _session(trials: _Trials, tests: Sequence[Path], markers: str, answers: Any) -> None:
    """Run pytest on the tests with the trials; send what they found, or what pytest said."""
    with tempfile.TemporaryDirectory() as folder, Path(folder, "said").open("w+b") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        # Tracing makes tests slower, so their time is no reason to fail here.
        plugins = ["-p", "no:cacheprovider", "-p", "no:processor_time"]
        options = ["-x", "-q", "-n", "0", *plugins, f"--basetemp={folder}/base"]
        known = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what warm_up imported
        pytest.main([*options, *known, "-m", markers, *map(str, tests)], plugins=[trials])
        text = Path(folder, "said").read_text(errors="replace")
    answers.send(text if trials.found is None else trials.found)


def trials_of(
    path: Path,
    chosen: Sequence[Mutant],
    seconds: float,
    ran: frozenset[CodeType],
    markers: str = "",
) -> list[Found]:
    """Return what became of mutants of a file, on its tests that an expression of markers selects.

    ``ran`` is the code that ran while sonde was imported, as ``warm_up`` returns it.
    """
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    trials = _Trials(path, chosen, ran, seconds)
    child = context.Process(target=_session, args=(trials, own_tests(path), markers, sender))
    child.start()
    sender.close()
    found: list[Found] | str = receiver.recv()
    child.join()
    if isinstance(found, str):
        raise RuntimeError(f"The tests of {path} fail without a mutant:\n{found}")
    return found
