"""Whether rows vary by context more than by concept: by where a thing is seen, not what it is."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.measure._cells import CellMoments, shape_of
from sonde.stats import ClassMomentsState
from sonde.stats.joint_counts import entropy_nats, information_nats


@final
@dataclass(frozen=True, kw_only=True)
class SpuriousShiftResult(Result):
    """Share of context less share of concept, with both and how the labels go together.

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
        """Return this figure less that of the training rows; the rows are independent."""
        errors = [r.se for r in (self, train)]
        known = [float(e) for e in errors if e is not None]
        nulls = [float(torch.as_tensor(r.null)) for r in (self, train)]
        return replace(
            self,
            value=float(self) - float(train),
            se=math.hypot(*known) if len(known) == 2 else None,
            null=nulls[0] - nulls[1],
            range=(-2.0, 2.0),
            conventions={**self.conventions, "from": "the same figure of training rows"},
        )


@final
@dataclass(frozen=True)
class SpuriousShift(Instrument):
    """Share of the variance of cell means that context explains, less that of concept.

    A cell is a concept (the label) in a context. Its mean counts once, however many rows it has:
    ``SS_context / SS - SS_concept / SS`` of a two-way design, what is left is their interaction.
    Take it on test rows and subtract that of training rows (``since``).

    Range        [-1, 1]; higher = context matters more. Invariant to  rotation, isotropic scale,
                 shifts.
    Cost         one pass; state 8 cells (dim + 2) bytes.
    Assumes      every concept is seen in every context, and at least two of each; rows without one
                 of the two are left out. The null is that of contexts without meaning.
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
        """Read the moments of each cell."""
        return {"cells": CellMoments(self.context, "trace")}

    def result(self, cells: ClassMomentsState) -> SpuriousShiftResult:
        """Split the variance of the cell means."""
        shape = shape_of(cells)
        if min(shape) < 2 or len(cells.labels) != shape[0] * shape[1]:
            raise InputError(
                "SpuriousShift: expected every concept in every context, at least two of each, got "
                f"{len(cells.labels)} cells of {shape[0]} concepts and {shape[1]} contexts. "
                "Leave out those that are not seen everywhere."
            )
        mean = cells.mean.reshape(*shape, -1)
        gap = mean - mean.mean((0, 1))
        total = gap.square().sum()
        concept = shape[1] * gap.mean(1).square().sum()
        context = shape[0] * gap.mean(0).square().sum()
        dead = not bool(total.detach() > 0)
        part = [float(p.detach() / total.detach()) for p in (concept, context)]
        counts = cells.n.reshape(shape)
        return SpuriousShiftResult(
            value=math.nan if dead else (context - concept) / total,
            null=_without_meaning(cells, mean.detach(), float(concept.detach())),
            n=cells.n_labelled,
            range=(-1.0, 1.0),
            flags=("dead",) if dead else (),
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


def _without_meaning(
    cells: ClassMomentsState, mean: Float[Tensor, "concept context dim"], concept: float
) -> float:
    """Return the value to expect if the contexts of each concept's rows were drawn at random."""
    shape = mean.shape[:2]
    weight, within = (v.detach().reshape(shape) for v in (cells.weight, cells.within))
    n = weight.sum(1, keepdim=True)
    own = (weight[..., None] * mean).sum(1, keepdim=True) / n[..., None]
    scatter = within + weight * (mean - own).square().sum(2)
    spread = scatter.sum(1, keepdim=True) / (n - 1)
    noise = float((spread / weight).mean()) * (shape[1] - 1)
    total = concept + shape[0] * noise
    return (noise - concept) / total if total > 0 else math.nan


def _cramers_v(counts: Int[Tensor, "concept context"]) -> float:
    share = counts.double() / counts.sum()
    even = share.sum(1, keepdim=True) * share.sum(0)
    return math.sqrt(float(((share - even).square() / even).sum()) / (min(counts.shape) - 1))


spurious_shift = as_function(SpuriousShift, "label", "side")
