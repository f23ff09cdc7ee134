"""Every rule by its code, found from the files of ``codes``."""

import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache

from sonde.core.errors import InputError, near
from sonde.findings.rule import Breaks, Rule, Section

_FILE = re.compile(r"^snd\d{3}$")


@cache
def rule_classes() -> dict[str, type[Rule]]:
    """Return the class of every code, in order of the codes."""
    package = importlib.import_module("sonde.findings.codes")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if _FILE.match(m.name))
    classes: dict[str, type[Rule]] = {}
    for name in names:
        module = importlib.import_module(f"sonde.findings.codes.{name}")
        cls: type[Rule] = getattr(module, name.upper())
        classes[cls.code] = cls
    return classes


def breaks(code: str) -> Breaks:
    """Return what a finding breaks; nothing if its code is not known."""
    cls = rule_classes().get(code)
    return "nothing" if cls is None else cls.breaks


def codes_of(section: Section) -> tuple[str, ...]:
    """Return the codes of the rules that decide on a section of the report."""
    return tuple(code for code, cls in rule_classes().items() if cls.section == section)


def check_code(code: str) -> str:
    """Return a code in capitals; raise with similar codes if it does not exist."""
    if code.upper() not in rule_classes():
        raise InputError(f"no finding has the code {code!r}.{near(code.upper(), rule_classes())}")
    return code.upper()


def rules(moved: Mapping[str, Mapping[str, int | float]] | None = None) -> list[Rule]:
    """Return one rule per code, with the thresholds that a user changed.

    Parameters
    ----------
    moved : mapping of code to mapping of threshold name to value, optional

    Raises
    ------
    InputError
        If a code or a threshold does not exist.
    """
    changes = {check_code(code): dict(values) for code, values in (moved or {}).items()}
    chosen: list[Rule] = []
    for code, cls in rule_classes().items():
        rule = cls()
        names = [f.name for f in fields(rule)]  # type: ignore[arg-type]
        own_changes = changes.get(code, {})
        for name, value in own_changes.items():
            if name not in names:
                raise InputError(f"{code} has no threshold {name!r}.{near(name, names)}")
            own_changes[name] = _like(getattr(rule, name), value, f"{code}.{name}")
        chosen.append(replace(rule, **own_changes))  # type: ignore[type-var]
    return chosen


def _like(default: float | int, value: float | int, name: str) -> float | int:
    """Return a threshold as an int or a float, like its default."""
    if isinstance(default, float):
        return float(value)
    if value != int(value):
        raise InputError(f"{name}: expected a whole number, got {value}.")
    return int(value)


def explain(code: str) -> str:
    """Explain a code: its rule, its reasons, its false positives, and the test that plants it."""
    cls = rule_classes()[check_code(code)]
    rule = cls()
    limits = ", ".join(f"{name} = {value:g}" for name, value in rule.thresholds().items())
    lines = [
        f"{cls.code}  {cls.title}",
        "",
        f"Why it matters: {cls.why}",
        f"How it is computed: {cls.how}",
        f"Fix: {cls.fix}",
    ]
    if limits:
        lines.append(f"Thresholds: {limits}")
    if cls.false_positives:
        lines.append(f"False positives: {cls.false_positives}")
    if cls.plant:
        lines.append(f"Planted in tests: {cls.plant}")
    if cls.twin:
        lines.append(f"Healthy twin: {cls.twin}")
    return "\n".join(lines)
