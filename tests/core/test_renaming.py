"""Old names of parameters: every renamed name warns, and files that hold it still load."""

import importlib
import inspect
import pkgutil
from dataclasses import replace
from typing import Any

import pytest

import sonde
from sonde.cli.commands import COMMANDS
from sonde.cli.edits import EDITS
from sonde.core import renaming
from sonde.core.errors import InputError, RenamedWarning
from sonde.core.instrument import Instrument
from sonde.core.renaming import current_names, former_names, renamed
from sonde.core.state import digest
from sonde.detect import ASH
from sonde.engine.requests import Task
from sonde.layers import Exchange
from sonde.layers.saving import _made  # pyright: ignore[reportPrivateUsage]
from sonde.run.instruments.entries import (
    _task_of,  # pyright: ignore[reportPrivateUsage]
    entry_of,
)
from sonde.run.instruments.words import parse_methods


def renamed_exports() -> dict[str, Any]:
    """Return every export of sonde with a renamed parameter."""
    rooms = [m.name for m in pkgutil.iter_modules(sonde.__path__) if not m.name.startswith("_")]
    packages = [sonde, *(importlib.import_module(f"sonde.{room}") for room in rooms)]
    exports = {
        f"{package.__name__}.{name}": getattr(package, name)
        for package in packages
        for name in getattr(package, "__all__", ())
    }
    return {
        name: value
        for name, value in exports.items()
        if former_names(value) or getattr(value, renaming.MAPPINGS, ())
    }


EXPORTS = renamed_exports()
CASES = [(name, new) for name, value in EXPORTS.items() for new in former_names(value)]


@pytest.mark.parametrize(("name", "new"), CASES)
def test_an_old_name_warns_and_means_the_new_one(name: str, new: str):
    target = EXPORTS[name]
    old = former_names(target)[new]
    parameters = inspect.signature(target).parameters
    assert old not in parameters
    assert new in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    with pytest.warns(RenamedWarning, match=f"'{old}' is now called '{new}'"):
        assert current_names(target, {old: 1}, warn=True) == {new: 1}
    value = parameters[new].default if new in parameters else 1
    with pytest.raises(InputError, match=f"expected {new}= alone"):
        target(**{old: value, new: value})
    missing = [p for p in parameters.values() if p.default is p.empty and p.name != new]
    if missing and missing[0].kind not in (
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    ):
        with (
            pytest.warns(RenamedWarning),
            pytest.raises(TypeError, match=f"missing|parameter {new}="),
        ):
            target(**{old: value})
    elif isinstance(target, type):
        with pytest.warns(RenamedWarning):
            made = target(**{old: value})
        assert getattr(made, new) == value
        with pytest.warns(RenamedWarning, match=f"attribute '{old}' is now called '{new}'"):
            assert getattr(made, old) == value


MAPPINGS = [
    (name, old) for name, value in EXPORTS.items() for old in getattr(value, renaming.MAPPINGS, ())
]


@pytest.mark.parametrize(("name", "old"), MAPPINGS)
def test_an_old_mapping_of_options_becomes_keywords(name: str, old: str):
    target = EXPORTS[name]
    word = {"loading": "dtype", "running": "workers"}[old]
    assert word in inspect.signature(target).parameters
    with pytest.warns(RenamedWarning, match=f"{word}= without {old}="):
        assert current_names(target, {old: {word: 1}}, warn=True) == {word: 1}
    with pytest.raises(InputError, match=f"expected {word}= once"):
        target(**{old: {word: 1}, word: 1})
    with pytest.warns(RenamedWarning), pytest.raises(TypeError, match=f"missing|parameter {word}="):
        target(**{old: {word: 1}})


INSTRUMENTS = [
    value for value in EXPORTS.values() if isinstance(value, type) and issubclass(value, Instrument)
]


@pytest.mark.parametrize("kind", INSTRUMENTS)
def test_a_fitted_file_with_old_names_loads(kind: type[Instrument]):
    instrument = kind(**kind.examples[-1])
    entry = entry_of(Task(instrument, ("0:out",)))
    current = {old: new for new, old in former_names(kind).items()}
    older = {old: entry["params"].pop(new) for old, new in current.items()}
    entry |= {"params": entry["params"] | older, "digest": digest(instrument, former=True)}
    assert _task_of(entry, ()).instrument == instrument
    name, value = next(iter(older.items()))
    other = replace(instrument, **{current[name]: 0.9 * value})  # type: ignore[type-var]
    assert digest(other, former=True) != entry["digest"]


def test_the_identity_under_old_names_is_that_of_older_files():
    # printed by the version before the parameter was renamed
    assert digest(ASH(remove=0.5), former=True) == "8319c3cfda5fc9c6c113b119491752ff"
    assert digest(ASH(remove=0.5)) != digest(ASH(remove=0.5), former=True)


def test_words_and_saved_layers_accept_old_names(tmp_path: Any):
    with pytest.warns(RenamedWarning, match="'share' is now called 'remove'"):
        assert parse_methods("ash(share=0.5)") == [ASH(remove=0.5)]
    entry = {"class": "Exchange", "parameters": {"how": "swap", "share": 0.25}}
    layer = _made(tmp_path, "0", entry, {})
    assert isinstance(layer, Exchange)
    assert layer.move == 0.25


def test_old_flags_are_translated_with_a_note(capsys: pytest.CaptureFixture[str]):
    from sonde.cli._usage import current_flags

    kinds = [*COMMANDS.items(), *EDITS.items()]
    cases = [(word, kind, new, old) for word, kind in kinds
             for new, old in former_names(kind).items()]  # fmt: skip
    assert len(cases) >= 3
    for word, kind, new, old in cases:
        before, after = (f"--{name.replace('_', '-')}" for name in (old, new))
        assert current_flags(kind, word, ["x", f"{before}=1", before, "2"]) == [
            "x", f"{after}=1", after, "2"
        ]  # fmt: skip
        assert f"{before} is now called {after}" in capsys.readouterr().err


def test_a_class_that_lost_its_translation_is_seen():
    class Plain:
        def __init__(self, remove: float = 0.5) -> None:
            self.remove = remove

    with pytest.raises(TypeError, match="share"):
        Plain(share=0.1)  # type: ignore[call-arg]
    with pytest.warns(RenamedWarning):
        assert renamed(remove="share")(Plain)(share=0.1).remove == 0.1  # type: ignore[call-arg]
