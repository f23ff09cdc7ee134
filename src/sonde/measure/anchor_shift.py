"""Measure how much nearer rows lie to their context than to their concept, by given anchors."""

import math
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.few_groups import effective_groups, grouped_error
from sonde.core.result import Direction, Result
from sonde.core.tensors import as_tensor
from sonde.engine.errorbars import with_few_groups
from sonde.stats.direction_moments import unit_rows


@final
@dataclass(frozen=True, kw_only=True)
class AnchorShiftResult(Result):
    """Mean cosine to the context's anchor minus that to the concept's, with both means.

    ``null`` is the mean for random other contexts in place of each row's own.
    """

    direction: Direction = "higher"
    to_concept: float
    to_context: float

    def since(self, train: "AnchorShiftResult") -> "AnchorShiftResult":
        """Return this value minus that of the training rows, as independent samples."""
        assert self.se is not None, "every result has an error"
        assert train.se is not None, "every result has an error"
        return replace(
            self,
            value=float(self) - float(train),
            se=math.hypot(float(self.se), float(train.se)),
            null=float(torch.as_tensor(self.null)) - float(torch.as_tensor(train.null)),
            range=(-4.0, 4.0),
            conventions={**self.conventions, "from": "the same statistic of the training rows"},
        )


def anchor_shift(
    x: Float[Tensor, "row dim"],
    concept: Any,
    context: Any,
    concepts: Float[Tensor, "concept dim"],
    contexts: Float[Tensor, "context dim"],
    *,
    group: Any = None,
) -> AnchorShiftResult:
    """Return the mean of ``cos(x, context's anchor) - cos(x, concept's anchor)``.

    Anchors are vectors of names in the space of the rows: a model of images and texts gives both,
    rows from images and anchors from the words for classes and backgrounds. Measure test rows and
    subtract the value of training rows (``since``): rows of unlike contexts then show as a shift.

    Range        [-2, 2]; higher = context matters more. Invariant to rotation, isotropic scale.
    Cost         one pass; O(row dim).
    Assumes      anchors and rows in one space; no anchors at hand: ``SpuriousShift``.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        States of images.
    concept : int array (row,)
        Index of each row's anchor among ``concepts``.
    context : int array (row,)
        Index of each row's anchor among ``contexts``.
    concepts : Float[Tensor, "concept dim"]
        Anchors of the classes.
    contexts : Float[Tensor, "context dim"]
        Anchors of the contexts, at least two.
    group : array (row,), optional
        Rows that belong together, such as one person's or copies of one image; they count as one in
        the error.

    Raises
    ------
    InputError
        If an index has no anchor, rows are not finite, or there are fewer than two rows, contexts
        or groups.

    Examples
    --------
    >>> anchors = torch.eye(4)
    >>> x = torch.tensor([[0.6, 0.0, 0.8, 0.0], [0.0, 0.6, 0.0, 0.8]])
    >>> found = anchor_shift(x, [0, 1], [0, 1], anchors[:2], anchors[2:])
    >>> round(found.value, 6), round(found.null, 6)
    (0.2, -0.6)

    References
    ----------
    zhang2024metacoco
    """
    of = [as_tensor("anchor_shift", v, "indices", InputError).long() for v in (concept, context)]
    anchors = (concepts, contexts)
    if len(x) < 2 or len(contexts) < 2 or any(len(i) != len(x) for i in of):
        raise InputError(
            f"anchor_shift: expected two rows or more, a concept and a context for each, and "
            f"two contexts or more, got {len(x)} rows, {len(of[0])} concepts, {len(of[1])} "
            f"contexts and {len(contexts)} anchors of contexts."
        )
    if any(bool(((i < 0) | (i >= len(a))).any()) for i, a in zip(of, anchors, strict=True)):
        raise InputError(
            f"anchor_shift: expected concepts from 0 to {len(concepts) - 1} and contexts from 0 to "
            f"{len(contexts) - 1}, got {of[0].min()} to {of[0].max()} and {of[1].min()} to "
            f"{of[1].max()}. Number them as the anchors are."
        )
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).any(1).nonzero()[0])
        raise InputError(f"anchor_shift: expected finite rows, got another in row {bad}.")
    _, member = np.unique(np.arange(len(x)) if group is None else group, return_inverse=True)
    if len(member) != len(x) or int(member.max()) < 1:
        raise InputError(
            f"anchor_shift: expected a group for each of {len(x)} rows, two groups or more, got "
            f"{len(member)} numbers of {int(member.max()) + 1} groups."
        )
    cosine = [unit_rows(x.double()) @ unit_rows(a.double()).T for a in anchors]
    own = [c.gather(1, i.to(c.device)[:, None])[:, 0] for c, i in zip(cosine, of, strict=True)]
    each = own[1] - own[0]
    others = (cosine[1].sum(1) - own[1]) / (len(contexts) - 1)
    sizes = torch.bincount(torch.from_numpy(member))
    sums = torch.zeros(len(sizes)).double()
    sums.index_add_(0, torch.from_numpy(member), (each - each.mean()).cpu() / len(x))
    independent = float(each.std() / math.sqrt(len(x)))
    shift = AnchorShiftResult(
        value=float(each.mean()),
        se=independent if group is None else float(grouped_error(sums, sizes)),
        null=float((others - own[0]).mean()),
        n=len(x),
        range=(-2.0, 2.0),
        conventions={"se": "independent rows" if group is None else "spread over groups"},
        to_concept=float(own[0].mean()),
        to_context=float(own[1].mean()),
    )
    return shift if group is None else with_few_groups(shift, effective_groups(sizes))
