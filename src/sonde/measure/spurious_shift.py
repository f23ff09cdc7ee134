"""Compare the variance of rows due to the context and due to the concept."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.few_groups import FEW_GROUPS
from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.measure._cells import VALUES, CellMoments
from sonde.stats import ClassMomentsState
from sonde.stats.joint_counts import entropy_nats, information_nats
from sonde.stats.normal_equations import GRAM_CUT


@final
@dataclass(frozen=True, kw_only=True)
class SpuriousShiftResult(Result):
    """Fraction due to context minus fraction due to concept, with both and the labels' dependence.

    ``mutual`` is the mutual information of concept and context over the root of the product of
    their entropies, ``cramers_v`` another figure of the same counts: 0 where they are independent.
    """

    direction: Direction = "higher"
    share_concept: float
    share_context: float
    share_interaction: float
    mutual: float
    cramers_v: float

    def since(self, train: "SpuriousShiftResult") -> "SpuriousShiftResult":
        """Return this value minus that of the training rows, as independent samples."""
        errors = [r.se for r in (self, train)]
        defined = [float(e) for e in errors if e is not None]
        nulls = [float(torch.as_tensor(r.null)) for r in (self, train)]
        return replace(
            self,
            value=float(self) - float(train),
            se=math.hypot(*defined) if len(defined) == 2 else None,
            null=nulls[0] - nulls[1],
            range=(-2.0, 2.0),
            conventions={**self.conventions, "from": "the same statistic of the training rows"},
        )


@final
@dataclass(frozen=True)
class SpuriousShift(Instrument):
    """Fraction of cell means' variance explained by context, minus that by concept.

    A cell is a concept (the label) in a context. Its mean counts once, however many rows it has:
    ``SS_context / SS - SS_concept / SS`` of a two-way design, what is left is their interaction.
    If cells are empty, the effects are fitted by least squares and squared over the full table.
    Measure test rows and subtract the value of training rows (``since``).

    Range        [-1, 1]; higher = context matters more. Invariant to  rotation, isotropic scale,
                 shifts.
    Cost         one pass; state 8 cells (dim + 2) bytes.
    Assumes      at least two concepts and two contexts, linked by at least as many cells as there
                 are concepts and contexts together, each of 8 rows or more (else flag ``few_rows``:
                 the error is too small); rows without a concept or a context are left out. The
                 null is that of contexts without meaning.
    Differs      from the paper: shares of variance of cells in place of cosines with anchors.

    Parameters
    ----------
    context : str, default="side"
        Column of whole numbers that says in which context a row was seen.

    Examples
    --------
    >>> import torch
    >>> concept, context = torch.cartesian_prod(torch.arange(3), torch.arange(4)).repeat(2, 1).T
    >>> x = torch.cat([0.6 * torch.eye(3)[concept], 0.8 * torch.eye(4)[context]], 1)
    >>> round(spurious_shift(x, concept, context).value, 6)
    0.333333

    References
    ----------
    zhang2024metacoco
    """

    context: str = "side"
    least_rows: ClassVar[int] = 4
    paper: ClassVar[str] = "zhang2024metacoco"

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for each cell's moments."""
        return {"cells": CellMoments(self.context, "trace")}

    def result(self, cells: ClassMomentsState) -> SpuriousShiftResult:
        """Decompose the variance of the cell means."""
        design = _Design.of(cells)
        concept, context, rest = design.squares(cells.mean)
        total = concept + context + rest
        dead = not bool(total.detach() > 0)
        part = [float(p.detach() / total.detach()) for p in (concept, context)]
        counts = design.table(cells.n)
        in_cell = len(cells.n) / float((1.0 / cells.n.double()).sum())  # harmonic mean
        few = () if in_cell >= FEW_GROUPS else ("few_rows",)
        return SpuriousShiftResult(
            value=math.nan if dead else (context - concept) / total,
            null=design.without_meaning(cells, float(concept.detach())),
            n=cells.n_labelled,
            range=(-1.0, 1.0),
            flags=("dead", *few) if dead else few,
            conventions={"cells": "means weigh alike", "context": self.context},
            share_concept=part[0],
            share_context=part[1],
            share_interaction=1.0 - part[0] - part[1],
            mutual=float(
                information_nats(counts)
                / (entropy_nats(counts.sum(0)) * entropy_nats(counts.sum(1))).sqrt()
            ),
            cramers_v=_cramers_v(counts),
        )


@final
@dataclass(frozen=True)
class _Design:
    """The additive least-squares fit of cell means; cells may be empty.

    ``concept @ mean`` and ``context @ mean`` are the effects, ``rest @ mean`` what they leave.
    """

    at: Int[Tensor, "cell 2"]
    concept: Float[Tensor, "concept cell"]
    context: Float[Tensor, "context cell"]
    rest: Float[Tensor, "cell cell"]

    @classmethod
    def of(cls, cells: ClassMomentsState) -> "_Design":
        """Solve for the effects, each kind with mean 0."""
        if not len(cells.labels):
            raise InputError(
                "SpuriousShift: expected rows with a label (the concept), got none. Pass label=, "
                "or name the column of the concept."
            )
        parts = (cells.labels // VALUES, cells.labels % VALUES)
        at = torch.stack([torch.unique(p, return_inverse=True)[1] for p in parts], 1)
        a, b = (len(torch.unique(p)) for p in parts)
        one = torch.cat([torch.eye(a)[at[:, 0].cpu()], torch.eye(b)[at[:, 1].cpu()]], 1).double()
        if min(a, b) < 2 or int(torch.linalg.matrix_rank(one)) < a + b - 1 or len(at) < a + b:
            raise InputError(
                "SpuriousShift: expected at least two concepts and two contexts that are "
                f"linked by more than {a + b - 1} cells, got {len(at)} cells of {a} concepts "
                f"and {b} contexts. Leave out concepts and contexts that occur in only one "
                "cell."
            )
        fit = torch.linalg.pinv(one, rtol=GRAM_CUT)  # of rank a + b - 1 by construction
        effects = [e - e.mean(0) for e in (fit[:a], fit[a:])]
        rest = torch.eye(len(at)).double() - one @ fit
        return cls(at, *(m.to(cells.mean) for m in (*effects, rest)))

    def table(self, values: Tensor) -> Tensor:
        """Return the cells' values as a table; 0 for an empty cell."""
        cells = values.new_zeros(len(self.concept), len(self.context))
        return cells.index_put((self.at[:, 0], self.at[:, 1]), values)

    def squares(self, mean: Float[Tensor, "cell dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums of squares of concept, context and residual, over a full table."""
        maps = (self.concept, self.context, self.rest)
        return tuple(  # pyright: ignore[reportReturnType]
            w * (m @ (mean - mean[:1])).square().sum()
            for w, m in zip(self._weights, maps, strict=True)
        )

    def without_meaning(self, cells: ClassMomentsState, concept: float) -> float:
        """Return the expected value if contexts were random within each concept."""
        own = self.at[:, 0]
        weight, within, mean = cells.weight.detach(), cells.within.detach(), cells.mean.detach()
        zero = weight.new_zeros(len(self.concept))
        n = zero.index_add(0, own, weight)
        sums = mean.new_zeros(len(n), mean.shape[1])
        centre = sums.index_add(0, own, weight[:, None] * mean) / n[:, None]
        scatter = within + weight * (mean - centre[own]).square().sum(1)
        noise = (zero.index_add(0, own, scatter) / (n - 1))[own] / weight
        context, rest = (
            w * float(m.square().sum(0) @ noise)
            for w, m in zip(self._weights[1:], (self.context, self.rest), strict=True)
        )
        total = concept + context + rest
        return (context - concept) / total if total > 0 else math.nan

    @property
    def _weights(self) -> tuple[int, int, float]:
        a, b = len(self.concept), len(self.context)
        return b, a, (a - 1) * (b - 1) / (len(self.at) - a - b + 1)


def _cramers_v(counts: Int[Tensor, "concept context"]) -> float:
    share = counts.double() / counts.sum()
    even = share.sum(1, keepdim=True) * share.sum(0)
    return math.sqrt(float(((share - even).square() / even).sum()) / (min(counts.shape) - 1))


spurious_shift = as_function(SpuriousShift, "label", "side")
