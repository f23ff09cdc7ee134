"""Steer the few attention heads that separate a behaviour, each along its own direction.

Use it where a push of the whole state does too much harm. Rows are the outputs of heads before the
output projection: the input of that projection, or port ``heads`` of the attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.edit import Add
from sonde.core.errors import InputError
from sonde.core.instrument import SAMPLE, Instrument
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.core.result import Result
from sonde.core.statistic import Span, Statistic
from sonde.edit._directions import Direction
from sonde.stats import ClassMoments, ClassMomentsState, HashSample, HashSampleState, TwoGroups


@final
@dataclass(frozen=True, kw_only=True)
class HeadDirections(Result):
    """Each head's accuracy at separating the classes, the chosen heads, and each site's shift.

    ``value`` is the mean held-out accuracy of the chosen heads. ``push`` is, at the units of each
    chosen head, its direction times the rows' spread along it, and 0 elsewhere.
    """

    title: ClassVar[str] = "Held-out accuracy of the chosen heads"
    accuracy: Float[Tensor, "site head"]
    chosen: Bool[Tensor, "site head"]
    push: Float[Tensor, "site dim"]

    def edits(self, sites: Sequence[str], strength: float = 5.0) -> dict[str, Add]:
        """Return the edit of each site that has a chosen head, by name.

        Parameters
        ----------
        sites : sequence of str
            The sites of the fit, in order of execution.
        strength : float, default=5.0
            In spreads of each head.

        Raises
        ------
        InputError
            If there are more or fewer sites than were fitted.
        """
        if len(sites) != len(self.push):
            raise InputError(
                f"HeadDirections.edits: expected the {len(self.push)} sites of the fit, got "
                f"{len(sites)}. Name them in order of execution."
            )
        return {
            site: Add(push, strength)
            for site, push, own in zip(sites, self.push, self.chosen, strict=True)
            if bool(own.any())
        }


@renamed(keep="share")
@final
@dataclass(frozen=True)
class HeadSteering(Instrument):
    """Directions of the attention heads whose outputs best separate one class from the others.

    For each head of each site, a difference-of-means probe is tested on rows outside its fit. The
    best heads over all sites are chosen; each is pushed along the difference of its means, in units
    of the rows' spread along it. A constant push folds into the bias of the output projection.

    Range        [0, 1]; higher = the heads tell more; 0.5 = nothing.
    Cost         one pass; state 8 (dim^2 + classes dim) + 4 m dim bytes at each site; result
                 O(m dim + dim^2) at each.
    Assumes      labels; rows of ``heads`` equal parts, one for each head; all classes but
                 ``positive`` are one side.
    Differs      from the paper: the difference of means in place of a logistic probe; accuracy is
                 the mean of both sides' shares of right answers; the groups of a sample form two
                 halves, each tested with the means of the other half.

    Parameters
    ----------
    heads : int, default=1
        Heads of a site.
    keep : float, default=0.05
        Fraction of all heads that is chosen, in (0, 1]; at least one head.
    positive : int, default=1
        The class that a positive strength makes more of.
    m : int, default=2048
        Most rows in the sample.

    Examples
    --------
    >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    >>> label = torch.arange(64) % 2
    >>> x[:, 2] += 9 * label
    >>> found = HeadSteering(heads=2).fit({"a": x, "b": x.flip(1)}, label)
    >>> found.chosen.tolist(), found.value
    ([[False, True], [False, False]], 1.0)

    References
    ----------
    li2023iti
    """

    heads: int = 1
    keep: float = 0.05
    positive: int = 1
    m: int = SAMPLE
    span: ClassVar[Span] = "all"
    least_sites: ClassVar[int] = 1
    equal_widths: ClassVar[bool] = True
    paper: ClassVar[str] = "li2023iti"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"heads": 2, "keep": 0.5, "m": 48})

    def __post_init__(self) -> None:
        check_ranges(self, heads=">= 1", keep="(0, 1]", m=">= 4")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the moments of each class, and a sample of rows with their labels."""
        return {
            "by_class": ClassMoments(),
            "sample": HashSample(self.m),
            "labels": HashSample(self.m, "label"),
        }

    def result(
        self,
        by_class: tuple[ClassMomentsState, ...],
        sample: tuple[HashSampleState, ...],
        labels: tuple[HashSampleState, ...],
    ) -> HeadDirections:
        """Evaluate every head, choose the best, and measure the rows along their directions."""
        dim = by_class[0].mean.shape[1]
        if dim % self.heads:
            raise InputError(
                f"HeadSteering: expected rows of {self.heads} equal parts, one for each head, got "
                f"dim={dim}. Pass heads= as the model has them."
            )
        groups = [TwoGroups.of("HeadSteering", state, self.positive) for state in by_class]
        accuracy = torch.stack(
            [self._accuracy(rows, label) for rows, label in zip(sample, labels, strict=True)]
        )
        n_chosen = max(1, round(self.keep * accuracy.numel()))
        best = accuracy.flatten().argsort(descending=True, stable=True)[:n_chosen]
        chosen = torch.zeros(accuracy.numel(), dtype=torch.bool)
        chosen[best.cpu()] = True
        chosen = chosen.reshape(accuracy.shape)
        per_site = zip(by_class, groups, chosen, strict=True)
        push = torch.stack([self._push(*site) for site in per_site])
        return HeadDirections(
            value=float(accuracy[chosen].mean()),
            null=0.5,
            n=groups[0].n_rows,
            direction="higher",
            range=(0.0, 1.0),
            flags=tuple(
                dict.fromkeys(
                    [f for g in groups for f in g.flags]
                    + ["sampled"] * (not sample[0].is_everything)
                    + ["dead"] * (not bool(push.any()))
                )
            ),
            conventions={
                "value": "mean over the chosen heads of accuracy on the other half of the groups",
                "positive": self.positive,
                "chosen": n_chosen,
                "se": "none: the same accuracy selected the heads",
            },
            accuracy=accuracy,
            chosen=chosen,
            push=push,
        )

    def _accuracy(self, sample: HashSampleState, labels: HashSampleState) -> Float[Tensor, "head"]:
        """Return the accuracy of each head's probe on groups outside its fit."""
        label = labels.rows.to(sample.rows.device)
        is_known = label >= 0
        rows = rearrange(sample.rows[is_known].double(), "n (head w) -> head n w", head=self.heads)
        own = label[is_known] == self.positive
        half = (_rank(sample.group_draw) % 2 == 0).to(own.device)[is_known]
        shares: list[Tensor] = []
        for first in (half, ~half):
            if not all(bool((first & side).any()) for side in (own, ~own)):
                continue
            one, other = rows[:, first & own].mean(1), rows[:, first & ~own].mean(1)
            along = ((rows - (one + other)[:, None] / 2) * (one - other)[:, None]).sum(2)
            shares += [
                (along[:, ~first & own] > 0).double(),
                (along[:, ~first & ~own] < 0).double(),
            ]
        shares = [share.mean(1) for share in shares if share.shape[1]]
        return torch.stack(shares).mean(0) if shares else rows.new_full((self.heads,), 0.5)

    def _push(
        self, state: ClassMomentsState, groups: TwoGroups, chosen: Bool[Tensor, "head"]
    ) -> Float[Tensor, "dim"]:
        """Return the shift of one site."""
        covariance, width = state.total.covariance.detach(), len(groups.gap) // self.heads
        push = torch.zeros_like(groups.gap)
        for head in chosen.nonzero().flatten().tolist():
            own = slice(head * width, (head + 1) * width)
            gap = groups.gap[own]
            axis = Direction.along(gap, gap, covariance[own, own])
            push[own] = axis.spread * axis.unit
        return push


def _rank(group_draw: Tensor) -> Tensor:
    """Return the rank of each row's group, by its sampling key."""
    return torch.unique(group_draw, return_inverse=True)[1]
