"""A command and the Python calls that it makes have the same defaults and choices."""

import ast
import importlib
import inspect
import re
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import ModuleType, NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest

from sonde.cli.commands import COMMANDS, SECOND
from sonde.cli.edits import EDITS

EVERY = [
    *COMMANDS.values(),
    *EDITS.values(),
    *(k for more in SECOND.values() for k in more.values()),
]
ON_PURPOSE = {
    ("Generate", "ContrastiveDecode", "strength"): "--decode-strength is its flag",
    ("Trace", "trace_texts", "show_inputs"): "the flag is about --pairs, and --clean is shown",
}
"""Fields that have the name of a parameter and another default."""


def calls_of(module: ModuleType) -> dict[str, Any]:
    """Return the functions and classes of sonde, outside its commands, that a module calls."""
    tree = ast.parse(inspect.getsource(module))
    homes = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sonde.")
        for alias in node.names
        if not str(node.module).startswith("sonde.cli")
    }
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    calls = {
        name: getattr(importlib.import_module(home), own)
        for name, (home, own) in sorted(homes.items())
        if name in called
    }
    return {n: call for n, call in calls.items() if inspect.isfunction(call) or is_dataclass(call)}


def flags_of(kind: type[Any]) -> dict[str, tuple[Any, Any]]:
    """Return the default and the type of each field of a command, with those of its groups."""
    flags: dict[str, tuple[Any, Any]] = {}
    for each in fields(kind):
        hint = get_type_hints(kind, include_extras=True)[each.name]
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if is_dataclass(hint):
            flags |= {n: (getattr(default, n, d), t) for n, (d, t) in flags_of(hint).items()}
        else:
            flags[each.name] = (default, hint)
    return flags


def comparable(default: Any) -> Any:
    """Return a default in one form: nothing is None, and a list of one pattern is the pattern."""
    if default is False or default in ("", ()):
        return None
    return default[0] if isinstance(default, tuple) and len(default) == 1 else default


def choices(hint: Any) -> set[str]:
    """Return the words that a type, or a type of a docstring, allows; empty for any word."""
    if isinstance(hint, str):
        listed = re.search(r"\{(.*?)\}", hint)
        return {*re.findall(r'"([^"]*)"', listed[1])} if listed else set()
    if get_origin(hint) is Annotated:
        return choices(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return {*get_args(hint)}
    parts = [part for part in get_args(hint) if part is not NoneType]
    return choices(parts[0]) if len(parts) == 1 else set()


def parameters(call: Any) -> dict[str, tuple[Any, set[str]]]:
    """Return the default and the choices of each parameter of a call."""
    doc = inspect.getdoc(call) or ""
    namespace = vars(inspect.getmodule(call) or importlib.import_module("sonde"))
    named: dict[str, tuple[Any, set[str]]] = {}
    for name, parameter in inspect.signature(call).parameters.items():
        hint = parameter.annotation
        try:
            hint = eval(hint, dict(namespace)) if isinstance(hint, str) else hint
        except NameError:  # imported for the type checker alone
            hint = None
        written = re.search(rf"^{name} : (.+)$", doc, re.MULTILINE)
        named[name] = (parameter.default, choices(hint) or choices(written[1] if written else ""))
    return named


def differences(kind: type[Any], calls: dict[str, Any]) -> set[tuple[str, str, str]]:
    """Return command, call and field where a default or the choices are not those of the call."""
    different: set[tuple[str, str, str]] = set()
    for name, call in calls.items():
        known, flags = parameters(call), flags_of(kind)
        shared = known.keys() & flags.keys()
        if len(shared) < 2:
            continue  # a helper of one word
        for each in shared:
            (default, words), (typed, hint) = known[each], flags[each]
            same = inspect.Parameter.empty is default or typed is MISSING
            same = same or comparable(default) == comparable(typed)
            if not same or (words and choices(hint) and words != choices(hint)):
                different.add((kind.__name__, name, each))
    return different


@pytest.mark.parametrize("kind", EVERY, ids=[kind.__name__ for kind in EVERY])
def test_defaults_and_choices_of_a_command_are_those_of_its_calls(kind):
    calls = calls_of(importlib.import_module(kind.__module__))
    allowed = {key for key in ON_PURPOSE if key[0] == kind.__name__}
    assert differences(kind, calls) == allowed


def test_another_default_and_other_choices_are_seen():
    @dataclass(frozen=True)
    class Broken:
        level: float = 0.1
        correction: Literal["holm", "by"] = "holm"
        first: str = ""

    from sonde.run.comparing.drift_document import drift_document

    wrong = {("Broken", "drift_document", name) for name in ("level", "correction")}
    assert differences(Broken, {"drift_document": drift_document}) == wrong
