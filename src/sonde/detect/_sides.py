"""What the shifts share: two states of one width, and permutation p-values."""

from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.core.shift import Side
from sonde.core.state import State
from sonde.stats import HashSampleState, MomentsState

S = TypeVar("S", bound=State)


def state_of(side: Side, name: str, kind: type[S]) -> S:
    """Return one state of a side, detached."""
    state = side.states[name]
    if not isinstance(state, kind):
        raise TypeError(f"state_of: expected {kind.__name__}, got {type(state).__name__}.")
    return state


def two_moments(owner: str, first: Side, second: Side) -> tuple[MomentsState, MomentsState]:
    """Return the moments of both sides.

    Raises
    ------
    ShapeError
        If they differ in width.
    """
    a, b = (state_of(side, "moments", MomentsState) for side in (first, second))
    check_widths(owner, a.mean.shape[0], b.mean.shape[0])
    return a, b


def two_samples(
    owner: str, first: Side, second: Side
) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "row2 dim"]]:
    """Return the sampled rows of both sides in float64, in order of draw; of groups, one row each.

    Raises
    ------
    ShapeError
        If they differ in width.
    """
    rows: list[Tensor] = []
    for side in (first, second):
        sample = state_of(side, "sample", HashSampleState)
        one_each = sample.rows[sample.first_of_each_group()] if side.groups else sample.rows
        rows.append(one_each.double())
    check_widths(owner, rows[0].shape[1], rows[1].shape[1])
    return rows[0], rows[1]


def is_sampled(*sides: Side) -> bool:
    """Return whether a side has more rows than its sample."""
    return any(not state_of(s, "sample", HashSampleState).is_everything for s in sides)


def check_widths(owner: str, a: int, b: int) -> None:
    """Raise a ``ShapeError`` unless both sides have one width."""
    if a != b:
        raise ShapeError(
            f"{owner}: expected sides of one width, got dim={a} and dim={b}. "
            "Compare the same site of the same architecture."
        )


def shuffles(n: int, chosen: int, times: int) -> Bool[Tensor, "time n"]:
    """Return random choices of ``chosen`` out of ``n``, always the same ones."""
    order = torch.rand(times, n, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    picked = torch.zeros(times, n, dtype=torch.bool)
    return picked.scatter_(1, order[:, :chosen], True)


def permutation_p(observed: float, shuffled: Float[Tensor, "time"]) -> float:
    """Return ``(1 + #{shuffled >= observed}) / (1 + times)``; ties up to rounding count.

    Valid at any size: under no change the observed labels are one of the shuffles.
    """
    slack = 1e-9 * max(abs(observed), float(shuffled.abs().max()))
    return (1 + int((shuffled >= observed - slack).sum())) / (1 + len(shuffled))
