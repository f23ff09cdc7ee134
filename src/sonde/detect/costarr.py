"""Cosine with the predicted class's mean, before and after weighting by the final layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.batch import Head
from sonde.core.errors import InputError, ShapeError
from sonde.core.instrument import Detector
from sonde.core.ranges import check_ranges
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.site import HEAD_INPUT
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.detect._head import check_head
from sonde.detect._metric import check_fitted_width
from sonde.stats import HeadWeights, HeadWeightsState

CHUNK_ENTRIES = 1 << 22
SAME = 1e-14

Use = Literal["both", "pre", "post"]
LogitFactor = Literal["none", "minmax", "zscore"]


@dataclass(frozen=True)
class AttenuatedSumsState(State):
    """For each class, count and sum of its correctly predicted rows, and of other rows.

    A row enters as its features of unit length, then its attenuated features of unit length.
    ``low`` and ``high`` are the ends of the winning logit over the rightly predicted rows.
    """

    n: int
    n_unlabelled: int
    largest_label: int
    right_rows: Int[Tensor, "class"]
    right_sum: Float[Tensor, "class both"]
    other_rows: Int[Tensor, "class"]
    other_sum: Float[Tensor, "class both"]
    low: float
    high: float


@final
@dataclass(frozen=True)
class AttenuatedSums(Statistic[AttenuatedSumsState]):
    """Sums of unit-length features before and after attenuation, independent of data splits."""

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        label: Int[Tensor, "row"],
        logits: Float[Tensor, "row class"],
        head: Head,
    ) -> AttenuatedSumsState:
        """Return the counts and sums of a batch."""
        weight = head[0].to(x.device)
        k = logits.shape[1]
        if weight.shape != (k, x.shape[1]):
            raise ShapeError(
                f"COSTARR: expected rows and logits of the final linear layer's widths "
                f"{tuple(weight.shape[::-1])}, got {(x.shape[1], k)}. Fit it at the input of that "
                "layer."
            )
        best, predicted = logits.to(x.device).max(dim=1)
        label = label.to(x.device).long()
        is_class = (label >= 0) & (label < k)
        own, row = label[is_class], x[is_class].double()
        both = torch.cat([_unit(row), _unit(row * weight.double()[own])], dim=1)
        right = predicted[is_class] == own
        won = best[is_class][right].double()
        return AttenuatedSumsState(
            len(x),
            int((label < 0).sum()),
            int(label.max()),
            *_sums(both[right], own[right], k),
            *_sums(both[~right], own[~right], k),
            float(won.min()) if len(won) else math.inf,
            float(won.max()) if len(won) else -math.inf,
        )

    def merge(self, a: AttenuatedSumsState, b: AttenuatedSumsState) -> AttenuatedSumsState:
        """Return the counts and sums of both states."""
        return AttenuatedSumsState(
            a.n + b.n,
            a.n_unlabelled + b.n_unlabelled,
            max(a.largest_label, b.largest_label),
            a.right_rows + b.right_rows,
            a.right_sum + b.right_sum,
            a.other_rows + b.other_rows,
            a.other_sum + b.other_sum,
            min(a.low, b.low),
            max(a.high, b.high),
        )


@final
@dataclass(frozen=True, kw_only=True)
class COSTARRScorer(Scorer):
    """Minus the cosine with the predicted class's ``mean``, times a factor of the logits.

    ``known`` marks the classes that have a mean; ``value`` is the share of labelled rows that the
    means were computed from.
    """

    weight: Float[Tensor, "class dim"]
    mean: Float[Tensor, "class both"]
    known: Bool[Tensor, "class"]
    logit_range: tuple[float, float]
    use: Use
    logit: LogitFactor

    @property
    def labels(self) -> Int[Tensor, "known"]:
        """The classes that have a mean."""
        return torch.nonzero(self.known).flatten()

    def score(
        self, x: Float[Tensor, "row dim"], logits: Float[Tensor, "row class"]
    ) -> Float[Tensor, "row"]:
        """Return minus each row's similarity to its class, weighted by its logits."""
        check_fitted_width("COSTARR", x, self.weight.shape[1])
        check_fitted_width("COSTARR", logits, len(self.weight), "classes")
        classes = len(self.weight) if self.logit == "zscore" else 1
        step = max(1, CHUNK_ENTRIES // max(1, x.shape[1] * classes))
        parts = [
            self._familiarity(x[i : i + step].double(), logits[i : i + step])  # cosines near 1
            for i in range(0, len(x), step)
        ]
        familiarity = torch.cat(parts) if parts else x[:0].double().sum(1)
        return infinite_where_nonfinite(0.0 - familiarity, x, logits=logits)  # 0, not -0

    def _familiarity(self, x: Tensor, logits: Tensor) -> Tensor:
        logits = logits.to(x)
        if self.logit == "zscore":
            spread = logits.std(dim=1, correction=0, keepdim=True)
            varies = spread > 0
            share = (logits - logits.mean(dim=1, keepdim=True)) / spread.where(varies, spread + 1)
            product = share * self._likeness_to_all(x)
            # a class without rows is no candidate
            return product.where(self.known.to(x.device), -math.inf).amax(dim=1)
        best, predicted = logits.max(dim=1)
        likeness = self._likeness(x, self.weight.to(x)[predicted], self.mean.to(x)[predicted])
        if self.logit == "minmax":
            low, high = self.logit_range
            width = high - low
            inside = (best - low) / width if width > 0 else (best >= low).to(x)
            likeness = likeness * inside.clamp(0.0, 1.0)
        return likeness

    def _likeness(self, x: Tensor, weight: Tensor, mean: Tensor) -> Tensor:
        """Return the cosine of each row's joined halves with its class mean."""
        dim = x.shape[1]
        halves = {"pre": (_unit(x), mean[:, :dim]), "post": (_unit(x * weight), mean[:, dim:])}
        pairs = list(halves.values()) if self.use == "both" else [halves[self.use]]
        row = torch.cat([p[0] for p in pairs], dim=1)
        like = torch.cat([p[1] for p in pairs], dim=1)
        return (_unit(row) * _unit(like)).sum(dim=1)

    def _likeness_to_all(self, x: Tensor) -> Tensor:
        """Return the mean cosine of the halves with every class's mean."""
        dim = x.shape[1]
        mean, cosines = self.mean.to(x), []
        if self.use != "post":
            cosines.append(_unit(x) @ _unit(mean[:, :dim]).T)
        if self.use != "pre":
            each = _unit(x[:, None] * self.weight.to(x))
            cosines.append((each * _unit(mean[:, dim:])).sum(dim=2))
        return torch.stack(cosines).mean(dim=0)


@final
@dataclass(frozen=True)
class COSTARR(Detector):
    """Minus the cosine of features, before and after the final layer's weights, with their class.

    The head multiplies features with the weights of a class; small weights hide what is odd about a
    row. So both the features ``h`` and the attenuated features ``h * w_c`` of the predicted class
    ``c`` are compared with the mean of the rows that are labelled and predicted as ``c``:
    ``-cos([h/|h| ; (h w_c)/|h w_c|], m_c)``. ``logit="minmax"`` multiplies the cosine by the place
    of the winning logit between its smallest (0) and largest (1) value in the fit;
    ``logit="zscore"`` takes the largest product, over classes, of the logit's z-score within the
    row and the mean of both cosines.

    Range        [-1, 1] without logits; higher = more unusual. A row of zeros scores 0.
    Cost         one pass; state 32 classes dim bytes; O(dim) per row, "zscore" O(classes dim).
    Assumes      rows are the input of the model's final linear layer; labels are its classes.
    Differs      reconstructed: made from the ingredients that the paper's abstract names, not from
                 its formula. No logit factor by default: "minmax" orders rows as the largest logit
                 does and gains nothing on average, "zscore" loses (study ``costarr``). A class
                 without rightly predicted rows takes all its rows. A class without rows has no
                 mean; rows predicted as this class score 0.

    Parameters
    ----------
    use : {"both", "pre", "post"}, default="both"
        Which features are compared: before the head's weights, after them, or both.
    logit : {"none", "minmax", "zscore"}, default="none"
        How the logits enter.
    logit_range : (float, float) or None, default=None
        Ends of the winning logit for ``logit="minmax"``; None takes them from the fit.

    Examples
    --------
    >>> weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    >>> x = torch.tensor([[3.0, 0.0], [2.0, 1.0], [4.0, 1.0]])
    >>> scorer = COSTARR().fit(x, [0, 0, 0], logits=x @ weight.T, head=(weight, None))
    >>> rows = torch.tensor([[2.0, 1.0], [1.0, 0.9]])
    >>> scorer.score(rows, rows @ weight.T).double().round(decimals=3).tolist()
    [-0.987, 0.0]

    References
    ----------
    costarr2025
    """

    use: Use = "both"
    logit: LogitFactor = "none"
    logit_range: tuple[float, float] | None = None
    paper: ClassVar[str] = "costarr2025"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"use": "pre", "logit": "minmax"},
        {"logit": "zscore"},
    )

    def __post_init__(self) -> None:
        check_ranges(self, use=("both", "pre", "post"), logit=("none", "minmax", "zscore"))
        ends = self.logit_range
        if ends is not None and (len(ends) != 2 or not ends[0] < ends[1]):
            raise InputError(f"COSTARR: expected logit_range as (low, high), got {ends!r}.")

    def reading(self) -> dict[str, Any]:
        """Return the reading of the final linear layer's input."""
        return {"sites": HEAD_INPUT}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for the sums of both kinds of features, and the final layer."""
        return {"sums": AttenuatedSums(), "head": HeadWeights()}

    def result(self, sums: AttenuatedSumsState, head: HeadWeightsState) -> COSTARRScorer:
        """Compute each class's mean."""
        check_head("COSTARR", head, sums.right_sum.shape[1] // 2)
        self._check(sums)
        right, other = sums.right_rows, sums.other_rows
        fallback = (right == 0) & (other > 0)
        total = torch.where(fallback[:, None], sums.other_sum, sums.right_sum)
        rows = torch.where(fallback, other, right)
        n = int(rows.sum())
        labelled = sums.n - sums.n_unlabelled
        mean = total / rows.clamp(min=1)[:, None]
        flags = [*(["unlabelled"] if sums.n_unlabelled else []), *(["dead"] if _dead(mean) else [])]
        return COSTARRScorer(
            value=n / labelled,
            n=n,
            range=(-1.0, 1.0) if self.logit != "zscore" else (-math.inf, math.inf),
            flags=tuple(flags),
            conventions={
                "value": "share of the labelled rows that the means are made of",
                "fidelity": "reconstructed",
                "use": self.use,
                "logit": self.logit,
                "left_out": labelled - n,
                "classes_never_predicted_rightly": _listed(fallback),
                "classes_without_rows": _listed(rows == 0),
                "se": "not given for a scorer: calibrate its scores",
            },
            weight=head.weight.double(),
            mean=mean,
            known=rows > 0,
            logit_range=self.logit_range or (sums.low, sums.high),
            use=self.use,
            logit=self.logit,
        )

    def _check(self, sums: AttenuatedSumsState) -> None:
        k = len(sums.right_rows)
        if sums.largest_label >= k:
            raise InputError(
                f"COSTARR: expected labels below {k}, the number of logits, got "
                f"{sums.largest_label}. Number the labels as the model numbers its classes."
            )
        if sums.n == sums.n_unlabelled:
            raise InputError(
                "COSTARR: expected labelled rows, got none. Fit on rows with labels, or use KNN."
            )
        if self.logit == "minmax" and self.logit_range is None and not sums.low <= sums.high:
            raise InputError(
                'COSTARR: logit="minmax" takes the range of the winning logit from correctly '
                "predicted rows, got none. Give logit_range=(low, high)."
            )
        if self.logit == "zscore" and k < 2:
            raise InputError(
                'COSTARR: logit="zscore" compares the logits of a row, which needs several '
                f'classes, got {k}. Use "none".'
            )


def _unit(x: Float[Tensor, "*row dim"]) -> Float[Tensor, "*row dim"]:
    """Return rows of unit length; rows of zeros stay zeros.

    They are scaled by their largest entry first, so that no square overflows or vanishes.
    """
    top = x.abs().amax(dim=-1, keepdim=True)
    scaled = x / top.where(top > 0, torch.ones_like(top))
    length = scaled.norm(dim=-1, keepdim=True)
    return scaled / length.where(length > 0, torch.ones_like(length))


def _dead(mean: Float[Tensor, "class both"]) -> bool:
    """Return whether all rows share one direction, which makes all class means equal."""
    half = mean[:, : mean.shape[1] // 2]
    own = half[half.norm(dim=1) > 0]
    return not len(own) or bool(((own - own[0]).norm(dim=1) + (1 - own.norm(dim=1)) < SAME).all())


def _sums(
    rows: Float[Tensor, "row both"], own: Int[Tensor, "row"], k: int
) -> tuple[Int[Tensor, "class"], Float[Tensor, "class both"]]:
    total = rows.new_zeros(k, rows.shape[1])
    return torch.bincount(own, minlength=k), total.index_add_(0, own, rows)


def _listed(mask: Bool[Tensor, "class"]) -> Sequence[int]:
    """Return the indices of a mask's classes."""
    indices: list[int] = torch.nonzero(mask).flatten().cpu().numpy().tolist()
    return indices
