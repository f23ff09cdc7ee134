"""Counts of each unit's values in even bins whose width follows its largest magnitude."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats._powers import power_of_two

FINEST = -120
MOST = 62


@dataclass(frozen=True)
class ScaledHistogramState(State):
    """Rows of each unit in each bin, of all rows and of those of each concept.

    Bin ``j`` of a unit with ``exponent`` w holds values in ``(2^w (j - h), 2^w (j + 1 - h)]``, with
    ``h`` half the number of bins: an edge lies at 0, and a value of exactly 0 is below it.
    """

    n: int
    exponent: Int[Tensor, "dim"]
    counts: Int[Tensor, "dim bin"]
    concept_n: Int[Tensor, "concept"]
    concept_counts: Int[Tensor, "concept dim bin"]

    @property
    def edges(self) -> Float[Tensor, "dim bin"]:
        """The lower edge of each bin; what is above it lies in the bin or in a later one."""
        half = self.counts.shape[1] // 2
        steps = torch.arange(-half, half, dtype=torch.float64, device=self.counts.device)
        return steps * power_of_two(self.exponent)[:, None]

    @property
    def above(self) -> Int[Tensor, "dim bin"]:
        """Rows of each unit above each edge."""
        return _from_the_top(self.counts)

    @property
    def concept_above(self) -> Int[Tensor, "concept dim bin"]:
        """Rows of each concept above each edge."""
        return _from_the_top(self.concept_counts)


@final
@dataclass(frozen=True)
class ScaledHistogram(Statistic[ScaledHistogramState]):
    """Even bins about 0 for each unit, twice as wide whenever a value does not fit. Exact.

    The width is the smallest power of two at which the largest magnitude fits, and bins of one
    width lie whole in those of the next. So the counts depend on the rows alone, not on their
    order, and no pass for edges comes before.

    Parameters
    ----------
    bins : int, default=128
        A power of two. Between a quarter and half of them lie between 0 and the largest magnitude.
    concepts : str or None, default=None
        A column that says to which concepts a row belongs: ``"label"``, one concept or none (-1);
        any other holds bits, concept ``k`` where bit ``k`` is set.
    """

    bins: int = 128
    concepts: str | None = None

    def __post_init__(self) -> None:
        if self.bins < 4 or self.bins & (self.bins - 1):
            raise InputError(
                f"ScaledHistogram: expected bins as a power of two from 4 on, got {self.bins}."
            )

    def needs(self) -> tuple[str, ...]:
        """Return the rows, and the column of concepts where there is one."""
        return ("x",) if self.concepts is None else ("x", self.concepts)

    def observe(
        self, x: Float[Tensor, "row dim"], concept: Int[Tensor, "row"] | None = None
    ) -> ScaledHistogramState:
        """Return the counts of a batch."""
        x = x.detach()
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        half, dim = self.bins // 2, x.shape[1]
        low, high = x.aminmax(dim=0)
        largest = torch.maximum(-low, high)
        exponent = torch.frexp(largest / half).exponent.long().clamp(min=FINEST)
        exponent = torch.where(largest > 0, exponent, FINEST)
        scale = power_of_two(-exponent).to(x)
        offset = torch.arange(dim, dtype=torch.int32, device=x.device) * self.bins + half - 1
        index = (x * scale).ceil_().to(torch.int32).add_(offset)
        members = self._members(concept, x.device)
        return ScaledHistogramState(
            len(x),
            exponent,
            self._counted(index, dim),
            torch.tensor([len(rows) for rows in members], dtype=torch.int64, device=x.device),
            torch.stack([self._counted(index[rows], dim) for rows in members])
            if members
            else torch.zeros(0, dim, self.bins, dtype=torch.int64, device=x.device),
        )

    def merge(self, a: ScaledHistogramState, b: ScaledHistogramState) -> ScaledHistogramState:
        """Return the counts of both in bins of the wider width of each unit."""
        exponent = torch.maximum(a.exponent, b.exponent)
        n_concepts = max(len(a.concept_n), len(b.concept_n))
        sides = [
            (
                _widened(s.counts, exponent - s.exponent),
                _padded(s.concept_n, n_concepts),
                _padded(_widened(s.concept_counts, exponent - s.exponent), n_concepts),
            )
            for s in (a, b)
        ]
        return ScaledHistogramState(
            a.n + b.n,
            exponent,
            sides[0][0] + sides[1][0],
            sides[0][1] + sides[1][1],
            sides[0][2] + sides[1][2],
        )

    def _counted(self, index: Int[Tensor, "row dim"], dim: int) -> Int[Tensor, "dim bin"]:
        counts = torch.bincount(index.flatten(), minlength=dim * self.bins)
        return counts.reshape(dim, self.bins)

    def _members(
        self, concept: Int[Tensor, "row"] | None, device: torch.device
    ) -> list[Int[Tensor, "_member"]]:
        """Return the rows of each concept."""
        if concept is None:
            return []
        highest = int(concept.max())
        n = highest + 1 if self.concepts == "label" else highest.bit_length()
        if n > MOST:
            raise InputError(
                f"ScaledHistogram: expected at most {MOST} concepts, got {n} in the column "
                f"{self.concepts!r}. Join some of them."
            )
        is_label = self.concepts == "label"
        masks = ((concept == k) if is_label else (concept >> k) & 1 == 1 for k in range(n))
        return [torch.nonzero(mask).flatten().to(device) for mask in masks]


def _from_the_top(counts: Int[Tensor, "*concept dim bin"]) -> Int[Tensor, "*concept dim bin"]:
    return counts.flip(-1).cumsum(-1).flip(-1)


def _widened(
    counts: Int[Tensor, "*concept dim bin"], steps: Int[Tensor, "dim"]
) -> Int[Tensor, "*concept dim bin"]:
    """Return the counts in bins ``2^steps`` times as wide, unit by unit."""
    if not bool(steps.any()):
        return counts
    half = counts.shape[-1] // 2
    signed = torch.arange(-half, half, device=counts.device)
    index = torch.bitwise_right_shift(signed, steps.clamp(max=MOST)[:, None]) + half
    return torch.zeros_like(counts).scatter_add(-1, index.expand(counts.shape), counts)


def _padded(x: Tensor, n: int) -> Tensor:
    return torch.cat([x, x.new_zeros(n - len(x), *x.shape[1:])])
