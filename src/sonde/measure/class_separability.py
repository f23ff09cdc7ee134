"""Separation of classes in closed form, from each class's moments.

No classifier is trained and nothing is held out: with many dimensions and few rows the values rise
without meaning, so compare them with the null.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import Instrument
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.measure._flags import moment_flags
from sonde.measure.neural_collapse import class_collapse
from sonde.stats import ClassMoments, ClassMomentsState
from sonde.stats.normal_equations import GRAM_CUT


@final
@dataclass(frozen=True, kw_only=True)
class ClassSeparabilityResult(Result):
    """Explained variance, with three further statistics of these sums.

    ``calinski_harabasz`` is the mean square between classes over the mean square within (about 1 if
    labels say nothing). ``lda_ratio`` is ``tr(S_T^+ S_B) / (classes - 1)`` with null ``lda_null``,
    unchanged by invertible maps. ``nc1`` is ``tr(S_W S_B^+) / classes`` over averages, 0 if each
    class is a point.
    """

    direction: Direction = "higher"
    labels: Tensor
    calinski_harabasz: float
    lda_ratio: float
    lda_null: float
    nc1: float


@final
@dataclass(frozen=True)
class ClassSeparability(Instrument):
    """Fraction of variance between classes, with scale-free companions.

    ``eta2 = tr S_B / (tr S_B + tr S_W)``. Rows whose label says nothing give
    ``(classes - 1) / (n - 1)``, the null.

    Range        [0, 1]; higher = better separated.
    Cost         one pass; state 8 (dim^2 + classes dim) bytes; result O(dim^3).
    Assumes      two classes or more; rows with label -1 are left out.
    Differs      collapse (``nc1``) weighs classes equally, all else by their rows.

    Examples
    --------
    >>> x = [[0.0, 0.0], [0.0, 2.0], [6.0, 0.0], [6.0, 2.0]]
    >>> round(class_separability(x, [0, 0, 1, 1]).value, 6)
    0.9

    References
    ----------
    calinski1974dendrite, papyan2020collapse
    """

    paper: ClassVar[str] = "calinski1974dendrite"

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for each class's moments."""
        return {"classes": ClassMoments()}

    def result(
        self, classes: ClassMomentsState, independent: float | None = None
    ) -> ClassSeparabilityResult:
        """Compare the scatter between classes with the scatter within."""
        n, count = classes.n_labelled, len(classes.labels)
        degrees = max((independent or n) - 1, 1)
        if count < 2:
            raise InputError(
                f"ClassSeparability: expected at least two classes, got {count}. "
                "Pass labels, or check the label column."
            )
        between, within = classes.between, classes.pooled
        b, w = between.diagonal().sum(), within.diagonal().sum()
        ratio, rank = _lda(between.detach(), within.detach(), n)
        dead = not bool((b + w).detach() > 0)
        flags = [f for f in moment_flags(classes.total)]
        if classes.unlabelled is not None:
            flags.append("unlabelled")
        mean_square = float(w.detach()) / max(n - count, 1)
        return ClassSeparabilityResult(
            value=float("nan") if dead else b / (b + w),
            null=(count - 1) / degrees,
            n=n,
            range=(0.0, 1.0),
            flags=tuple(dict.fromkeys([*flags, *(["dead"] if dead else [])])),
            conventions={"weights": "by rows", "precision": "rows taken as float32"},
            labels=classes.labels,
            calinski_harabasz=_over(float(b.detach()) / (count - 1), mean_square),
            lda_ratio=ratio / (count - 1),
            lda_null=rank / degrees,
            nc1=float(class_collapse(classes).detach()) if bool(between.any()) else float("nan"),
        )


def _over(top: float, bottom: float) -> float:
    if bottom > 0.0:
        return top / bottom
    return float("inf") if top > 0.0 else float("nan")


def _lda(
    between: Float[Tensor, "dim dim"], within: Float[Tensor, "dim dim"], n: int
) -> tuple[float, int]:
    """Return ``tr(S_T^+ S_B)`` and the rank of the total scatter.

    Both are taken between standardised units, so that a unit of huge variance hides no other unit.
    """
    total = between + within
    scale = total.diagonal().clamp(min=0.0).sqrt()
    inverse = torch.where(scale > 0, 1.0 / scale, 0.0)
    values, vectors = torch.linalg.eigh(inverse[:, None] * total * inverse)
    most = min(len(values), n - 1)
    values, vectors = values[-most:], vectors[:, -most:]
    keep = values > GRAM_CUT * values[-1].clamp(min=0.0)
    basis = inverse[:, None] * vectors[:, keep]
    trace = ((basis.T @ between @ basis).diagonal() / values[keep]).sum()
    return float(trace), int(keep.sum())


class_separability = as_function(ClassSeparability, "label")
