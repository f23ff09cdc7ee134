"""Unbiased distances between class means: 0 on average if the means are equal.

A plain distance of noisy means is never 0. For distances between single rows see ``rsa``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.chart import Chart, cells, matrix
from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.measure._cells import CellMoments, PartsOfGroups, PartsOfGroupsState, shape_of
from sonde.stats import ClassMomentsState
from sonde.stats.shrinkage import Shrinkage, check_shrinkage, shrunk


@final
@dataclass(frozen=True, kw_only=True)
class CrossnobisResult(Result):
    """Mean over class pairs; ``distance`` holds each pair's, in ascending order of labels."""

    title: ClassVar[str] = "Cross-validated distances between classes"
    direction: Direction = "higher"
    distance: Float[Tensor, "class class"]

    def chart(self) -> Chart:
        """Return a chart with a heat map of the classes."""
        rows = cells(self.distance.tolist(), "other", "class", "distance")
        return matrix(self.title, rows, "class", "other", "distance")


@final
@dataclass(frozen=True)
class Crossnobis(Instrument):
    """Squared Mahalanobis distance of class means, from products of independent parts of the rows.

    Rows come in parts (runs, documents, halves): a column says which. The distance of classes ``a``
    and ``b`` is the mean over parts ``f != h`` of ``(m_a^f - m_b^f)' P (m_a^h - m_b^h) / dim`` with
    the inverse ``P`` of the shrunk covariance within cells. Noise of different parts is
    independent, so the estimate is right on average; that of a zero distance can be below 0.

    Range        (-inf, inf), mostly above 0; the null is 0; higher = further apart. Invariant to
                 rotation, isotropic scale, shifts; without shrinkage to invertible linear maps.
    Cost         one pass; state 8 (dim^2 + classes parts dim) bytes; result O(dim^3).
    Assumes      parts that are independent, every class in every part, at least two of each. Rows
                 without a class or a part are left out. If a group (a person, a document) has rows
                 in several parts, the value is too high: flag ``divided_groups``.
    Differs      from the paper: one covariance for all parts, whose own noise is not crossed.

    Parameters
    ----------
    fold : str, default="side"
        Column of whole numbers that says to which part a row belongs.
    whiten : bool, default=True
        False: Euclidean distances.
    shrinkage : float or "oas", default="oas"
        Weight in [0, 1] of the scaled identity in the covariance.

    Examples
    --------
    >>> x = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    >>> label, fold = torch.arange(600) % 3, torch.arange(600) // 3 % 2
    >>> abs(crossnobis(x, label, fold).value) < 0.02
    True

    References
    ----------
    walther2016reliability
    """

    fold: str = "side"
    whiten: bool = True
    shrinkage: Shrinkage = "oas"
    least_rows: ClassVar[int] = 4
    paper: ClassVar[str] = "walther2016reliability"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"whiten": False}, {"shrinkage": 0.1})

    def __post_init__(self) -> None:
        check_shrinkage("Crossnobis", self.shrinkage)

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for class moments in each part, and for divided groups."""
        return {"cells": CellMoments(self.fold, "pooled"), "groups": PartsOfGroups(self.fold)}

    def result(self, cells: ClassMomentsState, groups: PartsOfGroupsState) -> CrossnobisResult:
        """Multiply differences of means from different parts."""
        shape = shape_of(cells)
        if min(shape) < 2 or len(cells.labels) != shape[0] * shape[1]:
            raise InputError(
                "Crossnobis: expected every class in every part, at least two of each, got "
                f"{len(cells.labels)} cells of {shape[0]} classes and {shape[1]} parts. Leave "
                "out classes that do not occur in every part."
            )
        mean = cells.mean.reshape(*shape, -1)
        freedom = cells.n_labelled - len(cells.labels)
        covariance = cells.pooled / max(freedom, 1)
        dead = not bool(covariance.detach().diagonal().sum() > 0)
        few = freedom <= len(covariance) and self.shrinkage == 0.0
        if self.whiten and not (dead or few):
            metric, weight = shrunk(covariance, freedom, self.shrinkage)
            root = torch.linalg.cholesky(metric)
            flat = torch.linalg.solve_triangular(root, mean.flatten(0, 1).T, upper=False).T
            mean, shrinkage = flat.reshape(mean.shape), f"{float(weight.detach()):.3g}"
        else:
            shrinkage = "none"
        z = mean - mean.mean((0, 1))
        whole, own = z.sum(1), torch.einsum("cpd,epd->ce", z, z)
        crossed = (whole @ whole.T - own) / (shape[1] * (shape[1] - 1) * z.shape[2])
        size = crossed.diagonal()
        distance = size[:, None] + size - 2.0 * crossed
        value = distance.sum() / (shape[0] * (shape[0] - 1))
        undefined = self.whiten and (dead or few)
        flags = {
            "dead": dead and self.whiten,
            "few_rows": few and self.whiten,
            "divided_groups": groups.divided > 0,
        }
        return CrossnobisResult(
            value=math.nan if undefined else value,
            null=0.0,
            n=cells.n_labelled,
            flags=tuple(flag for flag, raised in flags.items() if raised),
            conventions={
                "parts": f"{shape[1]}, by {self.fold}",
                "metric": "within cells" if self.whiten else "euclidean",
                "shrinkage": shrinkage,
                "units": "divided by their number",
            },
            distance=distance.detach() * (math.nan if undefined else 1.0),
        )


crossnobis = as_function(Crossnobis, "label", "side")
