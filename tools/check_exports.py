"""Check that the exported, catalogued, documented and tested sets of methods are one set.

A method is documented when ``docs/methods.md`` is generated from the catalogue (see
``tools/make_docs.py``) and its paper stands in ``docs/papers.bib``; it is tested when a file of its
name stands in the family's test folder and the contract suite walks the catalogue.
"""

import importlib
import inspect
import re
import sys
from pathlib import Path

from sonde.core.instrument import Instrument
from sonde.core.statistic import Statistic
from sonde.findings.catalogue import rule_classes
from sonde.run.catalogue import FAMILIES, methods, snake_case

ROOT = Path(__file__).resolve().parent.parent


def bibliography() -> set[str]:
    """Return the keys of ``docs/papers.bib``."""
    text = (ROOT / "docs" / "papers.bib").read_text(encoding="utf-8")
    return set(re.findall(r"^@\w+\{([^,]+),", text, re.MULTILINE))


def wrong_families() -> list[str]:
    """Return what is wrong with the families' exports."""
    wrong: list[str] = []
    known = bibliography()
    for family in FAMILIES:
        module = importlib.import_module(f"sonde.{family}")
        for name in module.__all__:
            cls = getattr(module, name)
            if not (isinstance(cls, type) and issubclass(cls, Instrument)):
                continue
            word = snake_case(name)
            if not (ROOT / "tests" / family / f"test_{word}.py").exists():
                wrong.append(f"{family}.{name} has no tests/{family}/test_{word}.py")
            if cls.paper not in known:
                wrong.append(f"{family}.{name}: paper {cls.paper!r} is not in docs/papers.bib")
        wrong += _unexported(family, set(module.__all__))
    if len(methods()) != sum(1 for _ in methods()):
        wrong.append("two methods share a word")
    return wrong


def _unexported(family: str, exported: set[str]) -> list[str]:
    wrong = []
    for path in sorted((ROOT / "src" / "sonde" / family).glob("[!_]*.py")):
        module = importlib.import_module(f"sonde.{family}.{path.stem}")
        for name, cls in inspect.getmembers(module, inspect.isclass):
            mine = cls.__module__ == module.__name__ and not name.startswith("_")
            if mine and issubclass(cls, Instrument) and name not in exported:
                wrong.append(f"{family}.{name} is not exported")
    return wrong


def wrong_statistics() -> list[str]:
    """Return what is wrong with the exports of ``sonde.stats``."""
    stats = importlib.import_module("sonde.stats")
    wrong: list[str] = []
    exported = set(stats.__all__)
    for path in sorted((ROOT / "src" / "sonde" / "stats").glob("[!_]*.py")):
        module = importlib.import_module(f"sonde.stats.{path.stem}")
        for name, cls in inspect.getmembers(module, inspect.isclass):
            mine = cls.__module__ == module.__name__ and not name.startswith("_")
            if mine and issubclass(cls, Statistic) and name not in exported:
                wrong.append(f"stats.{name} is not exported")
    return wrong


def wrong_findings() -> list[str]:
    """Return codes that no test of findings names."""
    tests = (ROOT / "tests" / "findings").glob("test_*.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in tests)
    return [f"{code} has no test" for code in rule_classes() if code not in text]


def main() -> int:
    """Print what is wrong and return the exit code."""
    wrong = [*wrong_families(), *wrong_statistics(), *wrong_findings()]
    print("\n".join(wrong) or f"{len(methods())} methods and {len(rule_classes())} codes agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
