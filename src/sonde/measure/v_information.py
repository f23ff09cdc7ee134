"""Information of rows about their labels that a linear classifier can use.

Information that no linear classifier can use does not count. For separation in closed form, from
any number of rows, see ``class_separability``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE, Instrument, Read
from sonde.core.random_state import kept_random_state
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.engine.tails import FEW_EFFECTS, contributing_groups
from sonde.measure._reads import labelled_sample, unlabelled
from sonde.stats import HashSampleState
from sonde.stats.halves import random_halves
from sonde.stats.sampled_rows import SampledRows

NULLS = 5
STEPS = 1000


@final
@dataclass(frozen=True, kw_only=True)
class VInformationResult(Result):
    """Usable information in nats; ``entropy`` is the labels' entropy.

    ``accuracy`` is the share of held-out rows whose label the classifier finds; ``of_class`` the
    usable information of the rows of each class, in ascending order of ``labels``.
    """

    direction: Direction = "higher"
    unit: str = "nats"
    entropy: float
    accuracy: float
    labels: Tensor
    of_class: Float[Tensor, "class"]


@final
@dataclass(frozen=True)
class VInformation(Instrument):
    """Information about the label that a linear classifier can use, in nats.

    Mean over held-out rows of ``ln q(label | row) - ln q(label)``: a logistic classifier against
    the frequencies of the classes. Both are fitted on each half of the groups and judged on the
    other half.

    Range        (-inf, entropy of the labels], nats; below 0 where the classifier overfits; higher
                 = more usable. Invariant to  rotation, isotropic scale, shifts.
    Cost         one pass; state ``m`` rows; result twelve logistic fits to half of them.
    Assumes      two classes or more; rows with label -1 are left out, and so are classes that one
                 half lacks (flag ``few_rows``). The error counts the effect of
                 each row on the classifiers.
    Differs      from the paper: linear classifiers alone, both halves are judged.

    Parameters
    ----------
    l2 : float, default=1.0
        Penalty ``l2 / 2 |w|^2`` beside the summed loss, for rows of mean square 1 per unit.
    m : int, default=2048
        Rows of the sample.

    Examples
    --------
    >>> x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    >>> found = v_information(x, x[:, 0] > 0)
    >>> found.value > 0.8 * found.entropy
    True

    References
    ----------
    xu2020usable
    """

    l2: float = 1.0
    m: int = SAMPLE
    least_rows: ClassVar[int] = 4
    paper: ClassVar[str] = "xu2020usable"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"m": 64}, {"l2": 0.1})

    def __post_init__(self) -> None:
        check_ranges(self, l2="(0, inf)")

    def reads(self) -> Mapping[str, Statistic[Any] | Read]:
        """Return the request for a sample of labelled rows."""
        return labelled_sample(self.m)

    def result(
        self, rows: HashSampleState, labels: HashSampleState, every: HashSampleState | None = None
    ) -> VInformationResult:
        """Fit on each half of the groups and test on the other."""
        sample = SampledRows.of((rows, replace(labels, rows=labels.rows[:, None])))
        classes = torch.unique(sample.rows[1])
        if len(classes) < 2:
            raise InputError(
                f"VInformation: expected at least two classes, got {len(classes)}. "
                "Pass labels, or check the label column."
            )
        x = sample.rows[0]
        dead = not bool((x != x[:1]).any())
        judged = None if dead else self._judged(sample, with_error=True)
        flags = [*sample.flags, *unlabelled(rows, every), *(["dead"] if dead else [])]
        if judged is None or judged.n_left_out:
            flags += [] if dead else ["few_rows"]
        if judged is None:
            nothing = torch.zeros(0, dtype=torch.float64)
            judged = _Judged(
                nothing, nothing, nothing.bool(), nothing, nothing, len(sample), sample
            )
        others = [self._judged(s) for s in sample.shuffled(n=NULLS)] if len(judged.gain) else []
        nulls = [float(other.gain.mean()) for other in others if other is not None]
        every_gain = (j.gain for j in (judged, *others) if j is not None and len(j.gain))
        if any(contributing_groups(g, torch.arange(len(g))) < FEW_EFFECTS for g in every_gain):
            flags.append("heavy_tails")
        se, how = judged.error() if nulls else (None, "no value")
        labels_judged = torch.unique(judged.label)
        return VInformationResult(
            value=float(judged.gain.mean()),
            se=se,
            null=sum(nulls) / len(nulls) if nulls else math.nan,
            n=len(sample),
            range=(-math.inf, math.log(len(classes))),
            flags=tuple(flags),
            conventions={
                "family": "logistic",
                "l2": self.l2,
                "null": f"{NULLS} shuffles of labels among groups",
                "se": how,
            },
            entropy=float(judged.own.mean()),
            accuracy=float(judged.right.double().mean()),
            labels=labels_judged.long(),
            of_class=torch.tensor(
                [float(judged.gain[judged.label == k].mean()) for k in labels_judged]
            ),
        )

    def _judged(self, rows: SampledRows, *, with_error: bool = False) -> "_Judged | None":
        """Fit on each half of the groups and test on the other; None if classes are too few."""
        half = random_halves(rows.group, n_halves=1)[0]
        label = rows.rows[1][:, 0].cpu()
        kept = torch.isin(label, label[half]) & torch.isin(label, label[~half])
        if len(torch.unique(label[kept])) < 2:
            return None
        rows, half, label = rows.take(kept), half[kept], label[kept]
        x, wanted = rows.rows[0].cpu().numpy(), label.numpy()
        own, log_own, taught = np.zeros(len(x)), np.zeros(len(x)), np.zeros(len(x))
        right = np.zeros(len(x), dtype=bool)
        for fitted in (half.numpy(), ~half.numpy()):
            fit = _Fit.of(x[fitted], wanted[fitted], self.l2)
            log = fit.log_probabilities(x[~fitted])
            classes, counts = np.unique(wanted[fitted], return_counts=True)
            at = np.searchsorted(classes, wanted[~fitted])
            own[~fitted] = -np.log(counts / counts.sum())[at]
            log_own[~fitted] = log[np.arange(len(at)), at]
            right[~fitted] = log.argmax(1) == at
            if with_error:
                taught[fitted] = fit.taught(x[~fitted], at)
        gain, sure, taught = (torch.from_numpy(v) for v in (log_own + own, own, taught))
        right = torch.from_numpy(right)
        return _Judged(gain, sure, right, label, taught, int((~kept).sum()), rows)


@dataclass(frozen=True)
class _Judged:
    """Held-out rows: usable information, ``-ln`` of class frequency, and correctness.

    ``taught`` is the first-order effect of one more such row on the sum of ``gain``, through the
    classifier that learns from it.
    """

    gain: Float[Tensor, "row"]
    own: Float[Tensor, "row"]
    right: Bool[Tensor, "row"]
    label: Float[Tensor, "row"]
    taught: Float[Tensor, "row"]
    n_left_out: int
    rows: SampledRows

    def error(self) -> tuple[Tensor | None, str]:
        """Return the mean gain's standard error, and the method.

        What the classifiers lose by learning from few rows is a square of the error of their
        weights. Its first-order effects have twice the variance of that square, so half counts.
        """
        fixed, how = self.rows.error_of_mean(self.gain)
        moving, _ = self.rows.error_of_mean(self.gain + self.taught)
        if fixed is None or moving is None:
            return None, how
        return ((fixed.square() + moving.square()) / 2).sqrt(), f"{how}, with effects on the fits"


@dataclass(frozen=True)
class _Fit:
    """A logistic classifier on standardised rows with a column of ones, and its training data.

    ``excess`` is the probability of each class less 1 for the row's own class; of two classes the
    second alone is kept, as scikit-learn fits one logit.
    """

    model: Any
    mean: Float[np.ndarray, "dim"]
    scale: float
    rows: Float[np.ndarray, "row dim1"]
    at: Int[np.ndarray, "row"]
    l2: float

    @classmethod
    def of(
        cls, x: Float[np.ndarray, "row dim"], label: Float[np.ndarray, "row"], l2: float
    ) -> "_Fit":
        """Fit the classifier to rows and labels."""
        with kept_random_state():
            from sklearn.linear_model import LogisticRegression

        mean = x.mean(0)
        scale = math.sqrt(float(np.square(x - mean).mean())) or 1.0
        z = (x - mean) / scale
        model = LogisticRegression(C=1.0 / l2, max_iter=STEPS).fit(z, label)
        return cls(model, mean, scale, _with_ones(z), np.searchsorted(model.classes_, label), l2)

    def log_probabilities(
        self, x: Float[np.ndarray, "row2 dim"]
    ) -> Float[np.ndarray, "row2 class"]:
        """Return the classes' log-probabilities, in ascending order of class."""
        score = np.asarray(self.model.decision_function((x - self.mean) / self.scale))
        if score.ndim == 1:
            score = np.stack([np.zeros_like(score), score], 1)
        score = score - score.max(1, keepdims=True)  # no chance underflows to 0
        return score - np.log(np.exp(score).sum(1, keepdims=True))

    def taught(
        self, x: Float[np.ndarray, "row2 dim"], at: Int[np.ndarray, "row2"]
    ) -> Float[np.ndarray, "row"]:
        """Return each training row's effect on the sum of gains of tested rows.

        One more row ``j`` moves the weights by ``-H^-1 g_j``, with the Hessian ``H`` of the
        penalised loss and the gradient ``g_j`` of the row's loss; and it moves the frequencies.
        """
        judged = _with_ones((x - self.mean) / self.scale)
        p, excess = self._excess(self.rows, self.at)
        slope = judged.T @ self._excess(judged, at)[1]

        def hessian(flat: Float[np.ndarray, "_size"]) -> Float[np.ndarray, "_size"]:
            v = flat.reshape(slope.shape)
            moved = p * (self.rows @ v)
            penalty = self.l2 * v
            penalty[-1] = 0.0  # the intercept is free
            return (self.rows.T @ (moved - p * moved.sum(1, keepdims=True)) + penalty).ravel()

        size = slope.size
        product = LinearOperator((size, size), hessian, dtype=float)  # pyright: ignore
        solved, _ = cg(product, slope.ravel(), rtol=1e-4)
        n_classes = len(self.model.classes_)
        share = [np.bincount(a, minlength=n_classes) / len(a) for a in (self.at, at)]
        frequency = len(at) / len(self.at) * (1.0 - (share[1] / share[0])[self.at])
        return (self.rows @ solved.reshape(slope.shape) * excess).sum(1) + frequency

    def _excess(
        self, rows: Float[np.ndarray, "row2 dim1"], at: Int[np.ndarray, "row2"]
    ) -> tuple[Float[np.ndarray, "row2 kept"], Float[np.ndarray, "row2 kept"]]:
        p = self.model.predict_proba(rows[:, :-1])
        excess = p - np.eye(p.shape[1])[at]
        return (p[:, 1:], excess[:, 1:]) if p.shape[1] == 2 else (p, excess)


def _with_ones(z: Float[np.ndarray, "row dim"]) -> Float[np.ndarray, "row dim1"]:
    return np.concatenate([z, np.ones_like(z[:, :1])], 1)


v_information = as_function(VInformation, "label")
