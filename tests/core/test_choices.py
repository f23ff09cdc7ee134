"""Words that are none of a parameter's choices: refused by every method, before it runs."""

import importlib
import inspect
import types
import typing
from typing import Any, Literal

import pytest

from sonde.core.errors import InputError
from sonde.core.keywords import check_choices

FAMILIES = ("measure", "detect", "explain", "edit", "compress", "layers", "stats")


def choices():
    """Yield each method that can be made from its first example, and a parameter with choices."""
    for family in FAMILIES:
        module = importlib.import_module(f"sonde.{family}")
        for name in module.__all__:
            cls = getattr(module, name)
            if not inspect.isclass(cls) or not hasattr(cls, "examples"):
                continue
            for parameter, hint in typing.get_type_hints(cls.__init__).items():
                is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
                parts = [*typing.get_args(hint)] if is_union else [hint]
                known = [p for p in parts if p is not type(None)]
                if known and all(typing.get_origin(p) is Literal for p in known):
                    yield cls, parameter


EVERY = list(choices())


def test_no_method_takes_a_word_that_is_none_of_its_choices():
    assert len(EVERY) > 100
    taken = []
    for cls, parameter in EVERY:
        example: dict[str, Any] = dict((cls.examples or ({},))[0])
        try:
            cls(**{**example, parameter: "nonsense"})
        except InputError:
            continue
        taken.append(f"{cls.__name__}.{parameter}")
    assert taken == []


def test_the_choices_and_the_near_word_are_named():
    class Own:
        def __init__(self, score: Literal["wanda", "magnitude"] | None = None, n: int = 1) -> None:
            pass

    check_choices(Own, (None,), {"n": 5})
    check_choices(Own, ("wanda",), {})
    with pytest.raises(
        InputError, match=r"score 'wanda' or 'magnitude', got 'wnda'. Did you mean wanda"
    ):
        check_choices(Own, ("wnda",), {})
