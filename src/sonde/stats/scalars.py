"""Count, mean, variance, range and zeros of scalars: a site's units, or one per row."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from sonde.core.columns import COLUMNS
from sonde.core.errors import InputError
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats.moments import centre, centred_squares


@dataclass(frozen=True)
class ScalarsState(State):
    """Summary of ``n`` values of each unit; ``scatter`` is the sum of squares about the mean."""

    n: int
    mean: Float[Tensor, "dim"]
    scatter: Float[Tensor, "dim"]
    low: Float[Tensor, "dim"]
    high: Float[Tensor, "dim"]
    zeros: Int[Tensor, "dim"]

    @property
    def variance(self) -> Float[Tensor, "dim"]:
        """Variance of each unit, with divisor ``n``."""
        return self.scatter / self.n

    @property
    def mean_square(self) -> Float[Tensor, "dim"]:
        """Mean of the squares of each unit."""
        return self.mean.square() + self.scatter / self.n


@final
@dataclass(frozen=True)
class Scalars(Statistic[ScalarsState]):
    """Count, mean, scatter, minimum, maximum and zeros of each unit, however rows are divided.

    Parameters
    ----------
    column : str, default="x"
        What is summarised; a column of one number for each row counts as one unit.
    """

    column: str = "x"

    def __post_init__(self) -> None:
        if self.column not in COLUMNS or self.column == "head":
            raise InputError(f"Scalars: expected a column of rows, got {self.column!r}.")

    def needs(self) -> tuple[str, ...]:
        """Return the summarised column."""
        return (self.column,)

    def observe(self, values: Num[Tensor, "row *dim"]) -> ScalarsState:
        """Return the summary of a batch."""
        x = values.reshape(len(values), -1)
        x = x if x.dtype in (torch.float32, torch.float64) else x.double()
        mean, centred, residual = centre(x)
        scatter = centred_squares(x, mean, centred, residual)
        low, high = x.amin(0).double(), x.amax(0).double()
        return ScalarsState(len(x), mean, scatter, low, high, _zeros(x, low, high))

    def merge(self, a: ScalarsState, b: ScalarsState) -> ScalarsState:
        """Return the joined summary."""
        n, delta = a.n + b.n, b.mean - a.mean
        return ScalarsState(
            n,
            a.mean + delta * (b.n / n),
            a.scatter + b.scatter + (a.n * b.n / n) * delta.square(),
            torch.minimum(a.low, b.low),
            torch.maximum(a.high, b.high),
            a.zeros + b.zeros,
        )

    def influence(
        self, state: ScalarsState, gradient: ScalarsState, values: Num[Tensor, "row *dim"]
    ) -> Float[Tensor, "row"]:
        """Return ``g_mean . z / n + g_scatter . z^2``; range and zeros have no gradient."""
        z = values.reshape(len(values), -1).to(state.mean) - state.mean
        return z @ gradient.mean / state.n + z.square() @ gradient.scatter


def _zeros(
    x: Float[Tensor, "row dim"], low: Float[Tensor, "dim"], high: Float[Tensor, "dim"]
) -> Int[Tensor, "dim"]:
    """Return the number of exact zeros of each unit.

    The comparison is written as floats and summed by a product: several times faster than a sum of
    booleans over rows.
    """
    if not bool(((low <= 0) & (high >= 0)).any()):
        return torch.zeros(x.shape[1], dtype=torch.int64, device=x.device)
    is_zero = torch.eq(x, 0, out=torch.empty_like(x))
    return (x.new_ones(len(x)) @ is_zero).long()
