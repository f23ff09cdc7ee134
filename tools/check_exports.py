"""Check that the exported, catalogued, documented and tested sets of methods are one set.

A method is documented when ``docs/methods.md`` is generated from the catalogue (see
``tools/make_docs.py``) and its paper stands in ``docs/papers.bib``; it is tested when a file of its
name stands in the family's test folder and the contract suite walks the catalogue. A code of the
findings is tested when a file of its name expects it once to be raised and once not.
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from sonde.core.instrument import Instrument
from sonde.core.statistic import Statistic
from sonde.findings.catalogue import rule_classes
from sonde.run.instruments.catalogue import methods, word_of_class
from sonde.run.instruments.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent

RAISED = "raised"
QUIET = frozenset({"clear", "not_applicable"})


def bibliography(root: Path = ROOT) -> set[str]:
    """Return the keys of ``docs/papers.bib``."""
    text = (root / "docs" / "papers.bib").read_text(encoding="utf-8")
    return set(re.findall(r"^@\w+\{([^,]+),", text, re.MULTILINE))


def packages(names: Iterable[str] = FAMILIES) -> dict[str, ModuleType]:
    """Return packages of ``sonde`` by name."""
    return {name: importlib.import_module(f"sonde.{name}") for name in names}


def modules(package: ModuleType) -> list[ModuleType]:
    """Return the public modules of a package."""
    folder = Path(str(package.__file__)).parent
    names = sorted(path.stem for path in folder.glob("[!_]*.py"))
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def wrong_families(families: Mapping[str, ModuleType], root: Path = ROOT) -> list[str]:
    """Return what is wrong with the families' exports."""
    wrong: list[str] = []
    known = bibliography(root)
    owners: dict[str, list[str]] = {}
    for family, package in families.items():
        for name in package.__all__:
            cls = getattr(package, name)
            if not (isinstance(cls, type) and issubclass(cls, Instrument)):
                continue
            word = word_of_class(cls)
            owners.setdefault(word, []).append(f"{family}.{name}")
            if not (root / "tests" / family / f"test_{word}.py").exists():
                wrong.append(f"{family}.{name} has no tests/{family}/test_{word}.py")
            if cls.paper not in known:
                wrong.append(f"{family}.{name}: paper {cls.paper!r} is not in docs/papers.bib")
    shared = {word: names for word, names in owners.items() if len(names) > 1}
    return wrong + [f"{' and '.join(names)} share the word {w!r}" for w, names in shared.items()]


def unexported(
    label: str, exported: Iterable[str], found: Iterable[ModuleType], kind: type
) -> list[str]:
    """Return the public classes of a kind in modules that a package does not export."""
    known = set(exported)
    wrong = []
    for module in found:
        for name, cls in inspect.getmembers(module, inspect.isclass):
            mine = cls.__module__ == module.__name__ and not name.startswith("_")
            if mine and issubclass(cls, kind) and name not in known:
                wrong.append(f"{label}.{name} is not exported")
    return wrong


def wrong_findings(codes: Iterable[str], folder: Path) -> list[str]:
    """Return codes whose own test file is missing, or does not hold both a fault and a twin."""
    wrong: list[str] = []
    for code in codes:
        path = folder / f"test_{code.lower()}.py"
        if not path.exists():
            wrong.append(f"{code} has no tests/findings/{path.name}")
            continue
        found = expectations(ast.parse(path.read_text(encoding="utf-8")), code)
        if RAISED not in found:
            wrong.append(f"tests/findings/{path.name} never expects {code} to be raised")
        if not found & QUIET:
            wrong.append(f"tests/findings/{path.name} has no twin: {code} is raised everywhere")
    return wrong


def expectations(tree: ast.Module, code: str) -> set[str]:
    """Return the states in which the tests of one file expect a code to end."""
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    carriers = _grown({code}, [f for f in functions if not f.name.startswith("test_")])
    found: set[str] = set()
    for test in (f for f in functions if f.name.startswith("test_")):
        mine = _assigned(test, carriers)
        for node in ast.walk(test):
            if isinstance(node, ast.Call):
                found |= _called(node, mine)
            elif isinstance(node, ast.Assert):
                found |= {s for part in _joined(node.test) for s in _compared(part, mine)}
    return found


def _grown(carriers: set[str], helpers: list[ast.FunctionDef]) -> set[str]:
    """Return the names that stand for a code: its class, and functions that use it."""
    more = carriers | {f.name for f in helpers if _mentions(f, carriers)}
    return more if more == carriers else _grown(more, helpers)


def _assigned(test: ast.FunctionDef, carriers: set[str]) -> set[str]:
    """Return the carriers and the variables of a test that hold what they returned."""
    found = set(carriers)
    for node in ast.walk(test):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            for name, value in _pairs(target, node.value):
                if _mentions(value, found):
                    found.add(name)
    return found


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple):
        values = [value] * len(target.elts)
        if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
            values = value.elts
        for part, one in zip(target.elts, values, strict=True):
            yield from _pairs(part, one)


def _mentions(node: ast.AST, names: set[str]) -> bool:
    return any(isinstance(n, ast.Name) and n.id in names for n in ast.walk(node))


def _called(node: ast.Call, carriers: set[str]) -> set[str]:
    """Return what ``assert_raised(check, ..)`` or ``assert_clear(check)`` expects."""
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    state = name.removeprefix("assert_")
    known = name.startswith("assert_") and state in {RAISED, *QUIET}
    return {state} if known and node.args and _mentions(node.args[0], carriers) else set()


def _joined(test: ast.expr) -> list[ast.expr]:
    """Return the parts of an assertion that must all hold."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return test.values
    return [test]


def _compared(test: ast.expr, carriers: set[str]) -> set[str]:
    """Return what ``check.state == ".."`` or ``check.finding.level == ".."`` expects."""
    if not (isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq)):
        return set()
    left, right = test.left, test.comparators[0]
    if not (isinstance(left, ast.Attribute) and _mentions(left, carriers)):
        return set()
    if left.attr == "level":
        return {RAISED}
    if left.attr == "state" and isinstance(right, ast.Constant):
        return {str(right.value)}
    return set()


def main() -> int:
    """Print what is wrong and return the exit code."""
    families, stats = packages(), packages(["stats"])["stats"]
    wrong = wrong_families(families)
    for family, package in families.items():
        wrong += unexported(family, package.__all__, modules(package), Instrument)
    wrong += unexported("stats", stats.__all__, modules(stats), Statistic)
    wrong += wrong_findings(rule_classes(), ROOT / "tests" / "findings")
    print("\n".join(wrong) or f"{len(methods())} methods and {len(rule_classes())} codes agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
