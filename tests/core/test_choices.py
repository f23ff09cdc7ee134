"""Words and types that a parameter does not take: refused by every method, before it runs."""

import importlib
import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch

from sonde.core.errors import InputError
from sonde.core.keywords import check_values

FAMILIES = ("measure", "detect", "explain", "edit", "compress", "layers", "stats")


def wrong_values() -> Iterator[tuple[Any, str, Any]]:
    """Yield methods that can be made from their first example, a parameter, and a wrong value."""
    for family in FAMILIES:
        module = importlib.import_module(f"sonde.{family}")
        for name in module.__all__:
            cls = getattr(module, name)
            if not inspect.isclass(cls) or not hasattr(cls, "examples"):
                continue
            hints = typing.get_type_hints(cls.__init__)
            hints.pop("return", None)
            for parameter, hint in hints.items():
                is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
                parts = {*typing.get_args(hint)} if is_union else {hint}
                numbers = parts & {int, float, bool}
                others = parts - {int, float, bool, str, type(None)}
                if any(typing.get_origin(part) is not Literal for part in others):
                    continue
                if str not in parts:
                    yield cls, parameter, "nonsense"
                if numbers == {int}:
                    yield cls, parameter, 2.5
                if numbers == {bool} or parts == {str}:
                    yield cls, parameter, 1


EVERY = list(wrong_values())


def test_no_method_takes_a_value_that_a_parameter_does_not_list():
    assert len(EVERY) > 500
    taken = []
    for cls, parameter, value in EVERY:
        example: dict[str, Any] = dict((cls.examples or ({},))[0])
        try:
            cls(**{**example, parameter: value})
        except InputError:
            continue
        taken.append(f"{cls.__name__}.{parameter}={value!r}")
    assert taken == []


def test_numbers_of_other_libraries_are_numbers():
    class Own:
        def __init__(self, n: int = 1, rate: float | None = None, deep: bool = False) -> None:
            pass

    for n in (np.int64(3), torch.tensor(3)):
        check_values(Own, (n,), {"rate": 1, "deep": np.bool_(True)})
    check_values(Own, (), {"rate": None})
    for wrong, text in (({"n": None}, "n an integer, got None"), ({"rate": True}, "rate a number")):
        with pytest.raises(InputError, match=text):
            check_values(Own, (), wrong)


def test_the_choices_and_the_near_word_are_named():
    class Own:
        def __init__(self, score: Literal["wanda", "magnitude"] | None = None, n: int = 1) -> None:
            pass

    check_values(Own, (None,), {"n": 5})
    check_values(Own, ("wanda",), {})
    with pytest.raises(
        InputError, match=r"score 'wanda' or 'magnitude', got 'wnda'. Did you mean wanda"
    ):
        check_values(Own, ("wnda",), {})
