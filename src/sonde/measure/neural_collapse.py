"""Degree to which a classifier's last hidden layer collapsed onto class means.

The four figures are for the site that the classifying layer reads. For a site of any kind see
``class_separability``.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError, ShapeError
from sonde.core.function import as_function
from sonde.core.instrument import SAMPLE, Instrument
from sonde.core.result import Direction, Result
from sonde.core.statistic import Statistic
from sonde.measure._flags import moment_flags
from sonde.stats import (
    ClassMoments,
    ClassMomentsState,
    HashSample,
    HashSampleState,
    HeadWeights,
    HeadWeightsState,
)
from sonde.stats.sampled_rows import SampledRows

DRAWS = 20
CUT = 1e-4
"""Variance of the class means, relative to the largest, below which a direction is ignored."""


NOISY = 0.1
"""With more noise than this, value +- 1.96 se held the mean in .85 of draws, below in .92."""


@final
@dataclass(frozen=True, kw_only=True)
class NeuralCollapseResult(Result):
    """Variance within classes over variance between (NC1), with NC2 to NC4; 0 if collapsed.

    ``length_variation`` (NC2) is the coefficient of variation of the lengths of the centred class
    means; ``angle_gap`` their mean ``|cosine + 1 / (classes - 1)|`` and ``angle_spread`` the
    standard deviation of the cosines. ``head_gap`` (NC3) is the squared distance of the centred
    class means from the head's rows, both of unit norm; ``disagreement`` (NC4) the share of
    sampled rows that the head and the nearest class mean put into different classes. These two are
    NaN without the head.
    """

    direction: Direction = "lower"
    labels: Tensor
    cosines: Float[Tensor, "class class"]
    length_variation: float
    angle_gap: float
    angle_spread: float
    head_gap: float
    disagreement: float


@final
@dataclass(frozen=True)
class NeuralCollapse(Instrument):
    """Trace of the covariance within classes, in the metric of the covariance of class means.

    NC1: ``tr(S_W S_B^+) / classes`` with the mean covariance ``S_W`` of a row about its class mean
    and ``S_B`` of the class means about their plain mean. All of NC1 to NC4 go to 0 if a
    classifier is trained far beyond zero error. The null is the median of 20 draws of class means
    that differ by chance alone.

    Range        [0, inf); lower = collapsed. Invariant to  rotation, isotropic scale, shifts.
    Cost         one pass; state 8 (dim^2 + classes dim) bytes; result O(dim^2 classes). With the
                 head ``m`` rows more.
    Assumes      two classes or more, each weighed alike in ``S_B``; rows with label -1 are left
                 out; for ``head``, that the site is what the head reads.
    Differs      from the paper: NC2 also as the mean gap to the simplex.

    Parameters
    ----------
    head : bool, default=False
        Read the model's final linear layer too, for NC3 and NC4. There is no standard error then.
    m : int, default=2048
        Rows of the sample for NC4.

    Examples
    --------
    >>> x = [[0.0, 0.0], [2.0, 2.0], [6.0, 0.0], [8.0, 2.0]]
    >>> round(neural_collapse(x, [0, 0, 1, 1]).value, 6)
    0.055556

    References
    ----------
    papyan2020collapse
    """

    head: bool = False
    m: int = SAMPLE
    least_rows: ClassVar[int] = 2
    paper: ClassVar[str] = "papyan2020collapse"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"head": True, "m": 64})

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for class moments; with ``head`` also for the head and a sample."""
        statistics: dict[str, Statistic[Any]] = {"classes": ClassMoments()}
        return (
            {**statistics, "head": HeadWeights(), "sample": HashSample(self.m)}
            if self.head
            else statistics
        )

    def result(
        self,
        classes: ClassMomentsState,
        head: HeadWeightsState | None = None,
        sample: HashSampleState | None = None,
        independent: float | None = None,
    ) -> NeuralCollapseResult:
        """Compare class means with the deviation about them, a simplex, and the final layer."""
        count = len(classes.labels)
        if count < 2:
            raise InputError(
                f"NeuralCollapse: expected at least two classes, got {count}. "
                "Pass labels, or check the label column."
            )
        centred = classes.mean - classes.mean.mean(0)
        fixed = centred.detach()
        length = fixed.norm(dim=1)
        cosines = fixed @ fixed.T / torch.outer(length, length)
        pairs = cosines[~torch.eye(count, dtype=torch.bool, device=cosines.device)]
        flags = list(moment_flags(classes.total))
        flags += ["unlabelled"] if classes.unlabelled is not None else []
        dead = not bool(fixed.any())
        flags += ["dead"] if dead else []
        gap = wrong = math.nan
        if head is not None and sample is not None:
            gap = _head_gap(fixed, _rows_of(head, classes.labels, fixed.shape[1]))
            wrong, extra = _disagreement(classes, head, sample)
            flags += extra
        n_independent = independent or classes.n_labelled
        value = class_collapse(classes)
        # noise of the class means, in units of the variance between them
        noise = float(value.detach()) * count**2 / n_independent
        flags += ["se_first_order"] if not dead and noise > NOISY else []
        return NeuralCollapseResult(
            value=math.nan if dead else value,
            null=_null(classes, n_independent / classes.n_labelled),
            n=classes.n_labelled,
            range=(0.0, math.inf),
            flags=tuple(dict.fromkeys(flags)),
            conventions={"classes": "equal weights", "definition": "averages"},
            labels=classes.labels,
            cosines=cosines,
            length_variation=float(length.std(correction=0) / length.mean()),
            angle_gap=float((pairs + 1.0 / (count - 1)).abs().mean()),
            angle_spread=float(pairs.std(correction=0)),
            head_gap=gap,
            disagreement=wrong,
        )


def class_collapse(classes: ClassMomentsState) -> Float[Tensor, ""]:
    """Return ``tr(S_W S_B^+) / classes`` with equally weighted class means."""
    within = classes.pooled / classes.weight.sum()
    inverse = torch.linalg.pinv(classes.mean - classes.mean.mean(0), rtol=CUT)
    return ((within @ inverse) * inverse).sum()


def _null(classes: ClassMomentsState, independent: float) -> float:
    """Return the median value if class means differ only by sampling error.

    ``independent`` is the share of rows that count as independent.
    """
    within = classes.pooled.detach() / classes.weight.detach().sum()
    values = torch.linalg.eigvalsh(within).clamp(min=0.0).cpu()
    generator = torch.Generator().manual_seed(0)
    shape = len(classes.labels), len(values)
    draws: list[Tensor] = []
    for _ in range(DRAWS):
        noise = torch.randn(shape, generator=generator, dtype=torch.float64) * values.sqrt()
        means = noise / (independent * classes.weight.detach().cpu()).sqrt()[:, None]
        inverse = torch.linalg.pinv(means - means.mean(0), rtol=CUT)
        draws.append((values[:, None] * inverse.square()).sum())
    return float(torch.stack(draws).median())


def _rows_of(
    head: HeadWeightsState, labels: Int[Tensor, "class"], dim: int
) -> Float[Tensor, "class dim"]:
    """Return the final layer's row of each class."""
    n_outputs, width = head.weight.shape
    if width != dim:
        raise ShapeError(
            f"NeuralCollapse: expected the site that the head reads, of width {width}, got a "
            f"site of width {dim}. Name that site (--sites), or leave the head out."
        )
    if int(labels[-1]) >= n_outputs:
        raise InputError(
            f"NeuralCollapse: expected labels below the head's {n_outputs} outputs, got "
            f"{int(labels[-1])}. Pass labels that the head predicts, or leave the head out."
        )
    return head.weight[labels].double()


def _head_gap(means: Float[Tensor, "class dim"], rows: Float[Tensor, "class dim"]) -> float:
    return float((means / means.norm() - rows.to(means) / rows.norm()).square().sum())


def _disagreement(
    classes: ClassMomentsState, head: HeadWeightsState, sample: HashSampleState
) -> tuple[float, tuple[str, ...]]:
    """Return how often final layer and nearest class mean disagree on sampled rows, and flags."""
    rows = SampledRows.of([sample])
    x = rows.rows[0]
    answers = head.logits(x).argmax(1)
    nearest = classes.labels[torch.cdist(x, classes.mean.detach().to(x)).argmin(1).cpu()]
    return float((answers.cpu() != nearest.cpu()).double().mean()), rows.flags


neural_collapse = as_function(
    NeuralCollapse, "label", optional=("head",), given={"head": {"head": True}}
)
