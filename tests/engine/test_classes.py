"""Class numbers of several data sets."""

import pytest
import torch

from sonde.core.stream import Stream
from sonde.engine.classes import joined_names, with_classes


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [
        ((), (), ()),
        (("x",), (), ("x",)),
        (("x", "y"), ("x",), ("x", "y")),
        (("x", "y"), ("y", "x"), None),
        (("0", "y"), ("x", "1", "2"), ("x", "y", "2")),
        (("5000", "7000"), ("7000", "9000"), None),
        (("1", "2", "3"), ("0", "1", "2"), None),
        (("1", "2", "x"), ("0", "1", "x"), None),
        (("5", "x"), ("0", "1"), None),
        (("-3", "x"), ("0", "1"), None),
        (("0",), ("x", "0"), None),
        (("x",), ("0", "x"), None),
        (("x", "y", "x"), ("x", "y"), ("x", "y", "x")),
    ],
)
def test_names_are_joined_number_by_number(a, b, both):
    assert joined_names(a, b) == both
    assert joined_names(b, a) == both


def test_numbers_without_names_are_left_as_they_are():
    stream = Stream.of(torch.randn(4, 2), label=[0, 1, 2, -1])
    assert with_classes(stream, ("x", "y")) is stream
