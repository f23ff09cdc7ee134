"""The checker under pytest skips calls whose like was right, and no others."""

from dataclasses import dataclass
from typing import Any, Literal

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shape_checker import check

checked: Any = jaxtyping.jaxtyped(typechecker=check)  # what the hook puts around each function
calls: list[int] = []


@checked
def product(x: Float[Tensor, "row dim"], y: Float[Tensor, "dim out"]) -> Float[Tensor, "row out"]:
    calls.append(1)
    return x @ y if len(calls) < 3 else (x @ y)[:1]


@checked
def reduced(x: Float[Tensor, "row dim"], how: Literal["sum", "mean"], axis: int = 0) -> Any:
    return getattr(x, how)(axis)


@checked
@dataclass(frozen=True)
class Rows:
    x: Float[Tensor, "row dim"]
    ids: list[int]


def test_a_result_of_another_size_is_caught_after_right_ones_and_runs_once():
    x, y = torch.ones(2, 3), torch.ones(3, 2)
    assert product(x, y).shape == product(x, y).shape == (2, 2)
    with pytest.raises(jaxtyping.TypeCheckError):
        product(x, y)
    assert len(calls) == 3


def test_sizes_dtypes_and_words_are_compared_after_right_ones():
    x = torch.ones(2, 3)
    for _ in range(2):
        reduced(x, "sum")
        reduced(x, how="mean", axis=1)
    for wrong in ((torch.ones(2), "sum"), (x.int(), "sum"), (x, "amax"), (x, "sum", "0"), (x, 1)):
        with pytest.raises(jaxtyping.TypeCheckError):
            reduced(*wrong)


def test_fields_are_compared_after_right_ones():
    for n in (2, 20):
        Rows(torch.ones(2, 3), [*range(n)])
        Rows(torch.ones(2, 3), [*range(n)])
        with pytest.raises(jaxtyping.TypeCheckError):
            Rows(torch.ones(2, 3), ["a"] * n)  # pyright: ignore[reportArgumentType]
    with pytest.raises(jaxtyping.TypeCheckError):
        Rows(torch.ones(3), [])
