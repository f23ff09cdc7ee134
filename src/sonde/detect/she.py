"""Inner product with a stored pattern of the predicted class."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import Detector
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.site import HEAD_INPUT
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.detect._logits import at_least_single
from sonde.detect._metric import CHUNK, check_fitted_width


@dataclass(frozen=True)
class RightRowsState(State):
    """Count and sum, for each class, of the rows correctly predicted as it."""

    n: int
    n_unlabelled: int
    largest_label: int
    rows: Int[Tensor, "class"]
    sum: Float[Tensor, "class dim"]


@final
@dataclass(frozen=True)
class RightRows(Statistic[RightRowsState]):
    """Mean of each class's correctly predicted rows, independent of how data are split."""

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        label: Int[Tensor, "row"],
        logits: Float[Tensor, "row class"],
    ) -> RightRowsState:
        """Return the counts and sums of a batch."""
        k = logits.shape[1]
        predicted, label = logits.argmax(1).to(x.device), label.to(x.device).long()
        right = predicted == label
        own = predicted[right]
        total = torch.zeros(k, x.shape[1], dtype=torch.float64, device=x.device)
        total.index_add_(0, own, x[right].double())
        missing = int((label < 0).sum())
        rows = torch.bincount(own, minlength=k)
        return RightRowsState(len(x), missing, int(label.max()), rows, total)

    def merge(self, a: RightRowsState, b: RightRowsState) -> RightRowsState:
        """Return the counts and sums of both states."""
        return RightRowsState(
            a.n + b.n,
            a.n_unlabelled + b.n_unlabelled,
            max(a.largest_label, b.largest_label),
            a.rows + b.rows,
            a.sum + b.sum,
        )


@final
@dataclass(frozen=True, kw_only=True)
class SHEScorer(Scorer):
    """Minus the inner product with the predicted class's row of ``pattern``.

    ``value`` is the mean score of the rows that the patterns were made of.
    """

    pattern: Float[Tensor, "class dim"]

    @property
    def labels(self) -> Int[Tensor, "class"]:
        """The class of each pattern."""
        return torch.arange(len(self.pattern))

    def score(
        self, x: Float[Tensor, "row dim"], logits: Float[Tensor, "row class"]
    ) -> Float[Tensor, "row"]:
        """Return minus the inner product of each row with the pattern of its predicted class."""
        check_fitted_width("SHE", x, self.pattern.shape[1])
        check_fitted_width("SHE", logits, len(self.pattern), "classes")
        pattern = self.pattern.to(at_least_single(x[:0]))
        predicted = logits.argmax(1).to(x.device)
        out = torch.empty(len(x), dtype=pattern.dtype, device=x.device)
        for start in range(0, len(x), CHUNK):
            rows = slice(start, start + CHUNK)
            out[rows] = -(x[rows].to(pattern) * pattern[predicted[rows]]).sum(1)
        return infinite_where_nonfinite(out, x, logits=logits)


@final
@dataclass(frozen=True)
class SHE(Detector):
    """Minus the inner product of each row with the mean row of its predicted class.

    ``-x . s_c`` with ``c`` the predicted class and ``s_c`` the mean of the fitted rows that are
    labelled and predicted as ``c``: what is left of a Hopfield network's energy with one stored
    pattern for each class. The product is not normalised, so short rows count as unusual.

    Range        (-inf, inf), in squared units of the rows; higher = more unusual.
    Cost         one pass; state 8 classes dim bytes; O(dim + classes) per row.
    Assumes      rows are the input of a classifier's final linear layer, labels that are its
                 classes, each class predicted rightly once.
    Differs      nothing.

    Examples
    --------
    >>> x = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0]])
    >>> scorer = SHE().fit(x, [0, 0, 1], logits=x)
    >>> scorer.score(torch.tensor([[1.0, 0.0], [0.0, 5.0]]), torch.eye(2)).tolist()
    [-3.0, -5.0]

    References
    ----------
    zhang2023she
    """

    paper: ClassVar[str] = "zhang2023she"

    def reading(self) -> dict[str, Any]:
        """Return the reading of the final linear layer's input."""
        return {"sites": HEAD_INPUT}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the sums of correctly predicted rows."""
        return {"right": RightRows()}

    def result(self, right: RightRowsState) -> SHEScorer:
        """Compute the mean of each class's correctly predicted rows."""
        _check_labels(right)
        pattern = right.sum / right.rows[:, None]
        n = int(right.rows.sum())
        return SHEScorer(
            value=-float((pattern * right.sum).sum()) / n,
            n=n,
            unit="squared units of the rows",
            flags=("unlabelled",) if right.n_unlabelled else (),
            conventions={
                "value": "mean score of the rows that are predicted as their label",
                "left_out": right.n - right.n_unlabelled - n,
                "se": "not given for a scorer: calibrate its scores",
            },
            pattern=pattern,
        )


def _check_labels(right: RightRowsState) -> None:
    k = len(right.rows)
    if right.largest_label >= k:
        raise InputError(
            f"SHE: expected labels below {k}, the number of logits, got {right.largest_label}. "
            "Number the labels as the model numbers its classes."
        )
    empty = torch.nonzero(right.rows == 0).flatten().cpu().numpy().tolist()
    if empty:
        shown = ", ".join(str(c) for c in empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise InputError(
            "SHE: expected at least one correctly predicted row in every class, got none for "
            f"{len(empty)} of {k} classes ({shown}). Fit on labelled rows of all classes."
        )
