"""Parts shared by shifts: two states of equal width, and permutation p-values."""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import ShapeError
from sonde.core.shift import Side
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats import HashSample, HashSampleState, MomentsState

S = TypeVar("S", bound=State)


def side_state(side: Side, name: str, kind: type[S]) -> S:
    """Return the state of one side, detached."""
    state = side.states[name]
    if not isinstance(state, kind):
        raise TypeError(f"side_state: expected {kind.__name__}, got {type(state).__name__}.")
    return state


def two_sample_reads(m: int = HashSample().m) -> dict[str, Statistic[Any]]:
    """Return the requests of ``two_samples``: sampled rows, and one row per group."""
    return {"sample": HashSample(m), "each": HashSample(m, groups="one")}


def two_moments(owner: str, first: Side, second: Side) -> tuple[MomentsState, MomentsState]:
    """Return the moments of both sides.

    Raises
    ------
    ShapeError
        If they differ in width.
    """
    a, b = (side_state(side, "moments", MomentsState) for side in (first, second))
    check_widths(owner, a.mean.shape[0], b.mean.shape[0])
    return a, b


@dataclass(frozen=True)
class TwoSamples:
    """Sampled rows of two sides; ``paired`` if row i is the same input on both sides."""

    x: Float[Tensor, "row dim"]
    y: Float[Tensor, "row2 dim"]
    paired: bool

    def shuffles(self, times: int) -> Bool[Tensor, "time both"]:
        """Return the pooled rows on the first side in each shuffle; repeated calls agree.

        Paired rows change sides with their partner: a coin for each pair.
        """
        if not self.paired:
            return shuffles(len(self.x) + len(self.y), len(self.x), times)
        coin = torch.rand(times, len(self.x), generator=torch.Generator().manual_seed(0)) < 0.5
        return torch.cat([coin, ~coin], dim=1)

    def signs(self, times: int) -> Float[Tensor, "time row"]:
        """Return random signs of each pair's difference, as swapping sides flips the sign."""
        return 1.0 - 2.0 * self.shuffles(times)[:, : len(self.x)].double()

    def p_value(self, observed: float, shuffled: Float[Tensor, "time"]) -> float:
        """Return the permutation p-value; 1 if both sides hold equal paired values."""
        if self.paired and torch.equal(self.x, self.y):
            return 1.0
        return permutation_p(observed, shuffled)


def two_samples(owner: str, first: Side, second: Side) -> TwoSamples:
    """Return both sides' sampled rows in float64, by sampling key, with one row per group.

    The groups of smallest draw are taken, whatever their sizes. Taking the groups of sampled rows
    instead would show more long texts of the larger side. If both sides hold the same rows, by
    draws or groups, both have the same order.

    Raises
    ------
    ShapeError
        If they differ in width.
    """
    (x, ids), (y, theirs) = (_drawn(side, bool(first.groups)) for side in (first, second))
    check_widths(owner, x.shape[1], y.shape[1])
    paired = len(x) > 1 and torch.equal(ids.sort().values, theirs.sort().values)
    if paired:
        y = y[theirs.argsort()][ids.argsort().argsort()]
    return TwoSamples(x, y, paired)


def _drawn(side: Side, by_group: bool) -> tuple[Float[Tensor, "row dim"], Int[Tensor, "row"]]:
    """Return a side's sampled rows, and the sampling key or group of each row.

    Without ``each`` the rows serve for paired comparisons alone, whatever their groups.
    """
    sample = side_state(side, "sample", HashSampleState)
    if not side.groups:
        return sample.rows.double(), sample.draw
    if "each" in side.states:
        sample = side_state(side, "each", HashSampleState)
    kept = sample.first_of_each_group()
    return sample.rows[kept].double(), (sample.group if by_group else sample.draw)[kept]


def paired_rows(owner: str, first: Side, second: Side) -> TwoSamples | None:
    """Return the rows in pairs if both sides sampled equal inputs, else None."""
    if not all(isinstance(side.states.get("sample"), HashSampleState) for side in (first, second)):
        return None
    rows = two_samples(owner, first, second)
    return rows if rows.paired else None


def are_paired(first: Side, second: Side) -> bool:
    """Return whether two sides without a sample are known to hold equal inputs."""
    return bool(first.data) and first.data == second.data


def split_moments(
    rows: Float[Tensor, "row rank"], chosen: Float[Tensor, "time row"]
) -> tuple[Float[Tensor, "time rank"], Float[Tensor, "time rank rank"]]:
    """Return mean and covariance of the selected rows, for each selection."""
    count, rank = rows.shape
    products = (rows[:, :, None] * rows[:, None, :]).reshape(count, -1)
    n = chosen.sum(1)
    mean = chosen @ rows / n[:, None]
    second = (chosen @ products).reshape(-1, rank, rank)
    outer = mean[:, :, None] * mean[:, None, :]
    return mean, (second - n[:, None, None] * outer) / (n - 1)[:, None, None]


def leading_projection(rows: Float[Tensor, "row dim"], rank: int) -> Float[Tensor, "row _rank"]:
    """Return centred rows projected on their ``rank`` leading directions."""
    centred = rows - rows.mean(0)
    return centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -rank:]


def is_sampled(*sides: Side) -> bool:
    """Return whether a side has more rows than its sample."""
    return any(not side_state(s, "sample", HashSampleState).is_everything for s in sides)


def check_widths(owner: str, a: int, b: int) -> None:
    """Raise a ``ShapeError`` unless both sides have equal width."""
    if a != b:
        raise ShapeError(
            f"{owner}: expected sides of equal width, got dim={a} and dim={b}. Compare the same "
            "site of the same architecture."
        )


def shuffles(n: int, chosen: int, times: int) -> Bool[Tensor, "time n"]:
    """Return reproducible random choices of ``chosen`` out of ``n``."""
    order = torch.rand(times, n, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    picked = torch.zeros(times, n, dtype=torch.bool)
    return picked.scatter_(1, order[:, :chosen], True)


def permutation_p(observed: float, shuffled: Float[Tensor, "time"]) -> float:
    """Return ``(1 + #{shuffled >= observed}) / (1 + times)``; ties up to rounding count.

    Valid at any size: under no change the observed labels are one of the shuffles.
    """
    slack = 1e-9 * max(abs(observed), float(shuffled.abs().max()))
    return (1 + int((shuffled >= observed - slack).sum())) / (1 + len(shuffled))
