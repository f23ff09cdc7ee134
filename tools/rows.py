"""Print the systems of ``tools/rows.toml``: where each lives, its truth test, its claims.

python -m tools.rows [--part] [--short] [ID ...]

A system is *whole* if the paper's own mechanism is public, a test names an independent source for
it, a study runs it with the parameters that make it, every claim has a verdict in
``docs/studies.tsv``, and what its study's fidelity line says is lacking stands in ``left_out`` with
a reason. It is *whole, place too small* if its claim waits for a place that this project cannot
offer, *whole, fair place not run* if it waits for one that can be fetched, *part* if something is
missing, *unsettled* if a claim is undecided or its premise failed, and *closed* if the paper has no
mechanism. A study that names nothing of the file in which an export is defined measures formulas of
its own: the export does not count as one that it runs.
"""

import ast
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tools.check_truth import truths

from sonde_studies import study_of
from sonde_studies.places import PLACES
from tools import study_table

ROOT = Path(__file__).resolve().parent.parent
SETTLED = ("holds", "holds the other way", "not at this size")
SMALL = "whole, place too small"
NOT_RUN = "whole, fair place not run"
LACKS = re.compile(r"\b(missing|left out|alone|without)\b")
"""Words by which a fidelity line says that a part of the paper is not there."""
SMALLER = re.compile(r"\b(in place of|stands? for)\b")
"""Words by which it says that something else plays its part, which a place that is too small is."""


@dataclass(frozen=True)
class Row:
    """One system.

    Parameters
    ----------
    name : str
        Its number in the list.
    system : str
        Its name, as people say it.
    paper : str
        Key of its paper in ``docs/papers.bib``.
    code : tuple of str
        ``room.Export`` or ``room.Export(parameter,..)``.
    study, claims : tuple of str
        Words of studies, and keys of claims; without keys all claims are about the system.
    main : str
        ``study: key`` of the claim that the paper is known for.
    left_out : tuple of str
        ``what: reason`` of each part of the abstract that is not tried.
    place : str
        ``PLACE: what is there`` of the place that the system waits for; empty if it was tried in
        a fair place.
    missing : str
        The paper's own part that the library lacks; empty if it lacks none.
    """

    name: str
    system: str
    paper: str = ""
    code: tuple[str, ...] = ()
    study: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    main: str = ""
    left_out: tuple[str, ...] = ()
    place: str = ""
    missing: str = ""

    @property
    def closed(self) -> bool:
        """Whether the system has no mechanism."""
        return self.missing.startswith("closed: ")


def rows_of(file: Path = ROOT / "tools" / "rows.toml") -> list[Row]:
    """Return the systems of a file."""
    listed: dict[str, dict[str, Any]] = tomllib.loads(file.read_text("utf-8"))
    return [
        Row(name, **{k: _frozen(v) for k, v in entry.items()}) for name, entry in listed.items()
    ]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # pyright: ignore


def exported(code: str) -> Any:
    """Return what an entry of ``code`` names.

    Raises
    ------
    AttributeError
        If there is no such export.
    TypeError
        If it has no such parameter.
    """
    place, _, named = code.rstrip(")").partition("(")
    room, _, name = place.rpartition(".")
    home = f"sonde_studies.recipes.{name}" if room == "recipes" else f"sonde.{room}"
    found = getattr(importlib.import_module(home), name)
    unknown = {p for p in named.split(",") if p} - set(inspect.signature(found).parameters)
    if unknown:
        raise TypeError(f"{code}: no parameter {sorted(unknown)}")
    return found


def truth_of(code: str, tests: Path = ROOT / "tests") -> str:
    """Return the test file that names an independent source for an export; else an empty text.

    It is the test of the file that defines the export, or another one that uses its name.
    """
    room, _, name = code.partition("(")[0].rpartition(".")
    own = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    named = re.compile(rf"\b({name}|{own})\b")
    recipe = room == "recipes"
    module = own if recipe else exported(code).__module__.rpartition(".")[2]
    home = f"test_{module}"
    of_room = sorted((tests / ("studies/recipes" if recipe else room)).glob("test_*.py"))
    for file in sorted(of_room, key=lambda f: (f.stem != home, f.stem != f"test_{own}", f.stem)):
        if (file.stem == home or named.search(_text(file))) and _has_truth(file):
            return file.relative_to(tests.parent).as_posix()
    return ""


@cache
def _text(file: Path) -> str:
    return file.read_text("utf-8")


@cache
def _has_truth(file: Path) -> bool:
    return bool(truths(file))


def runs(word: str, code: str) -> bool:
    """Return whether a study, or a recipe that it calls, names what the file of an export defines.

    A helper function of the same file counts: ``with_adapters`` builds ``ParallelAdapters``.
    """
    room, _, name = code.partition("(")[0].rpartition(".")
    if room == "recipes":
        return True
    home = exported(code).__module__
    rooms = importlib.import_module(f"sonde.{room}")
    same = {n for n in dir(rooms) if getattr(getattr(rooms, n), "__module__", "") == home}
    wanted = {f"sonde.{room}.{n}" for n in same | {name}}
    return bool(named_by(type(study_of(word)).__module__) & wanted)


def not_given(words: Sequence[str], code: str) -> list[str]:
    """Return the parameters in an entry of ``code`` to which none of some studies gives a value."""
    place, _, named = code.rstrip(")").partition("(")
    room, _, name = place.rpartition(".")
    if room == "recipes":
        return []
    given = {g for word in words for g in named_by(type(study_of(word)).__module__)}
    counts = [int(g.removeprefix(f"{name}#")) for g in given if g.startswith(f"{name}#")]
    first = [*inspect.signature(exported(code)).parameters][: max(counts, default=0)]
    return [p for p in named.split(",") if p and f"{p}=" not in given and p not in first]


@cache
def named_by(module: str) -> frozenset[str]:
    """Return what a module of the studies, and those it imports, take: ``sonde.edit.Leace``.

    Keywords of calls, and texts that may be their keys, stand there as ``penalty=``, the number of
    values that a call gives by place as ``Leace#2``. Only modules of the studies and of the recipes
    are followed: each of them is an experiment.
    """
    todo, seen, names = [module], set[str](), set[str]()
    while todo:
        if (at := todo.pop()) in seen:
            continue
        seen.add(at)
        source = inspect.getsource(importlib.import_module(at))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                names.update(inner)
                todo += [m for m in (node.module, *inner) if m in sys.modules and _experiment(m)]
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names.add(f"sonde.{node.value.id}.{node.attr}")  # from sonde import edit
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                names.add(f"{called}#{len(node.args)}")
            elif isinstance(node, ast.keyword):
                names.add(f"{node.arg}=")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(f"{node.value}=")  # a key of keywords that are passed on
    return frozenset(names)


def _experiment(module: str) -> bool:
    return module.startswith("sonde_studies.") and module != "sonde_studies.study"


def verdicts(table: Path = study_table.TABLE) -> dict[tuple[str, str], str]:
    """Return the verdict of each study's claim in the table."""
    rows = (row for inside in study_table.read(table).values() for row in inside)
    return {(row.study, row.claim): row.verdict for row in rows}


def claims_of(row: Row, known: dict[tuple[str, str], str]) -> dict[str, str]:
    """Return the verdicts of the claims that are about a system, by ``study: key``."""
    found: dict[str, str] = {}
    for word in row.study:
        study = study_of(word)
        for claim in study.claims:
            if not row.claims or claim.key in row.claims:
                said = known.get((word, claim.text), "not in docs/studies.tsv")
                found[f"{word}: {claim.key}"] = said
        null = known.get((word, study_table.NULL + study.null.text), "not in docs/studies.tsv")
        if null.removesuffix(", blind") != "as expected":
            found[f"{word}: null arm"] = null
    return found


def reasons(row: Row, known: dict[tuple[str, str], str]) -> list[str]:
    """Return why a system is not whole; empty for one that is."""
    untold = [] if row.code or row.study else ["neither code nor study"]
    parts = row.code or tuple(f"recipes.{word.replace('-', '_')}" for word in row.study)
    untold += [f"no truth test of {part}" for part in parts if not truth_of(part)]
    untold += [] if row.study else ["in no study"]
    untold += [f"no study runs {part}" for part in row.code if row.study
               if not any(runs(word, part) for word in row.study)]  # fmt: skip
    untold += [f"no study gives {', '.join(lacking)} of {part}" for part in row.code
               if row.study and (lacking := not_given(row.study, part))]  # fmt: skip
    said = claims_of(row, known)
    return [*filter(None, [row.missing]), *untold, *unanswered(row),
            *(f"{key} = {v}" for key, v in said.items() if v not in SETTLED)]  # fmt: skip


def unanswered(row: Row) -> list[str]:
    """Return the fidelity lines of lacking parts, unless the row says what is left out, and why."""
    if row.left_out or row.missing:
        return []
    lines = {word: study_of(word).fidelity for word in row.study}
    return [
        f"fidelity of {word}: {line}"
        for word, line in lines.items()
        if LACKS.search(line) or (not row.place and SMALLER.search(line))
    ]


def main_verdict(row: Row, known: dict[tuple[str, str], str]) -> str:
    """Return the verdict on the claim that the paper is known for; empty without a study."""
    return claims_of(row, known).get(row.main, "")


def status(row: Row, known: dict[tuple[str, str], str]) -> str:
    """Return ``whole`` with what is said of its place, ``part``, ``unsettled`` or ``closed``."""
    if row.closed:
        return "closed"
    if not (why := reasons(row, known)):
        place = PLACES.get(row.place.partition(":")[0])
        return "whole" if place is None else NOT_RUN if place.source else SMALL
    said = claims_of(row, known)
    return "unsettled" if len(why) == sum(v not in SETTLED for v in said.values()) else "part"


def main(arguments: list[str]) -> int:
    """Print the systems, how many are whole, and the verdicts on their main claims."""
    known, counts, mains = verdicts(), dict[str, int](), dict[str, int]()
    wanted = set(arguments) - {"--part", "--short"}
    for row in rows_of():
        state, main = status(row, known), main_verdict(row, known)
        counts[state] = counts.get(state, 0) + 1
        if main:
            mains[main] = mains.get(main, 0) + 1
        if (wanted and row.name not in wanted) or ("--part" in arguments and state != "part"):
            continue
        print(f"{row.name}  {row.system}  [{state}]{'  main claim: ' * bool(main)}{main}")
        if "--short" in arguments:
            continue
        for what in (
            f"place: {row.place}" * bool(row.place),
            *map("left out: {}".format, row.left_out),
        ):
            if what:
                print(f"    {what}")
        for code in row.code:
            print(f"    {code}  {truth_of(code)}")
        for key, said in claims_of(row, known).items():
            print(f"    {key}: {said}")
        if state == "part":
            print(f"    part: {'; '.join(reasons(row, known))}")
    print("; ".join(f"{n} {state}" for state, n in sorted(counts.items())))
    print("main claims: " + "; ".join(f"{n} {verdict}" for verdict, n in sorted(mains.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
