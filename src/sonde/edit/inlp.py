"""Erasure by repeated linear probes, until no probe can predict the classes."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.instrument import SAMPLE, Instrument
from sonde.core.ranges import check_ranges
from sonde.core.statistic import Statistic
from sonde.edit._eraser import FLOAT64, Eraser, Joint
from sonde.stats import ClassMoments, ClassMomentsState, HashSample, HashSampleState
from sonde.stats.shrinkage import Shrinkage, check_shrinkage, inverse_root


@final
@dataclass(frozen=True)
class Inlp(Instrument):
    """Orthogonal projection off the normals of linear probes, fitted round by round (INLP).

    Each round fits linear discriminant analysis to what the rounds before left and removes its
    normals, until its accuracy is within ``margin`` of the share of the commonest class. The probes
    come from sums over all rows, so one pass serves every round; their accuracy is measured on a
    sample of these rows. ``Leace`` changes rows less for the same guard.

    Range        [0, 1], mean squared change over total variance; higher = more is changed.
    Cost         one pass; state 8 (dim^2 + classes dim) + 4 sample dim bytes; result O(dim^3) for
                 each round.
    Assumes      two classes or more; rows without a label are left out (flag ``unlabelled``).
    Differs      from the paper: discriminant analysis in place of a trained classifier; the mean of
                 the rows stays where it is.

    Parameters
    ----------
    max_rounds : int, default=35
        Most probes.
    margin : float, default=0.01
        How far above the share of the commonest class the last probe's accuracy may lie.
    shrinkage : float or "oas", default="oas"
        Weight in [0, 1] of the scaled identity in the covariance within classes.
    sample : int, default=2048
        Rows that accuracies are measured on.

    Examples
    --------
    >>> x = [[0.0, 0.0], [2.0, 2.0], [4.0, 0.0], [6.0, 2.0]]
    >>> eraser = Inlp(shrinkage=0.0).fit(x, [0, 0, 1, 1])
    >>> eraser.rank, eraser.conventions["accuracy"]
    (1, 0.5)

    References
    ----------
    ravfogel2020inlp
    """

    max_rounds: int = 35
    margin: float = 0.01
    shrinkage: Shrinkage = "oas"
    sample: int = SAMPLE
    estimates: ClassVar[bool] = False
    paper: ClassVar[str] = "ravfogel2020inlp"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"max_rounds": 1, "shrinkage": 0.1})

    def __post_init__(self) -> None:
        check_shrinkage("Inlp", self.shrinkage)
        check_ranges(self, max_rounds=">= 1", margin=">= 0")

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the moments of each class, and a sample of rows with their labels."""
        return {
            "by_class": ClassMoments(),
            "rows": HashSample(self.sample),
            "labels": HashSample(self.sample, "label"),
        }

    def result(
        self, by_class: ClassMomentsState, rows: HashSampleState, labels: HashSampleState
    ) -> Eraser:
        """Fit a probe, remove its normals, and repeat."""
        joint = Joint.of_classes("Inlp", by_class, FLOAT64)
        within = by_class.pooled.detach() / joint.n
        share = by_class.weight.detach() / joint.n
        is_known = labels.rows >= 0
        x, label = rows.rows[is_known].double() - joint.mean, labels.rows[is_known]
        majority = int(label.unique(return_counts=True)[1].max()) / len(label)
        basis = torch.zeros(len(joint.mean), 0, dtype=torch.float64, device=x.device)
        accuracy: list[float] = []
        while basis.shape[1] < len(basis):
            rest = torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[1] :]
            metric = inverse_root(rest.T @ within @ rest * joint.n, joint.n, self.shrinkage)
            root = rest @ metric.reaching_outside().root
            probe = _Probe.of(root, joint.gap, share, by_class.labels)
            accuracy.append(float(probe.is_right(x, label).double().mean()))
            if accuracy[-1] <= majority + self.margin or len(accuracy) > self.max_rounds:
                break
            basis = torch.cat([basis, _span(probe.normal, joint.least())], 1)
        else:  # nothing is left to read
            accuracy.append(majority)
        return joint.eraser(
            basis,
            basis,
            conventions={
                "accuracy": accuracy[-1],
                "accuracy_before": accuracy[0],
                "majority": majority,
                "rounds": len(accuracy) - 1,
            },
        )


APART = 1e-6
"""Standard deviations between classes below which they are one: what is left is rounding."""


@dataclass(frozen=True)
class _Probe:
    """Linear discriminant analysis: the class of the largest ``x . normal + offset``."""

    normal: Float[Tensor, "dim class"]
    offset: Float[Tensor, "class"]
    labels: Int[Tensor, "class"]

    @classmethod
    def of(cls, root: Tensor, gap: Tensor, share: Tensor, labels: Tensor) -> "_Probe":
        white = root.T @ gap
        if float(white.norm()) < APART:
            white = torch.zeros_like(white)
        return cls(root @ white, share.log() - white.square().sum(0) / 2, labels)

    def is_right(self, x: Float[Tensor, "row dim"], label: Tensor) -> Bool[Tensor, "row"]:
        return self.labels[(x @ self.normal + self.offset).argmax(1)] == label


def _span(normal: Float[Tensor, "dim class"], most: int) -> Float[Tensor, "dim rank"]:
    """Return an orthonormal basis of the normals of a probe."""
    u, s, _ = torch.linalg.svd(normal, full_matrices=False)
    kept = int((s > max(normal.shape) * FLOAT64 * s[0]).sum())
    return u[:, : min(kept, most)]
