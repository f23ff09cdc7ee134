"""One calibrated score from the scores of several sites and detectors.

The scores of one row at several sites depend on each other, so their p-values cannot simply be
combined. Half of the held-out rows turns each score into a p-value and makes one number of them;
the numbers of the other half calibrate it. The promise is exact whatever the dependence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.calibration import Calibration, Guarantee
from sonde.core.errors import CalibrationError, InputError
from sonde.core.hashing import base_hashes, splitmix64
from sonde.core.plan import Split
from sonde.core.random_state import kept_random_state
from sonde.core.renaming import renamed
from sonde.core.state import State
from sonde.core.tensors import as_tensor
from sonde.core.wording import plural

Rule = Literal["sum", "max", "learned"]
TAIL = 0.1
LEAST_EACH = 2


@dataclass(frozen=True)
class FusedScore(State):
    """One calibrated score, combined from the scores at several sites.

    Parameters
    ----------
    reference : tuple of Float[Tensor, "n"]
        Ascending scores of the first half at each site.
    weights : Float[Tensor, "site"]
        Weight of each site's surprise in the sum.
    rule : {"sum", "max", "learned"}
    calibration : Calibration
        Fused scores of the second half, one row of each group.
    """

    reference: tuple[Tensor, ...]
    weights: Float[Tensor, "site"]
    rule: str
    calibration: Calibration

    def score(self, scores: Any) -> Float[Tensor, "row"]:
        """Return the fused score of each row; higher = more unusual."""
        return _combined(self._surprises.of(self._checked(scores)), self.weights, self.rule)

    @cached_property
    def _surprises(self) -> "Surprises":
        return Surprises(self.reference)

    def p_value(self, scores: Any) -> Float[Tensor, "row"]:
        """Return the conformal p-value of each row's fused score."""
        return self.calibration.p_value(self.score(scores))

    def threshold(self, alpha: float) -> float:
        """Return the fused score above which an alarm is raised at false-alarm rate ``alpha``."""
        return self.calibration.threshold(alpha)

    def explain(self, scores: Any) -> Float[Tensor, "row site"]:
        """Return each row's p-value at each site, which shows the sites with unusual states."""
        values = self._checked(scores)
        columns = [Calibration(r).p_value(values[:, i]) for i, r in enumerate(self.reference)]
        return torch.stack(columns, dim=1)

    def _checked(self, scores: Any) -> Float[Tensor, "row site"]:
        values = as_tensor("FusedScore", scores, "scores").double()
        if values.ndim != 2 or values.shape[1] != len(self.reference):
            raise InputError(
                f"FusedScore: expected scores (row, {len(self.reference)}), one column for each "
                f"site as fused, got {tuple(values.shape)}."
            )
        return values


@renamed(out_of_distribution="unusual")
def fuse(
    scores: Any,
    group: Any = None,
    *,
    rule: Rule = "sum",
    out_of_distribution: Any = None,
    guarantee: Guarantee = "marginal",
    delta: float = 0.05,
    seed: int = 0,
) -> FusedScore:
    """Combine held-out scores at several sites into one calibrated score.

    Parameters
    ----------
    scores : array (row, site)
        Scores of held-out rows that are as usual as the rows to come.
    group : array (row,), optional
        Groups stay whole in one half, and one row of each, at random, calibrates.
    rule : {"sum", "max", "learned"}, default="sum"
        ``sum`` and ``max`` of the surprises ``-log p``; ``learned`` weighs them by a logistic
        regression of the first half against ``out_of_distribution``, no weight below 0.
    out_of_distribution : array (row2, site), optional
        Scores of known unusual rows, for ``learned`` alone. The learned weights decide how many
        unusual rows are seen, never how often a usual row alarms.
    guarantee : {"marginal", "pac"}, default="marginal"
        Promise of the thresholds: ``marginal`` holds on average over calibrations, ``pac`` with
        probability ``1 - delta``.
    delta : float, default=0.05
        Probability that the guarantee ``pac`` fails, in (0, 1).
    seed : int, default=0
        Seed of the halves into which rows are split, and of the row that stands for each group.

    Examples
    --------
    >>> g = torch.Generator().manual_seed(0)
    >>> shared = torch.randn(2000, 1, generator=g)
    >>> fused = fuse(shared + torch.randn(2000, 12, generator=g))
    >>> bool(fused.p_value(torch.full((1, 12), 6.0)) < 0.002)
    True

    References
    ----------
    vovk2005alrw
    """
    values = as_tensor("fuse", scores, "scores").double()
    if values.ndim != 2 or 0 in values.shape or bool(values.isnan().any()):
        raise InputError(
            f"fuse: expected scores without NaN (row, site), got {tuple(values.shape)}."
        )
    if rule not in get_args(Rule):
        raise InputError(
            f"fuse: expected a rule of {', '.join(get_args(Rule))}, got {rule!r}. To combine "
            "p-values without held-out scores, use a function of sonde.alarms: bonferroni, "
            "simes, twice_mean, cauchy."
        )
    if (rule == "learned") != (out_of_distribution is not None):
        raise InputError(
            "fuse: expected out_of_distribution= (scores of known outliers) with rule 'learned' "
            "and with no other rule."
        )
    names = np.arange(len(values)) if group is None else np.asarray(group).ravel()
    first, second = _halves(names, len(values), seed)
    reference = tuple(column.sort().values for column in values[first].T)
    surprises = Surprises(reference).of(values)
    weights = torch.ones(values.shape[1], dtype=torch.float64)
    if rule == "learned":
        outlying = as_tensor("fuse", out_of_distribution, "unusual scores").double()
        if outlying.ndim != 2 or outlying.shape[1] != len(reference) or len(outlying) == 0:
            raise InputError(
                f"fuse: expected unusual scores (row, {len(reference)}), one column for each site, "
                f"got {tuple(outlying.shape)}. Score the unusual rows at the same sites."
            )
        weights = _learned(surprises[first], Surprises(reference).of(outlying))
    fused = _combined(surprises[second], weights, rule)
    return FusedScore(reference, weights, rule, Calibration.from_scores(fused, guarantee, delta))


def surprise(scores: Float[Tensor, "row"], reference: Float[Tensor, "n"]) -> Float[Tensor, "row"]:
    """Return ``-log p`` of each score relative to ascending reference scores.

    Parameters
    ----------
    scores : Float[Tensor, "row"]
        Scores to rank; higher is more outlying.
    reference : Float[Tensor, "n"]
        Scores of in-distribution rows, in ascending order.
    """
    return Surprises((reference,)).of(scores[:, None])[:, 0]


@final
class Surprises:
    """``-log p`` of scores relative to ascending reference scores of each site, prepared once.

    Beyond the largest reference score a p-value cannot fall any more; there the surprise goes on
    along an exponential tail with the mean excess of the upper tenth, so that far rows keep their
    order.

    Parameters
    ----------
    reference : sequence of Float[Tensor, "n"]
        Ascending scores of each site, not necessarily equally many.
    """

    def __init__(self, reference: Sequence[Tensor]) -> None:
        self._scores = [Calibration(one).scores for one in reference]
        self._n = torch.tensor([len(one) for one in self._scores])
        self._end, self._scale = torch.tensor(
            [_tail(one) for one in self._scores], dtype=torch.float64
        ).T

    def of(self, scores: Float[Tensor, "row site"]) -> Float[Tensor, "row site"]:
        """Return the surprise of each score at its site."""
        if bool(scores.isnan().any()):
            raise InputError("surprise: a score is NaN.")
        scores = scores.double()
        columns = zip(self._scores, scores.T.contiguous(), strict=True)
        below = torch.stack([torch.searchsorted(one, column) for one, column in columns], 1)
        p = (1 + self._n - below).double() / (self._n + 1)
        return -p.log() + ((scores - self._end).clamp(min=0.0) / self._scale).nan_to_num(
            nan=0.0, posinf=math.inf
        )


def _tail(reference: Float[Tensor, "n"]) -> tuple[float, float]:
    """Return the largest finite reference score and the scale of the tail above it."""
    finite = reference[torch.isfinite(reference)]
    if len(finite) == 0:
        return math.inf, 1.0
    start = finite[max(0, math.floor((1 - TAIL) * len(finite)) - 1)]
    excess = finite[finite > start] - start
    scale = float(excess.mean()) if len(excess) else 0.0
    return float(finite[-1]), scale if scale > 0 else float(finite.std(correction=0)) or 1.0


def _combined(surprises: Tensor, weights: Tensor, rule: str) -> Float[Tensor, "row"]:
    """Return the weighted sum or the largest surprise; zero times infinity is 0."""
    if rule == "max":
        return surprises.amax(1)
    return torch.where(weights > 0, surprises * weights, torch.zeros_like(surprises)).sum(1)


def _halves(group: np.ndarray, n_rows: int, seed: int) -> tuple[Bool[Tensor, "row"], Tensor]:
    """Split the rows by group hash: half A, and one row of each group of half B.

    The row of a group is that of smallest hash: a first row would be the start of a document.
    """
    if len(group) != n_rows:
        raise InputError(
            f"fuse: expected a group for each of {plural(n_rows, 'row')}, got {len(group)}."
        )
    names, member = np.unique(group, return_inverse=True)
    keys = [str(name).encode() for name in names.tolist()]
    base = base_hashes(keys, "split", seed)
    in_first = Split(0.5, seed).is_held(torch.as_tensor(base.view(np.int64)))
    place = np.arange(n_rows, dtype=np.uint64)
    drawn = splitmix64(base_hashes(keys, "sample", seed)[member] ^ place)
    order = np.lexsort((drawn, member))
    second = torch.as_tensor(order[np.unique(member[order], return_index=True)[1]])[~in_first]
    if int(in_first.sum()) < LEAST_EACH or len(second) < LEAST_EACH:
        raise CalibrationError(
            f"fuse: expected at least {LEAST_EACH} groups in each half, got {int(in_first.sum())} "
            f"and {len(second)}. Hold out more rows.",
            2 * LEAST_EACH,
        )
    return in_first[torch.as_tensor(member)], second


def _learned(usual: Float[Tensor, "row site"], unusual: Float[Tensor, "row2 site"]) -> Tensor:
    """Return non-negative logistic weights of the sites."""
    with kept_random_state():
        from sklearn.linear_model import LogisticRegression

    x = torch.cat([usual, unusual]).clamp(max=1e6).numpy()
    scale = np.maximum(x.std(axis=0), 1e-12)
    y = np.r_[np.zeros(len(usual)), np.ones(len(unusual))]
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(x / scale, y)
    weights = torch.as_tensor(model.coef_[0] / scale, dtype=torch.float64).clamp(min=0.0)
    if not bool((weights > 0).any()):
        raise InputError(
            "fuse: no site scores the unusual rows above the in-distribution rows, so no "
            "weights can be learned. Use rule='sum'."
        )
    return weights
