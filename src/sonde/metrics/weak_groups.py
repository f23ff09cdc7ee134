"""Groups of rows with much lower accuracy: found on one half, confirmed on the other.

Not for comparing groups that you know beforehand: an interval of each says that at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.few_groups import effective_groups
from sonde.metrics._conditions import Condition, candidates
from sonde.stats.intervals import grouped_share

LEAST_SCORE, ALONE = 3.0, 1.1


@final
@dataclass(frozen=True, eq=False)
class WeakGroup:
    """A confirmed group of rows with a higher loss than the others.

    Parameters
    ----------
    conditions : tuple of Condition
        Condition on a column, or two conditions that both hold for the rows of the group.
    rows : Int[Tensor, "member"]
        All members, of both halves.
    loss, low, high : float
        Mean loss of the members in the half that confirms, and its interval.
    elsewhere, elsewhere_low, elsewhere_high : float
        Mean loss of all other rows in that half, and its interval.
    n_confirming, n_groups : int
        Members in that half, and their groups.
    confidence : float
        Confidence of both intervals, corrected for all groups that were tried there.
    """

    conditions: tuple[Condition, ...]
    rows: Int[Tensor, "member"]
    loss: float
    low: float
    high: float
    elsewhere: float
    elsewhere_low: float
    elsewhere_high: float
    n_confirming: int
    n_groups: int
    confidence: float

    @property
    def text(self) -> str:
        """Description of the condition that defines the group."""
        return " and ".join(c.text for c in self.conditions)


def weak_groups(
    loss: Float[Tensor, "row"],
    group: Int[Tensor, "row"],
    columns: Mapping[str, Sequence[Any] | Tensor] | None = None,
    states: Mapping[str, Float[Tensor, "row _dim"]] | None = None,
    *,
    label: Sequence[Any] | None = None,
    answer: Sequence[Any] | None = None,
    gap: float = 0.1,
    least: int = 10,
    at_most: int = 5,
    alpha: float = 0.01,
    seed: int = 0,
) -> list[WeakGroup]:
    """Return the groups whose mean loss exceeds that of the other rows by more than a gap.

    One half of the groups of data proposes candidates: values of a column, tails of a number, and
    clusters of the states, alone or two together. Candidates whose membership correlates most with
    the loss are taken one after another, each on the rows that no earlier candidate has. On the
    other half, the mean losses of a candidate and of all other rows get intervals (exact for losses
    of 0 and 1, else Student's t over groups), at an ``alpha`` divided by the number of candidates.
    A candidate is returned if its interval lies more than ``gap`` above the other, so that data
    without a weak group give any group with a chance of at most ``alpha``.

    Of two conditions at least one is about a column: a label together with an answer, or with a
    cluster of states (which know the answer), would be wrong by definition.

    Parameters
    ----------
    loss : Float[Tensor, "row"]
        1 where the model is wrong and 0 where it is right, or any loss.
    group : Int[Tensor, "row"]
        Rows of equal number are not independent.
    columns : mapping of str to values of each row, optional
        Numbers in a tensor of floats are cut at their tails; all else counts as categories.
    states : mapping of site to Float[Tensor, "row dim"], optional
        States of the rows, whose clusters are tried as groups; none by default.
    label, answer : sequence or None
        Classes of each row.
    gap : float, default=0.1
        In units of the loss.
    least : int, default=10
        Smallest number of groups of data in a returned group, in each half.
    at_most : int, default=5
        Largest number of groups that are returned.
    alpha : float, default=0.01
        Level of the tests, corrected for all groups that are tried.
    seed : int, default=0
        Seed of the halves into which rows are split, and of the clusters.

    Examples
    --------
    >>> sensor = ["old" if i % 20 == 0 else "new" for i in range(1000)]
    >>> wrong = torch.tensor([float(s == "old" and i % 3 > 0) for i, s in enumerate(sensor)])
    >>> (found,) = weak_groups(wrong, torch.arange(1000), {"sensor": sensor})
    >>> found.text, len(found.rows), found.elsewhere
    ('sensor = old', 50, 0.0)
    """
    if not bool(torch.isfinite(loss).all()):
        raise InputError(
            "weak_groups: expected a finite loss for each row, got NaN or infinity. Leave "
            "out these rows."
        )
    random = torch.Generator().manual_seed(seed)
    member = torch.unique(group, return_inverse=True)[1]
    half = torch.randperm(int(member.max()) + 1, generator=random)[member] % 2 == 0
    if min(len(torch.unique(member[half])), len(torch.unique(member[~half]))) < 2 * least:
        return []
    by_name = dict(columns or {})
    singles = candidates(by_name, states or {}, label, answer, half, random)
    chosen = _cover(loss, member, singles, half, least, at_most)
    confirmed = [
        _confirmed(c, loss, member, ~half, least, gap, alpha / len(chosen)) for c in chosen
    ]
    return sorted((g for g in confirmed if g is not None), key=lambda g: -(g.loss - g.elsewhere))


Candidate = tuple[tuple[Condition, ...], Bool[Tensor, "row"]]


def _cover(
    loss: Float[Tensor, "row"],
    member: Int[Tensor, "row"],
    singles: list[tuple[Condition, Bool[Tensor, "row"]]],
    half: Bool[Tensor, "row"],
    least: int,
    at_most: int,
) -> list[Candidate]:
    """Return conditions that explain most of one half's loss, each on the remaining rows."""
    if not singles:
        return []
    allowed = _combinable([condition for condition, _ in singles])
    holds = torch.stack([mask for _, mask in singles])
    left, cover = half.clone(), []
    while len(cover) < at_most:
        inside = holds[:, left].double()
        independent = len(torch.unique(member[left])) / max(int(left.sum()), 1)
        score = _scores(inside, loss[left].double(), least) * allowed * independent**0.5
        alone = torch.diagonal(score) * ALONE
        torch.diagonal(score).copy_(alone)
        best = int(score.argmax())
        a, b = divmod(best, len(singles))
        if not float(score[a, b]) >= LEAST_SCORE:
            break
        mask = holds[a] & holds[b]
        conditions = tuple(singles[i][0] for i in sorted({a, b}))
        if len(torch.unique(member[mask & left])) >= least:
            cover.append((conditions, mask))
            left = left & ~mask
        else:
            allowed[a, b] = allowed[b, a] = 0.0
    return cover


def _scores(
    inside: Float[Tensor, "condition row"], loss: Float[Tensor, "row"], least: int
) -> Float[Tensor, "condition condition2"]:
    """Return the loss's correlation with two conditions together, times the root of the rows."""
    n, total = inside.shape[1], loss.sum()
    size, summed = inside @ inside.T, (inside * loss) @ inside.T
    spread = loss.std(correction=0)
    if n == 0 or not bool(spread > 0):
        return torch.zeros_like(size)
    rest = (n - size).clamp(min=1)
    excess = summed / size.clamp(min=1) - (total - summed) / rest
    score = excess / spread * (size * rest / n).sqrt()
    return torch.where((size >= least) & (size <= n / 2), score, 0.0)


def _combinable(conditions: Sequence[Condition]) -> Float[Tensor, "condition condition2"]:
    """Return 1 for each pair of conditions that may hold together, also for the diagonal."""
    column = torch.tensor([c.kind == "column" for c in conditions])
    number = {name: i for i, name in enumerate(dict.fromkeys(c.source for c in conditions))}
    source = torch.tensor([number[c.source] for c in conditions])
    allowed = (column[:, None] | column[None, :]) & (source[:, None] != source[None, :])
    return (allowed | torch.eye(len(conditions), dtype=torch.bool)).double()


def _confirmed(
    candidate: Candidate,
    loss: Float[Tensor, "row"],
    member: Int[Tensor, "row"],
    half: Bool[Tensor, "row"],
    least: int,
    gap: float,
    alpha: float,
) -> WeakGroup | None:
    """Return a group if its interval exceeds that of other rows by ``gap``, else None."""
    conditions, mask = candidate
    inside, outside = half & mask, half & ~mask
    n_groups = len(torch.unique(member[inside]))
    if n_groups < least or len(torch.unique(member[outside])) < least:
        return None
    low, high = _interval(loss[inside], member[inside], 1 - alpha)
    below, above = _interval(loss[outside], member[outside], 1 - alpha)
    if not low > above + gap:
        return None
    return WeakGroup(
        conditions=conditions,
        rows=torch.nonzero(mask).flatten(),
        loss=float(loss[inside].double().mean()),
        low=low,
        high=high,
        elsewhere=float(loss[outside].double().mean()),
        elsewhere_low=below,
        elsewhere_high=above,
        n_confirming=int(inside.sum()),
        n_groups=n_groups,
        confidence=1 - alpha,
    )


def _interval(
    loss: Float[Tensor, "row"], member: Int[Tensor, "row"], level: float
) -> tuple[float, float]:
    """Return the interval of a mean loss over groups: exact for 0 and 1, else Student's t."""
    _, inverse = torch.unique(member, return_inverse=True)
    if bool(((loss == 0) | (loss == 1)).all()):
        return grouped_share((loss > 0).numpy(), inverse.numpy(), level)
    sums = np.bincount(inverse.numpy(), loss.double().numpy())
    sizes = np.bincount(inverse.numpy())
    n, mean = sizes.sum(), float(sums.sum() / sizes.sum())
    variance = float((np.square(sums - mean * sizes) / (1 - sizes / n)).sum()) / float(n) ** 2
    freedom = effective_groups(torch.from_numpy(sizes)) - 1
    half = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(variance)
    return mean - half, mean + half
