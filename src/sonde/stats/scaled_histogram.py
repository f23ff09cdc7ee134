"""Histogram in even bins whose width follows each unit's largest magnitude."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.stats._powers import power_of_two

FINEST = -120
MOST = 62
TOGETHER = 2**14
"""Bins that are counted at once: those of few units, so that they stay in the cache."""


@dataclass(frozen=True)
class ScaledHistogramState(State):
    """Counts of each unit by bin, for all rows and each concept's rows.

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
        """The lower edge of each bin; larger values are in this bin or a later one."""
        half = self.counts.shape[1] // 2
        steps = torch.arange(-half, half, dtype=torch.float64, device=self.counts.device)
        return steps * power_of_two(self.exponent)[:, None]

    @property
    def above(self) -> Int[Tensor, "dim bin"]:
        """Number of rows of each unit above each edge."""
        return _from_the_top(self.counts)

    @property
    def concept_above(self) -> Int[Tensor, "concept dim bin"]:
        """Number of rows of each concept above each edge."""
        return _from_the_top(self.concept_counts)


@final
@dataclass(frozen=True)
class ScaledHistogram(Statistic[ScaledHistogramState]):
    """Even bins about 0 for each unit, doubled in width if a value does not fit.

    The width is the smallest power of two at which the largest magnitude fits, and bins of one
    width lie whole in those of the next. So the counts depend on the rows alone, not on their
    order, and no earlier pass for the edges is needed.

    Parameters
    ----------
    bins : int, default=128
        A power of two. Between a quarter and half of them lie between 0 and the largest magnitude.
    concepts : str or None, default=None
        The column of each row's concepts: ``"label"`` holds one concept or none (-1); any other
        column holds bits, and bit ``k`` stands for concept ``k``.
    """

    bins: int = 128
    concepts: str | None = None

    def __post_init__(self) -> None:
        if self.bins < 4 or self.bins & (self.bins - 1):
            raise InputError(
                "ScaledHistogram: expected bins to be a power of two of at least 4, got "
                f"{self.bins}."
            )

    def needs(self) -> tuple[str, ...]:
        """Return the rows, and the column of concepts if there is one."""
        return ("x",) if self.concepts is None else ("x", self.concepts)

    def observe(
        self, x: Float[Tensor, "row dim"], concept: Int[Tensor, "row"] | None = None
    ) -> ScaledHistogramState:
        """Return the counts of a batch."""
        x = _floats(x)
        return self._counted(x, _exponent(x, self.bins), concept)

    def update(
        self,
        state: ScaledHistogramState,
        x: Float[Tensor, "row dim"],
        concept: Int[Tensor, "row"] | None = None,
    ) -> ScaledHistogramState:
        """Return the counts after these rows, in bins at least as wide as the state's."""
        x = _floats(x)
        exponent = torch.maximum(state.exponent, _exponent(x, self.bins))
        return self.merge(state, self._counted(x, exponent, concept))

    def merge(self, a: ScaledHistogramState, b: ScaledHistogramState) -> ScaledHistogramState:
        """Return the joined counts, in the wider bins of each unit."""
        n = max(len(a.concept_n), len(b.concept_n))
        inside = [_padded(s.concept_counts, n) for s in (a, b)]
        exponent = torch.maximum(a.exponent, b.exponent)
        steps = [exponent - s.exponent for s in (a, b)]
        return ScaledHistogramState(
            a.n + b.n,
            exponent,
            _sum([a.counts, b.counts], steps),
            _padded(a.concept_n, n) + _padded(b.concept_n, n),
            _sum(inside, steps),
        )

    def _counted(
        self,
        x: Float[Tensor, "row dim"],
        exponent: Int[Tensor, "dim"],
        concept: Int[Tensor, "row"] | None,
    ) -> ScaledHistogramState:
        """Return the counts of a batch in bins of these widths."""
        is_member = self._members(concept, len(x)).to(x.device)
        row, kind = torch.nonzero(is_member, as_tuple=True)
        n_kinds, bins, kind = is_member.shape[1], self.bins, kind.to(torch.int32)[:, None]
        scale, size = power_of_two(-exponent).to(x), max(1, TOGETHER // bins)
        first = torch.arange(size, dtype=torch.int32, device=x.device) * bins + bins // 2 - 1
        histograms: list[Tensor] = []
        for part, by in zip(x.split(size, 1), scale.split(size), strict=True):
            dim = part.shape[1]
            index = (part * by).ceil_().to(torch.int32).add_(first[:dim])
            index = index.index_select(0, row).add_(kind * (dim * bins))
            counts = torch.bincount(index.flatten(), minlength=n_kinds * dim * bins)
            histograms.append(counts.reshape(n_kinds, dim, bins))
        counts = torch.cat(histograms, dim=1)
        whole = counts.sum(0) if self.concepts == "label" else counts[0]
        return ScaledHistogramState(len(x), exponent, whole, is_member.sum(0)[1:], counts[1:])

    def _members(
        self, concept: Int[Tensor, "row"] | None, n_rows: int
    ) -> Bool[Tensor, "row concept"]:
        """Return membership columns: unlabelled (or all) rows first, then each concept."""
        if concept is None:
            return torch.ones(n_rows, 1, dtype=torch.bool)
        highest = int(concept.max())
        n = highest + 1 if self.concepts == "label" else highest.bit_length()
        if n > MOST:
            raise InputError(
                f"ScaledHistogram: expected at most {MOST} concepts, got {n} in the column "
                f"{self.concepts!r}. Merge some of the concepts."
            )
        number = torch.arange(n, device=concept.device)
        if self.concepts == "label":
            return torch.cat([concept[:, None] < 0, concept[:, None] == number], dim=1)
        has_bit = (concept[:, None] >> number) & 1 == 1
        return torch.cat([torch.ones_like(concept[:, None], dtype=torch.bool), has_bit], dim=1)


def _floats(x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    x = x.detach()
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _exponent(x: Float[Tensor, "row dim"], bins: int) -> Int[Tensor, "dim"]:
    """Return the exponent of the smallest power-of-two bin width that fits each unit."""
    largest = torch.maximum(x.amax(0), -x.amin(0))  # aminmax takes ten times as long along rows
    exponent = torch.frexp(largest / (bins // 2)).exponent.long().clamp(min=FINEST)
    return torch.where(largest > 0, exponent, FINEST)


def _from_the_top(counts: Int[Tensor, "*concept dim bin"]) -> Int[Tensor, "*concept dim bin"]:
    return counts.flip(-1).cumsum(-1).flip(-1)


def _sum(
    sides: Sequence[Int[Tensor, "*concept dim bin"]], steps: Sequence[Int[Tensor, "dim"]]
) -> Int[Tensor, "*concept dim bin"]:
    """Return the sum of two counts, each rebinned by ``2^steps``, unit by unit."""
    total, unit = sides[0] + sides[1], torch.nonzero(steps[0] + steps[1]).flatten()
    if len(unit) == 0:
        return total
    wide = [_widened(s.index_select(-2, unit), k[unit]) for s, k in zip(sides, steps, strict=True)]
    return total.index_copy_(-2, unit, wide[0] + wide[1])


def _widened(
    counts: Int[Tensor, "*concept dim bin"], steps: Int[Tensor, "dim"]
) -> Int[Tensor, "*concept dim bin"]:
    half = counts.shape[-1] // 2
    signed = torch.arange(-half, half, device=counts.device)
    index = torch.bitwise_right_shift(signed, steps.clamp(max=MOST)[:, None]) + half
    return torch.zeros_like(counts).scatter_add(-1, index.expand(counts.shape), counts)


def _padded(x: Tensor, n: int) -> Tensor:
    return x if len(x) == n else torch.cat([x, x.new_zeros(n - len(x), *x.shape[1:])])
